"""What an editor costs: seconds and memory of an edit, what is spent once, what stays, and slower answers.

edit         wall clock of `apply`, the device synchronised
one-off      making the editor and its first edit, less the median of the later ones: training, and
statistics that no cache had
peak         most memory while an edit is made, less that before it
persistent   bytes of the saved edit
latency      seconds of the same answers, edited / unedited
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from editing.edit import Edit
from editing.editors import Editor
from editing.errors import EvaluationError
from editing.evaluation.making import FAILURES
from editing.peak_memory import PeakMemory
from editing.request import EditRequest
from editing.scoring.generation import complete
from editing.stopwatch import now
from tracer.model import LanguageModel

CACHE = "LOCATE_THEN_EDIT_CACHE"  # where `tracer.storage.cache_folder` looks
EDITS = 3  # after the first one
REPEATS = 5
NEW_TOKENS = 16


@dataclass(frozen=True)
class Efficiency:
    """Costs of an editor on one model.

    Attributes:
        edit_seconds: median of the edits after the first.
        one_off_seconds: before the first edit could be made.
        peak_bytes: the largest of these edits.
        absolute_peak_bytes: the same with the model and everything else.
        persistent_bytes: of one saved edit; None where it cannot be saved.
        latency_ratio: of answers while one edit is applied.
        edits: that were made.
        memory: what was measured, "resident set" or "cuda".
    """

    edit_seconds: float
    one_off_seconds: float
    peak_bytes: int
    absolute_peak_bytes: int
    persistent_bytes: int | None
    latency_ratio: float
    edits: int
    memory: str


def measure_efficiency(
    model: LanguageModel,
    make: Callable[[], Editor],
    requests: Sequence[EditRequest],
    *,
    edits: int = EDITS,
    prompts: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Editor, Efficiency]:
    """Makes an editor and some single edits with it, each undone, and says what they cost.

    Args:
        model: unedited.
        make: gives the editor; its time is one-off.
        requests: the first that can be written is spent on the one-off costs, the next ones are measured.
        edits: how many to measure.
        prompts: answered for the latency, beside the last edit's own.
        seed: of the edits.

    Raises:
        EvaluationError: fewer than two of the requests can be written.
    """
    begun = now(model)
    editor = make()
    measured = _keeping_no_values(editor)
    making, seconds, peaks, kept, last = now(model) - begun, [], [], None, None
    for request in requests:
        if len(seconds) == edits + 1:
            break
        with PeakMemory(model.device) as peak:
            begun = now(model)
            try:
                edit = measured.apply(model, [request], seed=seed, progress=False)
            except FAILURES as error:
                making, last = making + (now(model) - begun if not seconds else 0.0), error
                continue
            seconds.append(now(model) - begun)
        peaks.append(peak)
        edit.undo()
        kept = edit
    if kept is None or len(seconds) < 2:
        raise EvaluationError(f"{len(seconds)} of {len(requests)} requests could be written, 2 are needed: {last}")
    median = float(np.median(seconds[1:]))
    return editor, Efficiency(
        edit_seconds=median,
        one_off_seconds=making + max(0.0, seconds[0] - median),
        peak_bytes=max(one.bytes for one in peaks[1:]),
        absolute_peak_bytes=max(one.absolute for one in peaks[1:]),
        persistent_bytes=_saved_bytes(kept),
        latency_ratio=latency_ratio(model, kept, [kept.requests[-1].prompt, *prompts]),
        edits=len(seconds) - 1,
        memory=peaks[0].kind,
    )


def _keeping_no_values(editor: Editor) -> Editor:
    """The editor that finds every value itself: a kept one would hide its time and memory."""
    kept: Any = editor
    return dataclasses.replace(kept, values_folder=None) if getattr(editor, "values_folder", None) else editor


@contextmanager
def empty_cache() -> Iterator[None]:
    """The cache of statistics and values is empty while the block runs; what the block puts there goes with it."""
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            del os.environ[CACHE]
            if before is not None:
                os.environ[CACHE] = before


def latency_ratio(
    model: LanguageModel, edit: Edit, prompts: Sequence[str], *, repeats: int = REPEATS, new_tokens: int = NEW_TOKENS
) -> float:
    """How many times longer the model takes to continue these prompts while the edit is applied.

    Both are timed in turn, so that a busy machine slows both; the first turn of each is not counted.
    """
    ratios = []
    for _ in range(repeats + 1):
        base = _seconds(model, prompts, new_tokens)
        edit.apply(model)
        try:
            ratios.append(_seconds(model, prompts, new_tokens) / base)
        finally:
            edit.undo()
    return float(np.median(ratios[1:]))


def _seconds(model: LanguageModel, prompts: Sequence[str], new_tokens: int) -> float:
    begun = now(model)
    complete(model, prompts, new_tokens=new_tokens)
    return now(model) - begun


def _saved_bytes(edit: Edit) -> int | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.safetensors"
        try:
            edit.save(path)
        except FAILURES:
            return None
        return path.stat().st_size
