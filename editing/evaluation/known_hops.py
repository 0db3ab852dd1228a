"""Which one-hop questions can be answered at all: those whose second hop the unedited model knows.

Without this, a fact that the model never knew counts as a fact that did not follow the edit. The questions that
pass stand in a group of their own beside the whole one, so that both means come from one run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from editing.datasets.case import Ask, Case, Group
from editing.evaluation.unedited import UneditedModel
from editing.metrics.matches import gen_contains


def with_known_hops(base: UneditedModel, cases: Sequence[Case]) -> tuple[list[Case], int, int]:
    """The cases with a group NAME_known of the questions that pass, how many passed, and how many there are.

    A question passes where the unedited model's own words after the hop's prompt contain its answer.
    """
    hops = [ask.hop for case in cases for group in case.groups for ask in group.asks if ask.hop]
    texts = base.texts([prompt for prompt, _ in hops]) if hops else {}

    def known(ask: Ask) -> bool:
        return ask.hop is not None and gen_contains(texts[ask.hop[0]], ask.hop[1])

    found, passed, asked = [], 0, 0
    for case in cases:
        more = []
        for group in case.groups:
            if not any(ask.hop for ask in group.asks):
                continue
            kept = tuple(ask for ask in group.asks if known(ask))
            passed, asked = passed + len(kept), asked + len(group.asks)
            more.append(Group(f"{group.name}_known", kept, group.stays))
        found.append(dataclasses.replace(case, groups=(*case.groups, *more)))
    return found, passed, asked
