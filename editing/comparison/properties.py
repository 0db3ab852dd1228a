"""The properties that an application may weigh, each a number in [0, 1] where more is better.

A property is the mean of its components; a component is one metric on one data file, a mean over cases:
    shares             as they are (token accuracy, agreement with the model before)
    other tasks        min(1, accuracy after / accuracy before)
    language           min(1, perplexity before / perplexity after), case by case
    fluency            min(1, entropy after / entropy before)
    costs              on a fixed scale, the logarithm's position between a best and a worst value
A fixed scale, and not the fastest editor of the comparison, so that no two editors change places for a third one. What
one of them was measured on, and another was not, leaves that other out (`recommend`), and changes no value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from editing.comparison.costs import total_cost
from editing.comparison.folder import Comparison
from editing.datasets.case import CaseScores
from editing.errors import EvaluationError
from editing.evaluation.summary import edit_seconds
from editing.metrics.of_cases import metric_name

Read = Callable[[CaseScores], float]
UNTOUCHED = ("other_relation", "distracting_neighborhood", "relation_specificity", "forgetfulness")
Where = tuple[str, str, int, str]  # data, protocol, edits, metric
FOLLOWS = ("subject_replace", "reversed_relation", "one_hop", "subject_aliasing", "reasoning", "logical_generalization")


@dataclass(frozen=True)
class Property:
    """One property.

    Attributes:
        said: what it is and how it is brought to [0, 1], in words.
        metrics: of single edits, or of the most edits that an editor had by `protocol`; of costs those to add up.
        kind: how a component is read.
        best, worst: of a cost, mapped to 1 and 0 on a logarithmic scale.
    """

    name: str
    said: str
    metrics: tuple[str, ...]
    kind: Literal["share", "kept", "inverse", "seconds", "cost"] = "share"
    protocol: str = "single"
    best: float = 1.0
    worst: float = 1.0

    def on_scale(self, value: float) -> float:
        """A cost as a share of the way from worst to best, in orders of magnitude."""
        way = (math.log(self.worst) - math.log(max(value, 1e-300))) / (math.log(self.worst) - math.log(self.best))
        return min(1.0, max(0.0, way))


def _follow(statistic: str, groups: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(metric_name(group, statistic) for group in groups)


PROPERTIES: Mapping[str, Property] = {
    one.name: one
    for one in (
        Property("reliability", "token accuracy on the edits' prompts, each edit alone", ("reliability_token_acc",)),
        Property("generalization", "token accuracy on paraphrases, each edit alone", ("generalization_token_acc",)),
        Property(
            "portability",
            "token accuracy on what follows from an edit made alone, and multi-hop answers; the mean over kinds",
            (*_follow("token_acc", FOLLOWS), "multi_hop"),
        ),
        Property("locality", "agreement with the model before on neighbours, each edit alone", ("locality_agreement",)),
        Property(
            "side-effects",
            "agreement on the subject's other relations and on neighbours behind the edited fact",
            _follow("agree", UNTOUCHED),
        ),
        Property("other-tasks", "accuracy after / before, at most 1", ("other_task_accuracy",), "kept"),
        Property("language", "perplexity before / after, at most 1", ("perplexity_ratio",), "inverse"),
        Property("fluency", "entropy of texts after / before, at most 1", ("fluency",), "kept"),
        Property("batch", "reliability in the largest batch", ("reliability_token_acc",),
                 protocol="batch"),
        Property("sequence", "retention of reliability after the most edits",
                 ("reliability_token_acc",), protocol="sequential"),
        Property("time", "seconds an edit (median; computed at once, a share) on the machine as it was then: 10 ms is "
                 "1, 100 s is 0, each factor of ten a quarter",
                 ("edit_seconds",), "seconds", best=1e-2, worst=1e2),
        Property("preparation", "one-off seconds, with training: 1 s is 1, 10,000 s is 0, each factor of ten a quarter",
                 ("one_off_seconds", "training_seconds"), "cost", best=1, worst=1e4),
        Property("memory", "bytes more at an edit's peak: 1 MB is 1, 100 GB is 0, each factor of ten a fifth",
                 ("peak_bytes",), "cost", best=1e6, worst=1e11),
        Property("storage", "bytes of a saved edit and of what was trained: 1 kB is 1, 1 GB is 0, each factor of ten a "
                 "sixth", ("persistent_bytes", "training_bytes"), "cost", best=1e3, worst=1e9),
        Property("latency", "answers edited / unedited in time: 1 is 1, 10 times is 0, logarithmic",
                 ("latency_ratio",), "cost", best=1, worst=10),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Component:
    """One metric on one data file by editor: values of cases, or one number that no case resamples.

    Attributes:
        values: editor: {case: (after, before)}.
        constants: editor: the component itself.
        uneven: that editors have unequal cases does not mean that one is unfinished.
    """

    where: Where
    values: Mapping[str, Mapping[str, tuple[float, float]]]
    constants: Mapping[str, float]
    uneven: bool = False

    @property
    def editors(self) -> set[str]:
        """Those it was measured of, on as many cases as of any."""
        return {editor for editor in {*self.values, *self.constants} if not self.unfinished(editor)}

    @property
    def before(self) -> float:
        """The mean over the cases of the unedited model; NaN where it is not asked."""
        cases = max(self.values.values(), key=len, default={})
        return float(np.mean([before for _, before in cases.values()])) if cases else math.nan

    def unfinished(self, editor: str) -> str:
        """How many cases an editor has where others have more, in words; "" where it has as many, or none."""
        most, own = max(map(len, self.values.values()), default=0), len(self.values.get(editor, ()))
        return f"{own} of {most} cases" if 0 < own < most and not self.uneven else ""


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises EvaluationError where a property is unknown, a weight negative, or none is positive."""
    unknown = [name for name in weights if name not in PROPERTIES]
    if unknown:
        raise EvaluationError(f"There is no property {unknown[0]!r}. Choose from {', '.join(PROPERTIES)}.")
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise EvaluationError(f"The weight of {name} is {weight:g}. Give 0 or more, as in --weights {name}=1.")
    if not any(weights.values()):
        raise EvaluationError(
            "No weight is above 0, so nothing is ranked. Write e.g. --weights reliability=1,locality=2."
        )


