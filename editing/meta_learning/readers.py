"""Training records of the published files: CounterFact, its flat edition, and zsRE.

A zsRE file teaches its true answers as benchmark "zsre" and the false ones, where it has any, under
"zsre-survey". Whatever is scored later must not be trained on: give its file as `without`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from editing.datasets.benchmarks import read_benchmark
from editing.datasets.case import Case
from editing.errors import RequestError
from editing.meta_learning.records import TrainingRecord


def training_records(
    path: str | Path, *, n: int | None = None, benchmark: str | None = None, without: Iterable[str | Path] = ()
) -> list[TrainingRecord]:
    """The records of a file that can be trained on.

    Args:
        path: a JSON array or JSON lines, also gzipped.
        n: of its records, evenly over the file; None: all.
        benchmark: as for `read_benchmark`; None: the file's own, and the true answers of zsRE.
        without: files whose subjects are left out; CounterFact's flat training file holds cases of the full one.

    Raises:
        FileFormatError: missing, or not JSON.
        RequestError: no record is left.
    """
    cases = read_benchmark(path, n=n, evenly=True, benchmark=benchmark).cases
    subjects, found = subjects_of(without), []
    for case in cases:
        record = _record(case)
        if record is not None and record.subject.casefold() not in subjects:
            found.append(record)
    if not found:
        raise RequestError(f"{path} has no record to train on: each needs a subject, a rephrase and a neighbour.")
    return found


def subjects_of(files: Iterable[str | Path]) -> set[str]:
    """Of all cases in these benchmark files, in lower case."""
    cases = [case for file in files for case in read_benchmark(file).cases]
    return {case.request.subject.casefold() for case in cases if case.request}


def _record(case: Case) -> TrainingRecord | None:
    """The record of a case; None where it has no subject, no other words or no neighbour."""
    asks = {group.name: group.asks for group in case.groups}
    if case.request is None or not asks.get("neighborhood"):
        return None
    other = asks["neighborhood"][0]
    words = tuple(ask.prompt for ask in asks.get("paraphrase", ()) if ask.prompt.strip() != case.request.prompt)
    try:
        return TrainingRecord(
            case.request.prompt, case.request.subject, case.request.new, words, other.prompt, other.target
        )
    except RequestError:
        return None
