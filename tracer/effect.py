"""What a trace measured: total and indirect effects of one fact, and their averages over many.

    TE = p_clean - p_corrupted        IE(site) = p_restored(site) - p_corrupted
ATE and AIE are their means over facts. All are differences of the answer's probability, in
[-1, 1]; positive where the subject, or the site, carries the answer (Meng et al. 2022, sec. 2.1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from tracer.errors import SiteError
from tracer.fact import ROLES, Fact, TokenizedFact, check_roles, token_roles
from tracer.metric import metric_named
from tracer.storage import of_this_version, read_tensors, write_tensors


@dataclass(frozen=True)
class Settings:
    """What a trace was run with; two results compare only where these agree.

    Attributes:
        window: layers restored together for `mlp` and `attn`.
        corruption: its name and settings, e.g. "GaussianNoise(scale=3.0, sigma=0.031)".
        fingerprint: of the model's weights.
    """

    model: str
    fingerprint: str
    window: int
    samples: int
    seed: int
    corruption: str
    engine: str = "sweep"
    published_draws: bool = False
    metric: str = "probability"
    direction: str = "restore"

    @property
    def sense(self) -> int:
        """1, or -1 for a metric that falls towards the clean answer; where a site carries it, sense * effect > 0."""
        return metric_named(self.metric).sense


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` facts (or samples) with its standard error."""

    mean: float
    standard_error: float
    n: int

    @classmethod
    def of(cls, values: np.ndarray) -> Estimate:
        """The mean of the values that are not NaN; its error is NaN for fewer than two."""
        values = np.asarray(values, dtype=np.float64)
        values = values[~np.isnan(values)]
        if not len(values):
            return cls(float("nan"), float("nan"), 0)
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        return cls(float(values.mean()), float(error), len(values))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, mean -+ 1.96 standard errors."""
        return self.mean - 1.96 * self.standard_error, self.mean + 1.96 * self.standard_error

    def __str__(self) -> str:
        spread = f" ± {1.96 * self.standard_error:.3f}" if self.n > 1 else ""
        return f"{self.mean:.3f}{spread} (n={self.n})"


@dataclass(frozen=True, eq=False)
class TraceResult:
    """The causal trace of one fact.

    Attributes:
        fact: the prompt as token ids.
        answer_id, answer: the token traced.
        clean: the metric (by default p(answer)), nothing corrupted.
        corrupted_samples: the metric in each corrupted run, [sample].
        restored: for each map the metric with a site restored, [token, layer, sample]; NaN where not traced.
    """

    fact: TokenizedFact
    answer_id: int
    answer: str
    clean: float
    corrupted_samples: np.ndarray
    restored: Mapping[str, np.ndarray]
    settings: Settings

    @property
    def corrupted(self) -> float:
        """p(answer) with the subject corrupted, mean over samples."""
        return float(self.corrupted_samples.mean())

    @property
    def total_effect(self) -> float:
        """TE = clean - corrupted."""
        return self.clean - self.corrupted

    @property
    def indirect_effect(self) -> dict[str, np.ndarray]:
        """IE of every site, for each map [token, layer], mean over samples.

        What restoring it gains over the corrupted run; in the other direction, what corrupting it takes
        from the clean run.
        """
        if self.settings.direction == "corrupt":
            return {kind: self.clean - values.mean(-1) for kind, values in self.restored.items()}
        return {kind: values.mean(-1) - self.corrupted for kind, values in self.restored.items()}

    @property
    def standard_error(self) -> dict[str, np.ndarray]:
        """Standard error of IE over the noise samples (paired with the corrupted run), [token, layer]."""
        n = len(self.corrupted_samples)
        base = self.corrupted_samples if self.settings.direction == "restore" else self.clean
        paired = {kind: values - base for kind, values in self.restored.items()}
        return {kind: values.std(-1, ddof=1) / np.sqrt(n) if n > 1 else values.mean(-1) * np.nan
                for kind, values in paired.items()}  # fmt: skip

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
        """IE [role, layer]: mean over the tokens of a role; NaN for a role that no token has."""
        if kind not in self.restored:
            raise SiteError(f"This trace has no {kind!r}; it has {', '.join(self.restored)}.")
        effect, roles = self.indirect_effect[kind], np.array([role or "" for role in self.roles])
        missing = np.full(effect.shape[1], np.nan)
        return np.stack([effect[roles == role].mean(0) if (roles == role).any() else missing for role in ROLES])

    def to_frame(self) -> pd.DataFrame:
        """One row a site: kind, layer, token, text, role, indirect_effect, standard_error."""
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
            }
            for kind, effect in self.indirect_effect.items()
            for token in range(effect.shape[0])
            for layer in range(effect.shape[1])
        ]
        return pd.DataFrame.from_records(records)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically."""
        tensors = {
            "corrupted_samples": self.corrupted_samples,
            **{f"restored/{k}": v for k, v in self.restored.items()},
        }
        about = {"kind": "trace", "maps": list(self.restored), **about_measured(self)}
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
            return cls(restored=restored, **measured_from(tensors, about))


