"""Cases that edit one fact twice: they cannot be written together."""

from __future__ import annotations

from collections.abc import Sequence

from editing.evaluation.case import Case
from editing.request import EditRequest


def fact_of(request: EditRequest) -> tuple[str, str]:
    """What two conflicting requests have in common: a subject with a relation, or with a prompt where none is named."""
    return request.subject, request.relation or request.prompt


def without_conflicts(cases: Sequence[Case]) -> tuple[list[Case], list[tuple[Case, str]]]:
    """The cases that can be written together, and those left out with the reason: the first edit of a fact stays.

    See `fact_of` for what a fact is.
    """
    kept: list[Case] = []
    left_out: list[tuple[Case, str]] = []
    first: dict[tuple[str, str], Case] = {}
    for case in cases:
        request = case.request
        if request is None:
            kept.append(case)
            continue
        known = first.setdefault(fact_of(request), case)
        if known is case:
            kept.append(case)
        else:
            assert known.request is not None
            same = known.request.new.strip() == request.new.strip()
            left_out.append((case, f"{'repeats' if same else 'contradicts'} case {known.id}"))
    return kept, left_out
