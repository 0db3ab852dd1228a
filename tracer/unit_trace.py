"""Trace heads and neurons one by one: which of a sub-layer's parts carries its effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from tracer.corrupt import measured_corruption
from tracer.effect import Settings, about_measured, measured_from
from tracer.effect.estimate import sample_effects, sample_error
from tracer.fact import Fact, TokenizedFact, token_roles
from tracer.model import LanguageModel
from tracer.model.tokens import visible
from tracer.plan import Plan, RunOptions
from tracer.runs import Runs, settings_of, settled, spread
from tracer.site import Unit
from tracer.storage import of_this_version, read_tensors, write_tensors
from tracer.units import heads, neurons


@dataclass(frozen=True, eq=False)
class UnitTrace:
    """The effect of each head or neuron, set alone at one token.

    Attributes:
        units: (layer, number) of each.
        kind: "head" or "neuron".
        answer_id, answer: the token traced.
        clean: the metric, nothing corrupted.
        corrupted_samples: the metric in each corrupted run.
        restored: the metric with a unit set; NaN at tokens that were not traced.
    """

    fact: TokenizedFact
    kind: str
    units: tuple[tuple[int, int], ...]
    answer_id: int
    answer: str
    clean: float
    corrupted_samples: Float[np.ndarray, " sample"]
    restored: Float[np.ndarray, "token unit sample"]
    settings: Settings

    def __repr__(self) -> str:
        return (
            f"UnitTrace({len(self.units)} {self.kind}s, {self.fact.text!r} -> {self.answer!r}, {self.settings.metric}: "
            f"clean {self.clean:.3f}, corrupted {self.corrupted_samples.mean():.3f})"
        )

    @property
    def unit_effect(self) -> Float[np.ndarray, "token unit"]:
        """Mean effect over the samples, signed as in `TraceResult.indirect_effect`."""
        return self._sample_effects.mean(-1)

    @property
    def _sample_effects(self) -> Float[np.ndarray, "token unit sample"]:
        return sample_effects(self.restored, self.clean, self.corrupted_samples, self.settings.direction)

    @property
    def effect(self) -> Float[np.ndarray, "token layer number"]:
        """The effect by layer and number; NaN where a unit was not traced."""
        layers, numbers = (1 + max(column) for column in zip(*self.units, strict=True))
        found = np.full((len(self.restored), layers, numbers), np.nan)
        for (layer, number), column in zip(self.units, self.unit_effect.T, strict=True):
            found[:, layer, number] = column
        return found

    @property
    def roles(self) -> list[str | None]:
        """The role of each token."""
        return token_roles(len(self.fact.token_ids), self.fact.subject_span)

    def to_frame(self) -> pd.DataFrame:
        """One row a token and unit: token, text, role, layer, head or neuron, effect, standard_error, n (samples)."""
        effect, error = self.unit_effect, sample_error(self._sample_effects)
        records = [
            {
                "token": token,
                "text": self.fact.tokens[token],
                "role": self.roles[token],
                "layer": layer,
                self.kind: number,
                "effect": effect[token, column],
                "standard_error": error[token, column],
                "n": len(self.corrupted_samples),
            }
            for token in np.flatnonzero(~np.isnan(effect[:, 0]))
            for column, (layer, number) in enumerate(self.units)
        ]
        return pd.DataFrame.from_records(records)

    def top(self, n: int = 10) -> pd.DataFrame:
        """The `n` rows of `to_frame` with the largest effects, by size."""
        frame = self.to_frame()
        order = np.argsort(-frame["effect"].abs().to_numpy(), kind="stable")[:n]
        return frame.iloc[order].reset_index(drop=True)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically."""
        about = {"kind": "unit trace", "unit_kind": self.kind, "units": self.units, **about_measured(self)}
        arrays = {"corrupted_samples": self.corrupted_samples, "restored": self.restored}
        write_tensors(path, {name: torch.from_numpy(value) for name, value in arrays.items()}, about)

    @classmethod
    def load(cls, path: str | Path) -> UnitTrace:
        """Reads what `save` wrote.

        Raises:
            FileFormatError: the file is missing, truncated or something else.
        """
        tensors, about = read_tensors(path, "unit trace")
        with of_this_version(path, "a trace"):
            return cls(
                kind=about["unit_kind"],
                units=tuple((layer, number) for layer, number in about["units"]),
                restored=tensors["restored"].numpy(),
                **measured_from(tensors, about),
            )


def trace_heads(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    *,
    layers: Sequence[int] | None = None,
    roles: Sequence[str] | None = ("last subject token", "last token"),
    **options: Unpack[RunOptions],
) -> UnitTrace:
    """The effect of every attention head alone: its output, before the output matrix, set at one token.

    Args:
        model: from `tracer.load`.
        fact: as in `tracer.trace`.
        layers: whose heads; default all.
        roles: at which tokens; None: at all of them.
        **options: samples, seed, corruption, metric, direction and engine, as in `tracer.trace`.

    Raises:
        AnatomyError: where the heads come together is not known for this family.
        FactError, SiteError, NumericsError: as `tracer.trace`.
    """
    units = heads(model, layers)
    names = [(unit.layer, unit.begin // (unit.end - unit.begin)) for unit in units]
    return _trace(model, fact, units, names, Plan(roles=roles, **options))


def trace_neurons(
    model: LanguageModel,
    fact: Fact | TokenizedFact,
    chosen: Sequence[tuple[int, int]],
    *,
    roles: Sequence[str] | None = ("last subject token",),
    **options: Unpack[RunOptions],
) -> UnitTrace:
    """The effect of single MLP neurons: an activation, before the output matrix, set at one token.

    Args:
        model: from `tracer.load`.
        fact: as in `tracer.trace`.
        chosen: (layer, neuron), at least one; the likeliest of all are in
            `tracer.attribute_neurons(model, fact).top(20)`.
        roles: at which tokens; None: at all of them.
        **options: samples, seed, corruption, metric, direction and engine, as in `tracer.trace`.

    Raises:
        AnatomyError: this family's MLPs have no single output matrix.
        FactError, SiteError, NumericsError: as `tracer.trace`; no neuron, or one that is not there.
    """
    units = neurons(model, chosen)
    return _trace(model, fact, units, [(unit.layer, unit.begin) for unit in units], Plan(roles=roles, **options))


def _trace(
    model: LanguageModel, fact: Fact | TokenizedFact, units: Sequence[Unit], names: list[tuple[int, int]], plan: Plan
) -> UnitTrace:
    tokenized, corruption = settled(model, fact, plan), measured_corruption(model, plan.corruption)
    runs = Runs(model, [tokenized], corruption, plan)
    found = runs.main.unit_maps(units, runs.answer_ids, runs.tokens)
    clean, corrupted = runs.unrestored()
    return UnitTrace(
        fact=tokenized,
        kind=units[0].kind,
        units=tuple(names),
        answer_id=runs.answer_ids[0][0],
        answer="".join(visible(model.tokenizer, runs.answer_ids[0])),
        clean=float(clean[0]),
        corrupted_samples=corrupted[0],
        restored=spread(found, runs.tokens, len(tokenized.token_ids))[0],
        settings=settings_of(model, plan, corruption, runs.engine),
    )
