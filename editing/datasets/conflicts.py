"""Cases that edit one fact twice: they cannot be written together."""

from __future__ import annotations

from collections.abc import Sequence

from editing.datasets.case import Case
from editing.request import FactName


def without_conflicts(cases: Sequence[Case]) -> tuple[list[Case], list[tuple[Case, str]]]:
    """The cases that can be written together, and those left out with the reason: the first edit of a fact stays.

    See `fact_names` for what a fact is.
    """
    kept: list[Case] = []
    left_out: list[tuple[Case, str]] = []
    first: dict[FactName, Case] = {}
    for case in cases:
        request = case.request
        if request is None:
            kept.append(case)
            continue
        facts = request.fact_names
        known = next((first[fact] for fact in facts if fact in first), None)
        if known is None:
            kept.append(case)
            first |= dict.fromkeys(facts, case)
        else:
            assert known.request is not None
            same = known.request.new.strip() == request.new.strip()
            left_out.append((case, f"{'repeats' if same else 'contradicts'} case {known.id}"))
    return kept, left_out