@dataclass(frozen=True, eq=False)
class AverageTrace:
    """Effects averaged over facts, by the role of the token.

    Attributes:
        prompts: the facts averaged, n of them.
        skipped: facts left out, and why.
        clean, corrupted: p(answer) of each fact, [fact].
        effects: for each map IE [fact, role, layer], NaN where a fact has no token of that role;
            roles in the order of `ROLES`.
    """

    prompts: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    clean: np.ndarray
    corrupted: np.ndarray
    effects: Mapping[str, np.ndarray]
    settings: Settings

    @property
    def n(self) -> int:
        """Number of facts averaged."""
        return len(self.prompts)

    @property
    def total_effect(self) -> Estimate:
        """ATE, mean over facts of p_clean - p_corrupted."""
        return Estimate.of(self.clean - self.corrupted)

    @property
    def indirect_effect(self) -> dict[str, np.ndarray]:
        """AIE, [role, layer] for each map; NaN for roles no fact has."""
        return {kind: _nan_stat(values, np.nanmean) for kind, values in self.effects.items()}

    @property
    def standard_error(self) -> dict[str, np.ndarray]:
        """Standard error of AIE over facts, [role, layer] for each map."""
        return {kind: _nan_stat(values, _nan_error) for kind, values in self.effects.items()}

    def estimate(self, kind: str, role: str, layer: int) -> Estimate:
        """AIE of one role and layer."""
        return Estimate.of(self._values(kind, role)[:, layer])

    def peak(self, kind: str, role: str | None = None) -> tuple[str, int, Estimate]:
        """Where restoring (or corrupting) does most to carry the answer: role, layer and AIE there.

        Over all roles unless one is given. AIE is the largest, or, of a metric that falls towards the clean
        answer (kl, rank), the lowest.
        """
        self._values(kind, role or ROLES[0])
        roles = ROLES if role is None else (role,)
        candidates = self.settings.sense * self.indirect_effect[kind][[ROLES.index(name) for name in roles]]
        if np.isnan(candidates).all():
            raise SiteError(f"No fact was traced at {role or 'any role'} for {kind!r}.")
        row, layer = np.unravel_index(np.nanargmax(candidates), candidates.shape)
        return roles[row], int(layer), self.estimate(kind, roles[row], int(layer))

    def _values(self, kind: str, role: str) -> np.ndarray:
        """IE [fact, layer] of one map and role; raises SiteError or FactError for those that do not exist."""
        check_roles([role])
        if kind not in self.effects:
            raise SiteError(f"This average has no {kind!r}; it has {', '.join(self.effects)}.")
        return self.effects[kind][:, ROLES.index(role)]

    def to_frame(self) -> pd.DataFrame:
        """One row a role and layer of each map: kind, role, layer, effect, standard_error, n."""
        records = []
        for kind, values in self.effects.items():
            aie, error = self.indirect_effect[kind], self.standard_error[kind]
            counts = (~np.isnan(values)).sum(0)
            for row, role in enumerate(ROLES):
                for layer in range(values.shape[2]):
                    records.append(
                        {
                            "kind": kind,
                            "role": role,
                            "layer": layer,
                            "effect": aie[row, layer],
                            "standard_error": error[row, layer],
                            "n": int(counts[row, layer]),
                        }
                    )
        return pd.DataFrame.from_records(records)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically."""
        tensors = {
            "clean": self.clean,
            "corrupted": self.corrupted,
            **{f"effects/{k}": v for k, v in self.effects.items()},
        }
        about = {
            "kind": "average",
            "prompts": self.prompts,
            "skipped": self.skipped,
            "maps": list(self.effects),
            "settings": dataclasses.asdict(self.settings),
        }
        write_tensors(path, {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}, about)

    @classmethod
    def load(cls, path: str | Path) -> AverageTrace:
        """Reads what `save` wrote; errors as `TraceResult.load`."""
        tensors, about = read_tensors(path, "average")
        with of_this_version(path, "an average"):
            return cls(
                prompts=tuple(about["prompts"]),
                skipped=tuple((prompt, reason) for prompt, reason in about["skipped"]),
                clean=tensors.pop("clean").numpy(),
                corrupted=tensors.pop("corrupted").numpy(),
                effects={name: tensors[f"effects/{name}"].numpy() for name in about["maps"]},
                settings=Settings(**about["settings"]),
            )


def about_measured(result: Any) -> dict[str, Any]:
    """What every result for one fact says of itself, as JSON values: fact, answer, clean metric, settings."""
    plain = {name: getattr(result, name) for name in ("answer_id", "answer", "clean")}
    return {**plain, "fact": dataclasses.asdict(result.fact), "settings": dataclasses.asdict(result.settings)}


def measured_from(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that `about_measured` wrote, and the corrupted samples beside it."""
    return {
        **{name: about[name] for name in ("answer_id", "answer", "clean")},
        "fact": fact_from(about["fact"]),
        "corrupted_samples": tensors["corrupted_samples"].numpy(),
        "settings": Settings(**about["settings"]),
    }


def fact_from(about: dict[str, Any]) -> TokenizedFact:
    """A tokenized fact from its JSON, lists back to tuples."""
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in about.items()}
    if values.get("fact") is not None:
        values["fact"] = Fact(**about["fact"])
    return TokenizedFact(**values)


def _nan_stat(values: np.ndarray, statistic: Any) -> np.ndarray:
    """`statistic` over facts where any fact has a value, NaN elsewhere (without numpy's warnings)."""
    result = np.full(values.shape[1:], np.nan)
    known = ~np.isnan(values).all(0)
    result[known] = statistic(values[:, known], axis=0)
    return result


def _nan_error(values: np.ndarray, axis: int) -> np.ndarray:
    n = (~np.isnan(values)).sum(axis)
    spread = np.sqrt(np.nansum((values - np.nanmean(values, axis=axis)) ** 2, axis=axis) / np.maximum(n - 1, 1))
    return np.where(n > 1, spread / np.sqrt(n), np.nan)
