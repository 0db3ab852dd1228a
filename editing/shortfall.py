"""What every editor that writes says of an edit that falls short."""

from __future__ import annotations

import warnings

from editing.edit import Edit
from editing.errors import EditingWarning

LARGE_CHANGE = 0.5  # |D| / |W| above which an edit is likely to harm the model
LOST = 0.05  # share of a change that rounding takes
SAID = 0.5  # probability below which an answer does not count as said


def warn_unsaid(*edits: Edit, advice: str, stacklevel: int) -> None:
    """One warning of all requests whose answers stay improbable on the edited model.

    Args:
        *edits: with the probability written in each request's record.
        advice: what to try.
        stacklevel: 1 points at the caller's line, 2 at the line that called it, and so on.
    """
    records = [record for edit in edits for record in edit.diagnostics]
    unsaid = [record for record in records if record["probability_written"] < SAID]
    if unsaid:
        first = f"{unsaid[0]['subject']} -> {unsaid[0]['new'].strip()}"
        warnings.warn(
            f"{len(unsaid)} of {len(records)} answers stay below probability {SAID}, e.g. {first}: "
            f"{unsaid[0]['probability_written']:.2f}. {advice}",
            EditingWarning,
            stacklevel=stacklevel + 1,
        )
