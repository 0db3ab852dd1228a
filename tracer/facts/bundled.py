"""The facts that come with the package, and ways of saying each relation.

`bundled.jsonl` holds one fact a line; `relations.json` the templates of each relation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from tracer.errors import FactError
from tracer.fact import Fact


def bundled(relation: str | None = None) -> tuple[Fact, ...]:
    """The bundled facts, all or those of one relation.

    Raises:
        FactError: there is no such relation.
    """
    facts = _all()
    if relation is None:
        return facts
    chosen = tuple(fact for fact in facts if fact.relation == relation)
    if not chosen:
        raise FactError(f"No bundled relation {relation!r}. There are: {', '.join(sorted(templates()))}.")
    return chosen


def spread_over_relations(facts: Sequence[Fact]) -> list[Fact]:
    """The facts in turns, one of each relation, so that the first n cover as many relations as they can."""
    groups: dict[str | None, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.relation, []).append(fact)
    longest = max(map(len, groups.values()), default=0)
    return [group[turn] for turn in range(longest) for group in groups.values() if turn < len(group)]


def templates() -> dict[str, tuple[str, ...]]:
    """For each relation its templates, each with one {} where the subject goes."""
    return {relation: tuple(about["templates"]) for relation, about in _relations().items()}


def relation_of(prompt: str, subject: str) -> str | None:
    """The bundled relation that one of its templates says in the same words, if any."""
    at = prompt.rfind(subject)
    template = prompt[:at] + "{}" + prompt[at + len(subject) :] if at >= 0 else ""
    said = [relation for relation, known in templates().items() if template in known]
    # Two relations may share a template: then the one that has this subject.
    own = [relation for relation in said if any(fact.subject == subject for fact in bundled(relation))]
    return next(iter(own or said), None)


def paraphrases(prompt: str, subject: str) -> list[str]:
    """Other prompts for the same fact, from the templates of its relation; none if it is not a bundled one."""
    relation = relation_of(prompt, subject)
    ways: Sequence[str] = templates()[relation] if relation else ()
    said = [filled(way, subject) for way in ways]
    return [other for other in said if other != prompt]


def filled(template: str, subject: str) -> str:
    """The template with its one {} replaced; braces elsewhere, also in the subject, stay as they are."""
    before, _, after = template.partition("{}")
    return before + subject + after


@cache
def _all() -> tuple[Fact, ...]:
    lines = files("tracer.facts").joinpath("bundled.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Fact(**json.loads(line)) for line in lines if line.strip())


@cache
def _relations() -> dict[str, dict[str, list[str]]]:
    return json.loads(files("tracer.facts").joinpath("relations.json").read_text(encoding="utf-8"))
