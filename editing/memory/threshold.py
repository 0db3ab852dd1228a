"""From which similarity on a query falls under a remembered fact: found on facts whose scope is known.

balanced accuracy = (share of inside prompts at or above it + share of outside prompts below it) / 2
Each fact is alone in its memory; use facts that no evaluation asks about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from editing.memory.retrieval import Retriever
from editing.memory.scoped import ScopedFacts, check_facts


@dataclass(frozen=True)
class Threshold:
    """What was found.

    Attributes:
        value: a similarity.
        balanced_accuracy: with it, on the facts that it was found on.
        inside: share of inside prompts that it lets in.
        outside: share of outside prompts that it keeps out.
        n: prompts, inside and outside.
    """

    value: float
    balanced_accuracy: float
    inside: float
    outside: float
    n: tuple[int, int]


def best_threshold(retriever: Retriever, facts: ScopedFacts) -> Threshold:
    """The one with the highest balanced accuracy, half way to the next similarity below; of equals the highest.

    Raises:
        RequestError: no facts.
    """
    check_facts(facts)
    inside, outside = similarities(retriever, facts)
    seen = np.unique(np.concatenate((inside, outside)))
    cuts = np.append((seen[1:] + seen[:-1]) / 2, seen[-1] + 1e-6)[::-1]
    let_in = (inside[:, None] >= cuts).mean(0)
    kept_out = (outside[:, None] < cuts).mean(0)
    best = int(((let_in + kept_out) / 2).argmax())
    shares = float(let_in[best]), float(kept_out[best])
    return Threshold(float(cuts[best]), sum(shares) / 2, *shares, n=(len(inside), len(outside)))


def similarities(retriever: Retriever, facts: ScopedFacts) -> tuple[np.ndarray, np.ndarray]:
    """Of all inside and of all outside prompts to their own fact's prompt."""
    inside, outside = [], []
    for fact in facts.facts:
        index = retriever.index([fact.prompt])
        inside += index.scores(fact.inside)[:, 0].tolist()
        outside += index.scores([text for text, _ in fact.outside])[:, 0].tolist()
    return np.array(inside), np.array(outside)
