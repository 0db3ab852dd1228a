"""Random prefixes that make keys and values hold in more than one context.

    ROME         {empty} + 10 texts of 5 tokens + 10 of 10 tokens
    MEMIT ...    {empty} + 5 texts of 10 tokens, begun by The, Therefore, Because, I, You
used as `text + ". " + prompt`. They are those of the unedited model, sampled once.
Source: Meng et al. 2022, sec. 3.1 and appendix E.5; Meng et al. 2023; top-k 5 sampling as published.
"""

from __future__ import annotations

from collections.abc import Sequence

from editing.edit import original_fingerprint, unedited
from editing.errors import RequestError
from editing.scoring.generation import OPENINGS, sample_texts
from editing.setting_checks import whole
from tracer.model import LanguageModel

Plan = Sequence[tuple[int, int]]
PUBLISHED = ((10, 5), (10, 10))  # (how many, tokens each)
MEMIT_PLAN = ((5, 10),)
MEMIT_OPENINGS = ("The", "Therefore", "Because", "I", "You")


def checked_plan(plan: Plan) -> tuple[tuple[int, int], ...]:
    """`plan` as a tuple of pairs.

    Raises:
        RequestError: something else than pairs of whole numbers, 1 or more.
    """
    try:
        found = tuple((whole("count", count, 10), whole("length", length, 10)) for count, length in plan)
    except (TypeError, ValueError) as error:  # no pairs, or no numbers in them
        raise RequestError(
            f"context_plan={plan!r}: write pairs (how many, tokens each), as ((10, 5), (10, 10))."
        ) from error
    if any(min(pair) < 1 for pair in found):
        raise RequestError(f"context_plan={plan!r} asks for texts of nothing. Write (), or pairs of 1 or more.")
    return found


def contexts(
    model: LanguageModel, *, seed: int, plan: Plan = PUBLISHED, openings: Sequence[str] = OPENINGS
) -> tuple[str, ...]:
    """The empty context first, then `count` texts of `length` tokens for each (count, length) of `plan`."""
    key = ("contexts", original_fingerprint(model), seed, tuple(plan), tuple(openings))
    if key not in model.remembered:
        with unedited(model):
            model.remembered[key] = _sampled(model, seed, plan, openings)
    return model.remembered[key]


def _sampled(model: LanguageModel, seed: int, plan: Plan, openings: Sequence[str]) -> tuple[str, ...]:
    texts = [""]
    for part, (count, length) in enumerate(plan):
        written = sample_texts(model, count, length=length, seed=seed + part, top_k=5, openings=openings)
        texts += [f"{text.strip()}. " if text.strip() else "" for text in written]
    return tuple(texts)
