"""IKE's demonstrations: what a new fact changes, and what it leaves alone, shown on facts like the one edited.

A block is                      New Fact: {f} {o}
                                Prompt: {x} {y}
    copy      1 of 8     x is f's own prompt, y the new object o
    update    3 of 8     x is a paraphrase of f, y is o
    retain    4 of 8     x asks about another subject, y is its true object
(Zheng et al. 2023, arXiv:2305.12740, sec. 3.2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from editing.memory.scoped import ScopedFact
from tracer.model.inputs import sentence

Type = Literal["copy", "update", "retain"]
TYPES: tuple[Type, ...] = get_args(Type)
SHARES: dict[Type, float] = {"copy": 1 / 8, "update": 3 / 8, "retain": 4 / 8}
BREAK = "\n\n"  # between blocks


def block(fact: str, query: str) -> str:
    """One block: the new fact as a sentence, and a prompt with or without its answer."""
    return f"New Fact: {fact}\nPrompt: {query}"


def types_of(count: int) -> dict[Type, int]:
    """How many of `count` demonstrations are of each type: whole parts first, then the largest remainders."""
    whole: dict[Type, int] = {kind: int(SHARES[kind] * count) for kind in TYPES}
    by_remainder = sorted(TYPES, key=lambda kind: whole[kind] - SHARES[kind] * count)
    for kind in by_remainder[: count - sum(whole.values())]:
        whole[kind] += 1
    return whole


def demonstrated(facts: Sequence[ScopedFact], seed: int) -> list[tuple[Type, str]]:
    """One block for each fact, in their order; the seed says which type each is and which prompt it shows."""
    generator = np.random.default_rng(seed)
    kinds: list[Type] = [kind for kind, count in types_of(len(facts)).items() for _ in range(count)]
    return [
        (kinds[place], _demonstration(fact, kinds[place], generator))
        for place, fact in zip(generator.permutation(len(kinds)), facts, strict=True)
    ]


def _demonstration(fact: ScopedFact, kind: Type, generator: np.random.Generator) -> str:
    query, answer = fact.prompt, fact.new
    if kind == "update":
        query = fact.inside[generator.integers(len(fact.inside))]
    if kind == "retain":
        query, answer = fact.outside[generator.integers(len(fact.outside))]
    return block(sentence(fact.prompt, fact.new), sentence(query, answer))
