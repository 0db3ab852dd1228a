"""comparison.json while a comparison runs: the model, who takes part, and why something of it failed.

Only the process that was asked for the comparison writes it. The file says the same whoever did the units, in
whatever order, times apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editing.comparison.entrant import Entrant
from editing.comparison.folder import ABOUT
from editing.comparison.plan import entry
from editing.comparison.unit import COSTS, EVERYTHING, Outcome, Unit
from editing.editors import family
from editing.errors import EvaluationError
from editing.evaluation.manifest import model_record
from tracer.continuing import read_same
from tracer.model import LanguageModel
from tracer.storage import write_json


class Notes:
    """What the file says so far.

    Attributes:
        about: its JSON values.
    """

    def __init__(self, folder: Path, model: LanguageModel) -> None:
        """Reads the file; in a new folder it is written, before anything is evaluated.

        Raises:
            EvaluationError: the folder holds another model's comparison, or one with other threads.
        """
        self.path = folder / ABOUT
        about = {"kind": "comparison", "format": 1, "model": model_record(model, model.fingerprint())}
        there = read_same(self.path, about, what="comparison", error=EvaluationError)
        self.about: dict[str, Any] = there or {**about, "editors": {}, "left_out": []}
        if there is None:
            write_json(self.path, self.about)

    @property
    def fingerprint(self) -> str:
        """Of the unedited model."""
        return self.about["model"]["fingerprint"]

    def begin(self, entrants: Sequence[Entrant], units: Sequence[Unit]) -> None:
        """Enters the editors, and forgets the reasons of what is tried again; others stay."""
        for entrant in entrants:
            before = self.about["editors"].get(entrant.label, {})
            self.about["editors"][entrant.label] = {**before, "family": family(entrant.editor), **entry(entrant)}
        again = {(unit.entrant.label, what) for unit in units for what in unit.what}
        self.about["left_out"] = [one for one in self.about["left_out"] if (one["editor"], one["what"]) not in again]
        write_json(self.path, self.about)

    def note(self, unit: Unit, outcome: Outcome) -> None:
        """Adds what became of a unit."""
        label, left_out = unit.entrant.label, self.about["left_out"]
        editor = self.about["editors"][label]
        editor["run_seconds"] = editor.get("run_seconds", 0) + outcome.seconds
        known = {(one["editor"], one["what"]) for one in left_out}
        for what, reason in outcome.reasons.items():
            if (label, what) not in known:  # that it cannot be made, each of its units finds
                left_out.append({"editor": label, "what": what, "reason": reason})
        left_out.sort(key=self._place)
        write_json(self.path, self.about)

    def _place(self, left_out: dict[str, str]) -> tuple[int, bool, bool, str]:
        what = left_out["what"]
        return list(self.about["editors"]).index(left_out["editor"]), what != EVERYTHING, what != COSTS, what
