"""Random prefixes that make keys and values hold in more than one context.

    {empty} + 10 texts of 5 tokens + 10 of 10 tokens, used as `text + ". " + prompt`
Source: Meng et al. 2022, sec. 3.1 and appendix E.5; top-k 5 sampling as published.
"""

from __future__ import annotations

from collections.abc import Sequence

from editing.generation import sample_texts
from tracer.model import LanguageModel

PUBLISHED = ((10, 5), (10, 10))  # (how many, tokens each)


def contexts(model: LanguageModel, *, seed: int, plan: Sequence[tuple[int, int]] = PUBLISHED) -> tuple[str, ...]:
    """The empty context first, then `count` texts of `length` tokens for each (count, length) of `plan`."""
    texts = [""]
    for part, (count, length) in enumerate(plan):
        written = sample_texts(model, count, length=length, seed=seed + part, top_k=5)
        texts += [f"{text.strip()}. " if text.strip() else "" for text in written]
    return tuple(texts)
