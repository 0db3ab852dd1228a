"""What a worker of a comparison is given and answers: one evaluation of one editor, and what became of it.

The evaluation itself stays in its own folder, which all workers and the comparison see. A worker that takes up
the unit of another goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from editing.comparison.entrant import Entrant
from editing.comparison.plan import Task

EVERYTHING, COSTS = "everything", "costs"  # what fails of an editor, beside its evaluations


@dataclass(frozen=True)
class Unit:
    """What one worker does at a time.

    Attributes:
        task: the evaluation; None where only costs are missing.
        costs: whether the editor's costs are measured first, when it is made.
    """

    entrant: Entrant
    task: Task | None
    costs: bool = False

    @property
    def edits(self) -> int:
        """That its evaluation makes, at most."""
        return 0 if self.task is None else self.task.edits

    @property
    def what(self) -> tuple[str, ...]:
        """What of the editor is tried, as reasons of failure name it."""
        return (EVERYTHING, *((COSTS,) if self.costs else ()), *((self.task.what,) if self.task else ()))


@dataclass(frozen=True)
class Outcome:
    """What became of a unit.

    Attributes:
        seconds: that the unit took.
        reasons: why something failed, by what it was.
    """

    seconds: float
    reasons: Mapping[str, str]


def units_of(entrant: Entrant, tasks: list[Task], *, costs: bool) -> list[Unit]:
    """The units of one editor; its costs go with the first."""
    if not tasks:
        return [Unit(entrant, None, costs)] if costs else []
    return [Unit(entrant, task, costs and task is tasks[0]) for task in tasks]


def in_order(units: list[Unit], workers: int) -> list[Unit]:
    """As they are handed out: costs first, then the longest, so that no worker is left with a long one at the end.

    One process alone takes an editor after the other, which it then makes once.
    """
    return sorted(units, key=lambda unit: (not unit.costs, -unit.edits)) if workers else units
