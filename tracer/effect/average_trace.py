"""Effects averaged over facts, by the role of the token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from tracer.effect.estimate import Estimate, nan_error, over_facts
from tracer.effect.settings import Settings
from tracer.errors import SiteError
from tracer.fact import ROLES, check_roles
from tracer.storage import of_this_version, read_tensors, write_tensors


@dataclass(frozen=True, eq=False)
class AverageTrace:
    """Effects averaged over facts, by the role of the token.

    Attributes:
        prompts: the facts averaged, n of them.
        skipped: facts left out, and why.
        clean, corrupted: the metric (by default p(answer)) of each fact.
        effects: IE by map, NaN where a fact has no token of that role; roles in the order of `ROLES`.
        groups: tokens that were also restored together.
        grouped: IE by map, NaN where a fact has no token of a group.
    """

    prompts: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    clean: Float[np.ndarray, " fact"]
    corrupted: Float[np.ndarray, " fact"]
    effects: Mapping[str, Float[np.ndarray, "fact role layer"]]
    settings: Settings
    groups: tuple[str, ...] = ()
    grouped: Mapping[str, Float[np.ndarray, "fact group layer"]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of facts averaged."""
        return len(self.prompts)

    @property
    def total_effect(self) -> Estimate:
        """ATE, mean over facts of clean - corrupted."""
        return Estimate.of(self.clean - self.corrupted)

    @property
    def indirect_effect(self) -> dict[str, Float[np.ndarray, "role layer"]]:
        """AIE by map; NaN for roles no fact has."""
        return {kind: over_facts(values, np.nanmean) for kind, values in self.effects.items()}

    @property
    def standard_error(self) -> dict[str, Float[np.ndarray, "role layer"]]:
        """Standard error of AIE over facts, by map."""
        return {kind: over_facts(values, nan_error) for kind, values in self.effects.items()}

    @property
    def group_effect(self) -> dict[str, Float[np.ndarray, "group layer"]]:
        """AIE of each group of tokens restored together, by map."""
        return {kind: over_facts(values, np.nanmean) for kind, values in self.grouped.items()}

    @property
    def group_error(self) -> dict[str, Float[np.ndarray, "group layer"]]:
        """Standard error of `group_effect` over facts, by map."""
        return {kind: over_facts(values, nan_error) for kind, values in self.grouped.items()}

    def __repr__(self) -> str:
        return f"AverageTrace({self.n} facts, ATE {self.total_effect}; {', '.join(self.effects)})"

    def estimate(self, kind: str, role: str, layer: int) -> Estimate:
        """AIE of one role and layer."""
        return Estimate.of(self._values(kind, role)[:, layer])

    def peak(self, kind: str, role: str | None = None) -> tuple[str, int, Estimate]:
        """Where restoring (or corrupting) does most to carry the answer: role, layer and AIE there.

        Over all roles unless one is given, those that a single fact has only where there are no others. AIE is
        the largest, or, of a metric that falls towards the clean answer (kl, rank), the lowest.
        """
        self._values(kind, role or ROLES[0])
        roles = ROLES if role is None else (role,)
        candidates = self.settings.sense * self.indirect_effect[kind][[ROLES.index(name) for name in roles]]
        several = (~np.isnan(self.effects[kind])).sum(0)[[ROLES.index(name) for name in roles]] > 1
        if role is None and several.any():
            candidates = np.where(several, candidates, np.nan)
        if np.isnan(candidates).all():
            raise SiteError(f"No fact was traced at {role or 'any role'} for {kind!r}.")
        row, layer = np.unravel_index(np.nanargmax(candidates), candidates.shape)
        return roles[row], int(layer), self.estimate(kind, roles[row], int(layer))

    def _values(self, kind: str, role: str) -> Float[np.ndarray, "fact layer"]:
        """IE of one map and role; raises SiteError or FactError for those that do not exist."""
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

    def groups_to_frame(self) -> pd.DataFrame:
        """One row a group and layer of each map: kind, group, layer, effect, standard_error, n."""
        records = []
        for kind, values in self.grouped.items():
            error, counts = self.group_error[kind], (~np.isnan(values)).sum(0)
            for (group, layer), effect in np.ndenumerate(self.group_effect[kind]):
                about = {"kind": kind, "group": self.groups[group], "layer": layer, "effect": effect}
                about |= {"standard_error": error[group, layer], "n": int(counts[group, layer])}
                records.append(about)
        return pd.DataFrame.from_records(records)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically."""
        tensors = {
            "clean": self.clean,
            "corrupted": self.corrupted,
            **{f"effects/{k}": v for k, v in self.effects.items()},
            **{f"grouped/{k}": v for k, v in self.grouped.items()},
        }
        about = {
            "kind": "average",
            "prompts": self.prompts,
            "skipped": self.skipped,
            "maps": list(self.effects),
            "groups": self.groups,
            "settings": dataclasses.asdict(self.settings),
        }
        write_tensors(path, {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}, about)

    @classmethod
    def load(cls, path: str | Path) -> AverageTrace:
        """Reads what `save` wrote; errors as `TraceResult.load`."""
        tensors, about = read_tensors(path, "average")
        with of_this_version(path, "an average"):
            groups = tuple(about.get("groups", ()))
            return cls(
                prompts=tuple(about["prompts"]),
                skipped=tuple((prompt, reason) for prompt, reason in about["skipped"]),
                clean=tensors.pop("clean").numpy(),
                corrupted=tensors.pop("corrupted").numpy(),
                effects={name: tensors[f"effects/{name}"].numpy() for name in about["maps"]},
                settings=Settings(**about["settings"]),
                groups=groups,
                grouped={name: tensors[f"grouped/{name}"].numpy() for name in about["maps"] if groups},
            )
