"""Other tasks as a side effect: two answers to a goal, of which the model should pick the right one.

The pick is the answer with the lower mean nll after the goal; by the sum of nll it is `_sum` (PIQA, Bisk et al.
2020, as Yao et al. 2023, sec. 5, use it). Each case is asked some of the questions, so every protocol has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from editing.datasets.case import Ask, Case, Group
from editing.errors import EvaluationError
from tracer.facts.readers import read_records

GROUP = "other_task"


def read_choices(path: str | Path) -> tuple[Ask, ...]:
    """The questions of a PIQA file with their labels merged in: goal, sol1, sol2, label (0: sol1 is right).

    Raises:
        FileFormatError: missing, or not JSON.
        EvaluationError: a record without these fields; the file has no question with two different answers.
    """
    found = []
    for number, record in enumerate(read_records(path)):
        try:
            answers = [record["sol1"].strip(), record["sol2"].strip()]
            goal, label = record["goal"].strip(), (0, 1).index(record["label"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise EvaluationError(
                f"{path}, record {number}, is not a choice ({error}): such has texts goal, sol1 and sol2, and a label, "
                f"0 or 1."
            ) from error
        right, wrong = answers[label], answers[1 - label]
        if right and wrong and right != wrong and goal:
            found.append(Ask(goal, right, wrong))
    if not found:
        raise EvaluationError(f"{path} has no question with two answers.")
    return tuple(found)


def with_choices(cases: Sequence[Case], choices: Sequence[Ask], each: int) -> list[Case]:
    """The cases with `each` choices a case: in turn, so that the mean over cases is over as many different ones.

    Raises:
        EvaluationError: none a case.
    """
    if each < 1:
        raise EvaluationError(f"{each} choices a case ask nothing. Write 1 or more.")
    found = []
    for number, case in enumerate(cases):
        asks = tuple(choices[(number * each + at) % len(choices)] for at in range(each))
        found.append(dataclasses.replace(case, groups=(*case.groups, Group(GROUP, asks, stays=True, choice=True))))
    return found
