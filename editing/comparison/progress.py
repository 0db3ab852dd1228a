"""How far a comparison is: read from its folders, where the edits of all workers show alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from editing.comparison.plan import Task
from editing.comparison.unit import Unit
from editing.evaluation.lines import Lines
from tracer.progress import bar

EVERY = 1.0  # seconds between two looks


@contextmanager
def shown_progress(units: Sequence[Unit], show: bool | None) -> Iterator[Callable[[int], None]]:
    """A bar over the edits of all units, with the time left; gives what is to be told that a unit is done."""
    look = _Look(units)
    total, begun = sum(unit.edits for unit in units), look.edits()
    with bar(total, "comparison", show=show, unit="edit", initial=begun) as steps:
        ended, one_at_a_time = threading.Event(), threading.Lock()

        def update() -> None:
            with one_at_a_time:
                steps.update(look.edits() - steps.n)

        def watch() -> None:
            while not ended.wait(EVERY):
                update()

        def done(at: int) -> None:
            look.done.add(at)
            if not steps.disable:
                update()

        watcher = threading.Thread(target=watch, daemon=True)
        if not steps.disable:
            watcher.start()
        try:
            yield done
        finally:
            ended.set()
            if watcher.ident is not None:
                watcher.join()


class _Look:
    """Counts the edits that units have made.

    Attributes:
        done: places of the units that have ended, also those that failed.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        self.done: set[int] = set()
        self._counted: dict[Path, tuple[int, int]] = {}  # size of a file, edits in it

    def edits(self) -> int:
        """Those of units that are done, and those that the others' folders hold."""
        return sum(
            unit.edits if at in self.done or unit.task is None else min(unit.edits, self._in_folder(unit.task))
            for at, unit in enumerate(self.units)
        )

    def _in_folder(self, task: Task) -> int:
        path = task.where / {"batch": "batches.jsonl", "sequential": "steps.jsonl"}.get(task.protocol, "cases.jsonl")
        size = path.stat().st_size if path.is_file() else 0
        if self._counted.get(path, (0, 0))[0] != size:
            self._counted[path] = size, _edits(path)
        return self._counted.get(path, (0, 0))[1]


def _edits(path: Path) -> int:
    """The edits in a file of single edits, batches or steps."""
    records = Lines(path).read()
    if path.name == "steps.jsonl":
        return records[-1]["edits"] if records else 0
    return sum(record.get("size", 1) for record in records)
