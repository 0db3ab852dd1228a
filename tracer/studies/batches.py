"""Which facts are traced together, and the tracing of one such batch.

Facts in one batch share matrix products, and with other company a number may round otherwise. So
batches follow from the list of facts and the settings alone, and are traced whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tracer.causal_trace import at_once, shape, trace_alike
from tracer.effect import TraceResult
from tracer.errors import StudyError, TracerError
from tracer.fact import TokenizedFact
from tracer.model import LanguageModel
from tracer.plan import Plan

Batch = tuple[int, ...]
Facts = Sequence[TokenizedFact]
Found = list[TraceResult | str]


def batches_of(model: LanguageModel, facts: Mapping[int, TokenizedFact], plan: Plan) -> list[Batch]:
    """The numbers of alike facts together, in order of their first.

    Each batch takes facts in their order until it is full: more facts at the end of the list extend
    the last batch of their kind and leave every full one as it is.
    """
    full: list[Batch] = []
    filling: dict[object, list[int]] = {}
    for number, fact in facts.items():
        alike = filling.setdefault(shape(fact, plan), [])
        alike.append(number)
        if len(alike) >= at_once(model, fact, plan):
            full.append(tuple(filling.pop(shape(fact, plan))))
    return sorted([*full, *map(tuple, filling.values())])


def trace_batch(
    model: LanguageModel, facts: Facts, plan: Plan, *, failures: tuple[type[TracerError], ...] = (TracerError,)
) -> Found:
    """The trace of each fact, or why it failed; where a batch fails, its facts are traced one by one.

    Other errors than these `failures` are raised.
    """
    try:
        return list(trace_alike(model, facts, plan))
    except failures as error:
        if len(facts) == 1:
            return [f"{type(error).__name__}: {error}"]
        return [found for fact in facts for found in trace_batch(model, [fact], plan, failures=failures)]


@dataclass(frozen=True)
class Tracing:
    """The tracing of a study's batches, as a job for workers: only the study itself writes files."""

    plan: Plan

    def begun(self, model: LanguageModel, number: int) -> Callable[[Facts], Found]:
        """A function that traces a batch on this worker's model."""
        return partial(trace_batch, model, plan=self.plan)

    def given_up(self, unit: Facts, reason: str) -> Found:
        """Raises StudyError: facts that another machine would trace have not failed."""
        first = unit[0].fact
        assert first is not None  # a study's facts are texts
        raise StudyError(
            f"{first.prompt!r} and what is traced with it: {reason}. Run the study again with fewer workers or "
            f"a smaller max_bytes: it goes on where it was."
        )