def components(comparison: Comparison, wanted: Property) -> list[Component]:
    """Where a property was measured; empty where nowhere."""
    if wanted.kind == "cost":
        totals = {editor: total_cost(cost, wanted.metrics) for editor, cost in comparison.costs.items()}
        constants = {editor: wanted.on_scale(total) for editor, total in totals.items() if total is not None}
        return [Component(("", "costs", 0, " + ".join(wanted.metrics)), {}, constants)] if constants else []
    found: dict[Where, dict[str, dict[str, tuple[float, float]]]] = {}
    for editor, where, case_id, value in _measured(comparison, wanted):
        found.setdefault(where, {}).setdefault(editor, {})[case_id] = value
    uneven = wanted.kind == "seconds"  # of those that could be edited alone
    return [Component(where, values, {}, uneven) for where, values in found.items()]


def _measured(comparison: Comparison, wanted: Property) -> Iterator[tuple[str, Where, str, tuple[float, float]]]:
    most = _most_edits(comparison, wanted.protocol)
    for (data, protocol, editor), edits, cases in comparison.scored():
        if protocol not in (wanted.protocol, "multi-hop") or edits != most.get((data, protocol)):
            continue
        warm = _warm(cases) if wanted.kind == "seconds" else ()
        for metric in wanted.metrics:
            for case in cases:
                value = case.seconds if case.case_id in warm else case.after.get(metric, math.nan)
                if not math.isnan(value):
                    before = case.before.get(metric, math.nan)
                    value = min(1.0, 1 / value) if wanted.kind == "inverse" and value > 0 else value
                    yield editor, (data, protocol, edits, metric), case.case_id, (value, before)


def _most_edits(comparison: Comparison, protocol: str) -> dict[tuple[str, str], int]:
    """By data file and protocol the largest number of edits that any editor there was given."""
    most: dict[tuple[str, str], int] = {}
    for (data, named, _), edits, _ in comparison.scored():
        if named in (protocol, "multi-hop"):
            most[data, named] = max(edits, most.get((data, named), 0))
    return most


def _warm(cases: tuple[CaseScores, ...]) -> set[str]:
    """The cases whose time counts: those that `edit_seconds` looks at."""
    known = [case.case_id for case in cases if case.editable and not math.isnan(case.seconds)]
    return set(known[-edit_seconds(cases)[3] :]) if edit_seconds(cases)[3] else set()


def component_means(
    component: Component, wanted: Property, editor: str, ids: list[str], counts: np.ndarray
) -> np.ndarray:
    """The component of an editor in [0, 1], [resample], for how often each case is drawn, [resample, case]."""
    if editor in component.constants:
        return np.full(len(counts), component.constants[editor])
    known = component.values[editor]
    there = [at for at, case_id in enumerate(ids) if case_id in known]
    after, before = np.array([known[ids[at]] for at in there], dtype=float).T
    drawn = counts[:, there]
    if wanted.kind == "seconds":
        return np.array([wanted.on_scale(value) for value in _medians(after, drawn)])
    total = drawn.sum(1)
    mean = (drawn @ after) / np.where(total > 0, total, np.nan)
    if wanted.kind == "kept":
        base = (drawn @ before) / np.where(total > 0, total, np.nan)
        mean = np.divide(mean, base, out=np.ones_like(mean), where=base > 0)
    return np.minimum(mean, 1.0)


def _medians(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The median of each resample: of an even number of values the mean of the two in the middle."""
    order = np.argsort(values)
    ends = np.cumsum(counts[:, order], axis=1)
    total = ends[:, -1:]
    places = [np.argmax(ends > (total - 1) // 2, axis=1), np.argmax(ends > total // 2, axis=1)]
    return (values[order][places[0]] + values[order][places[1]]) / 2
