"""What went less well than it should: an edit that does not get there is said, never silent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from editing.edit import Edit
from editing.errors import EditingWarning
from editing.shortfall import LARGE_CHANGE, LOST, SAID

SMALL_DIVISION = 0.3  # where published ROME's changes are three times as large as r-ROME's
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Complaint:
    """When a request's record deserves a warning, and which."""

    concerns: Callable[[Record], bool]
    text: str


COMPLAINTS = (
    Complaint(
        lambda record: record["lost_by_rounding"] > LOST,
        "{lost_by_rounding:.0%} of the change is lost by rounding. Edit in float32.",
    ),
    Complaint(
        lambda record: record["relative_change"] > LARGE_CHANGE,
        "the change is {relative_change:.2f} of the weight's norm and may harm the model. Use another layer or a "
        "smaller clamp.",
    ),
    Complaint(
        lambda record: record["probability_written"] < SAID <= record["probability_reached"],
        "the value found reaches probability {probability_reached:.2f}, the edited weights only "
        "{probability_written:.2f} on the bare prompt: its key is far from the mean over contexts, or old keys and "
        'other requests weigh more. Use ROME\'s variant="rome", fewer requests at once, or key statistics from more '
        "varied text.",
    ),
    Complaint(
        lambda record: record["probability_reached"] < SAID,
        "the optimisation reached probability {probability_reached:.2f} only; in {clamped} of {steps} steps the clamp "
        "held it back. Use another layer, more steps or a larger clamp.",
    ),
    Complaint(
        lambda record: record.get("division_ratio", 1.0) < SMALL_DIVISION,
        "the bare prompt's key is far from the mean key: the change is divided by {division_ratio:.2f} of what the "
        'mean key would divide it by, and grows as much. Use variant="r-rome".',
    ),
)


def warn_of(*edits: Edit) -> None:
    """One warning for each kind of trouble, with the first request that it concerns and how many more.

    It points at the line that called the caller.
    """
    for complaint in COMPLAINTS:
        records = [record for edit in edits for record in edit.diagnostics if complaint.concerns(record)]
        if records:
            said = f"{records[0]['subject']} -> {records[0]['new'].strip()}"
            more = f" (and {len(records) - 1} more)" if len(records) > 1 else ""
            warnings.warn(f"{said}{more}: {complaint.text.format(**records[0])}", EditingWarning, stacklevel=3)
