"""Studies side by side: where each model has its peaks, by relative depth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tracer.effect import AverageTrace
from tracer.errors import StudyError
from tracer.fact import ROLES
from tracer.studies.study import Study
from tracer.studies.table import bootstrap, relative_depth


def compare(studies: Mapping[str, Study | AverageTrace], *, shared: bool = False, seed: int = 0) -> pd.DataFrame:
    """The peak of each map and role in each study.

    Args:
        studies: two or more, by the names they shall have in the table.
        shared: count only facts that all of them traced, told by their prompts. Other facts may be another
            mixture of relations; without this the models are compared on what each of them knows.
        seed: of the bootstrap over facts.

    Returns:
        A row a map and role that all have; for each study the columns layer, depth (0 the first layer, 1 the
        last), effect (AIE there; of kl and rank the lowest), low and high (its 95 % percentile interval; the
        layer was chosen for its large effect, so it lies somewhat high) and n. Effects are differences of each
        model's own metric.

    Raises:
        StudyError: fewer than two studies, or nothing in common.
    """
    averages = {name: one.average if isinstance(one, Study) else one for name, one in studies.items()}
    if len(averages) < 2:
        raise StudyError("Comparing takes two studies or more.")
    if shared:
        averages = _on_shared_facts(averages)
    rows: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    first = next(iter(averages.values()))
    for kind in [kind for kind in first.effects if all(kind in one.effects for one in averages.values())]:
        for role in ROLES:
            peaks = {name: _peak(one, kind, role, seed) for name, one in averages.items()}
            if all(peaks.values()):
                rows[kind, role] = {(name, key): v for name, peak in peaks.items() for key, v in peak.items()}
    if not rows:
        raise StudyError("These studies have no map and role in common; trace the same kinds in each.")
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.columns = pd.MultiIndex.from_tuples(list(table.columns), names=["study", None])
    table.index = pd.MultiIndex.from_tuples(list(rows), names=["kind", "role"])
    whole = {column: int for column in table.columns if column[1] in ("layer", "n")}
    return table.astype(whole)


def _peak(average: AverageTrace, kind: str, role: str, seed: int) -> dict[str, float]:
    """Where a map does most towards the clean answer at a role, and AIE there; empty where no fact has the role."""
    if np.isnan(average.effects[kind][:, ROLES.index(role)]).all():
        return {}
    _, layer, estimate = average.peak(kind, role)
    values = average.effects[kind][:, ROLES.index(role), layer]
    low, high = bootstrap(values[~np.isnan(values)], seed=seed)
    depth = relative_depth(layer, average.effects[kind].shape[2])
    found = {"layer": layer, "depth": depth, "effect": estimate.mean, "low": float(low), "high": float(high)}
    return {**found, "n": estimate.n}


def _on_shared_facts(averages: Mapping[str, AverageTrace]) -> dict[str, AverageTrace]:
    shared = set.intersection(*(set(one.prompts) for one in averages.values()))
    if not shared:
        raise StudyError("No fact was traced in all of these studies; leave shared=True out.")
    return {name: _of_facts(one, shared) for name, one in averages.items()}


def _of_facts(average: AverageTrace, prompts: set[str]) -> AverageTrace:
    """The average over these prompts only."""
    chosen = [n for n, prompt in enumerate(average.prompts) if prompt in prompts]
    return AverageTrace(
        prompts=tuple(average.prompts[n] for n in chosen),
        skipped=average.skipped,
        clean=average.clean[chosen],
        corrupted=average.corrupted[chosen],
        effects={kind: values[chosen] for kind, values in average.effects.items()},
        settings=average.settings,
    )
