"""The causal trace of one fact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from tracer.effect.estimate import over_facts, sample_effects, sample_error
from tracer.effect.settings import Settings, about_measured, measured_from
from tracer.errors import SiteError
from tracer.fact import ROLES, TokenizedFact, token_roles
from tracer.storage import of_this_version, read_tensors, write_tensors


@dataclass(frozen=True, eq=False)
class TraceResult:
    """The causal trace of one fact.

    Attributes:
        fact: the prompt as token ids.
        answer_id, answer: the token traced; the first one and the text of all, where all were.
        clean: the metric (by default p(answer)), nothing corrupted.
        corrupted_samples: the metric in each corrupted run.
        restored: the metric with a site restored, by map; NaN where not traced, and where the layer is in the stack
            that does not read the token.
        groups: tokens that were also restored together.
        grouped: the metric with a group restored, by map; NaN for a group that the prompt has no token of.
    """

    fact: TokenizedFact
    answer_id: int
    answer: str
    clean: float
    corrupted_samples: Float[np.ndarray, " sample"]
    restored: Mapping[str, Float[np.ndarray, "token layer sample"]]
    settings: Settings
    groups: tuple[str, ...] = ()
    grouped: Mapping[str, Float[np.ndarray, "group layer sample"]] = field(default_factory=dict)

    @property
    def corrupted(self) -> float:
        """The metric (by default p(answer)) with the subject corrupted, mean over samples."""
        return float(self.corrupted_samples.mean())

    @property
    def total_effect(self) -> float:
        """TE = clean - corrupted."""
        return self.clean - self.corrupted

    @property
    def indirect_effect(self) -> dict[str, Float[np.ndarray, "token layer"]]:
        """IE of every site by map, mean over samples.

        What restoring it gains over the corrupted run; in the other direction, what corrupting it takes
        from the clean run.
        """
        return {kind: self.sample_effects(values).mean(-1) for kind, values in self.restored.items()}

    @property
    def group_effect(self) -> dict[str, Float[np.ndarray, "group layer"]]:
        """IE of each group of tokens restored together, by map."""
        return {kind: self.sample_effects(values).mean(-1) for kind, values in self.grouped.items()}

    def sample_effects(self, values: Float[np.ndarray, "*site sample"]) -> Float[np.ndarray, "*site sample"]:
        """The effect in each sample, of values such as `restored` has."""
        return sample_effects(values, self.clean, self.corrupted_samples, self.settings.direction)

    @property
    def standard_error(self) -> dict[str, np.ndarray]:
        """Standard error of IE over the noise samples (paired with the corrupted run), [token, layer]."""
        return {kind: sample_error(self.sample_effects(values)) for kind, values in self.restored.items()}

    def __repr__(self) -> str:
        return (
            f"TraceResult({self.fact.text!r} -> {self.answer!r}, {self.settings.metric}: clean {self.clean:.3f}, "
            f"corrupted {self.corrupted:.3f}; {', '.join(self.restored)}; samples={self.settings.samples})"
        )

    @property
    def tokens(self) -> tuple[str, ...]:
        """The prompt's tokens as text."""
        return self.fact.tokens

    @property
    def subject_span(self) -> tuple[int, int]:
        """The subject's tokens, [begin, end)."""
        return self.fact.subject_span

    @property
    def roles(self) -> list[str | None]:
        """The role of each token in an average."""
        return token_roles(len(self.fact.token_ids), self.fact.subject_span)

    def by_role(self, kind: str) -> np.ndarray:
        """IE [role, layer]: mean over the tokens of a role that have the site; NaN where none does."""
        if kind not in self.restored:
            raise SiteError(f"This trace has no {kind!r}; it has {', '.join(self.restored)}.")
        effect, roles = self.indirect_effect[kind], np.array([role or "" for role in self.roles])
        return np.stack([over_facts(effect[roles == role], np.nanmean) for role in ROLES])

    def to_frame(self) -> pd.DataFrame:
        """One row a site: kind, layer, token, text, role, indirect_effect, standard_error, n (samples)."""
        errors, roles = self.standard_error, self.roles
        records = [
            {
                "kind": kind,
                "layer": layer,
                "token": token,
                "text": self.tokens[token],
                "role": roles[token],
                "indirect_effect": effect[token, layer],
                "standard_error": errors[kind][token, layer],
                "n": len(self.corrupted_samples),
            }
            for kind, effect in self.indirect_effect.items()
            for token in range(effect.shape[0])
            for layer in range(effect.shape[1])
        ]
        return pd.DataFrame.from_records(records)

    def groups_to_frame(self) -> pd.DataFrame:
        """One row a group and layer of each map: kind, group, layer, indirect_effect, standard_error, n (samples)."""
        records = []
        for kind, values in self.grouped.items():
            effects = self.sample_effects(values)
            error = sample_error(effects)
            for (group, layer), effect in np.ndenumerate(effects.mean(-1)):
                about = {"kind": kind, "group": self.groups[group], "layer": layer, "indirect_effect": effect}
                records.append(about | {"standard_error": error[group, layer], "n": len(self.corrupted_samples)})
        return pd.DataFrame.from_records(records)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically."""
        tensors = {
            "corrupted_samples": self.corrupted_samples,
            **{f"restored/{k}": v for k, v in self.restored.items()},
            **{f"grouped/{k}": v for k, v in self.grouped.items()},
        }
        about = {"kind": "trace", "maps": list(self.restored), "groups": self.groups, **about_measured(self)}
        write_tensors(path, {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}, about)

    @classmethod
    def load(cls, path: str | Path) -> TraceResult:
        """Reads what `save` wrote.

        Raises:
            FileFormatError: the file is missing, truncated or something else.
        """
        tensors, about = read_tensors(path, "trace")
        with of_this_version(path, "a trace"):
            restored = {name: tensors[f"restored/{name}"].numpy() for name in about["maps"]}
            groups = tuple(about.get("groups", ()))
            grouped = {name: tensors[f"grouped/{name}"].numpy() for name in about["maps"]} if groups else {}
            return cls(restored=restored, groups=groups, grouped=grouped, **measured_from(tensors, about))
