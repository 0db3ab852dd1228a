"""The bundled facts as CounterFact records, so that what scores those can be run without a download."""

from __future__ import annotations

from typing import Any

from tracer.errors import FactError
from tracer.fact import Fact
from tracer.facts import bundled, paraphrases, spread_over_relations
from tracer.model import LanguageModel
from tracer.plan import Plan
from tracer.studies.averaging import usable

MOST_PARAPHRASES = 4
MOST_NEIGHBOURS = 5


def bundled_records(model: LanguageModel, n: int) -> list[dict[str, Any]]:
    """`n` facts that the model predicts, spread over relations, each with an answer to write instead.

    The new answer is another one of the relation; paraphrases are its other templates; the
    neighbourhood is other subjects with the old answer, for which it stays right.

    Raises:
        FactError: fewer than `n` such facts.
    """
    records: list[dict[str, Any]] = []
    plan = Plan()
    for number, fact in enumerate(spread_over_relations(bundled())):
        if len(records) == n:
            break
        found = _record(number, fact)
        if found is not None and usable(model, fact, plan, known_only=True)[0] is not None:
            records.append(found)
    if len(records) < n:
        raise FactError(f"The model predicts {len(records)} bundled facts with neighbours. Ask for as many or fewer.")
    return records


def _record(number: int, fact: Fact) -> dict[str, Any] | None:
    """The record; None where no other subject shares the answer, or no other answer is there."""
    others = [other for other in bundled(fact.relation) if other.subject != fact.subject]
    neighbours = [other.prompt for other in others if other.answer == fact.answer]
    answers = [other.answer for other in others if other.answer != fact.answer]
    if not neighbours or not answers:
        return None
    begin, end = fact.character_span
    return {
        "case_id": number,
        "requested_rewrite": {
            "prompt": fact.prompt[:begin] + "{}" + fact.prompt[end:],
            "subject": fact.subject,
            "relation_id": fact.relation,
            "target_new": {"str": answers[number % len(answers)]},
            "target_true": {"str": fact.answer},
        },
        "paraphrase_prompts": paraphrases(fact.prompt, fact.subject)[:MOST_PARAPHRASES],
        "neighborhood_prompts": neighbours[:MOST_NEIGHBOURS],
    }
