"""How two editors of a comparison differ, case by case: most paired differences that the README and FINDINGS.md quote.

    mkdir -p runs/compare; tar xzf benchmarks/results/smollm2.tar.gz -C runs/compare
    python benchmarks/differences.py runs/compare/smollm2-many memit alphaedit
    cd runs/compare; python ../../benchmarks/differences.py smollm2-many memit grace --second-folder smollm2-many-beside

Each line: data file and protocol, edits, score, the first editor's mean less the second's with its 95 % interval over
resampled cases, and n. The second editor may be "unedited". With --data FILE facts are resampled, all records of one
subject and answer together: zsRE asks one fact in many wordings.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from editing.comparison import Comparison, read_comparison
from editing.comparison.tables import SCORES, UNEDITED
from editing.datasets.case import CaseScores
from editing.errors import EvaluationError
from editing.evaluation import paired_difference, read_benchmark
from editing.metrics.of_cases import GENERAL_TEXT
from tracer.errors import TracerError

Where = tuple[str, str, int]  # data, protocol, edits


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--second-folder", type=Path, help="of the second editor, where it stands in another one")
    parser.add_argument("--data", type=Path, help="the file the comparison was made on")
    parser.add_argument("--benchmark", help="as it was read")
    options = parser.parse_args()
    try:
        facts = facts_of(options.data, options.benchmark) if options.data else None
        comparison, second_folder = read_comparison(options.folder), options.second_folder
        other = read_comparison(second_folder) if second_folder else None
        rows = differences(comparison, options.first, options.second, facts, other=other)
        print(pd.DataFrame(rows).round(1).to_string(index=False))
    except TracerError as error:
        parser.error(str(error))


def facts_of(path: Path, benchmark: str | None) -> dict[str, str]:
    """By case the subject and answer that it writes."""
    cases = read_benchmark(path, benchmark=benchmark).cases
    return {case.id: f"{case.request.subject}: {case.request.new}" for case in cases if case.request is not None}


def differences(
    comparison: Comparison,
    first: str,
    second: str,
    facts: Mapping[str, str] | None = None,
    *,
    other: Comparison | None = None,
) -> Iterator[dict[str, object]]:
    """A row for each file, protocol, number of edits and score that both have; per cent, but for ratios.

    Args:
        comparison: of both editors.
        first: its label.
        second: of another one, or "unedited".
        facts: by case, where facts are resampled and not cases.
        other: of the second editor, on the same model, where it is another one.

    Raises:
        EvaluationError: the comparison has nothing of one of them, or the two are of different models.
    """
    if first == UNEDITED:
        raise EvaluationError(f'"{UNEDITED}" goes second: write {second} {UNEDITED}.')
    if other is not None and other.about["model"]["fingerprint"] != comparison.about["model"]["fingerprint"]:
        raise EvaluationError(f"{comparison.folder} and {other.folder} are of different models.")
    asked = (comparison, first), (other or comparison, first if second == UNEDITED else second)
    sides = [_cases(*one) for one in asked]
    for (there, name), side in zip(asked, sides, strict=True):
        if not side:
            raise EvaluationError(f"{there.folder} has no {name}. Choose from {', '.join(there.editors)}.")
    for where in (where for where in sides[0] if where in sides[1]):
        one, against = (side[where] for side in sides)
        if second == UNEDITED:
            against = [dataclasses.replace(case, after=case.before) for case in one]
        for score in SCORES:
            if score in GENERAL_TEXT and where[1] != "single":  # one number, and not of a case
                continue
            try:
                found = paired_difference(one, against, score, groups=facts)
            except EvaluationError:  # not asked of both
                continue
            about = dict(zip(("data", "protocol", "edits"), where, strict=True))
            yield {**about, "score": score, **dataclasses.asdict(found)}


def _cases(comparison: Comparison, editor: str) -> dict[Where, list[CaseScores]]:
    """An editor's cases; of a sequence with the scores of the fixed set, whose cases are its first ones."""
    found = {
        (data, protocol, edits): list(cases)
        for (data, protocol, name), edits, cases in comparison.scored()
        if name == editor
    }
    for (data, protocol, name), evaluation in comparison.evaluations.items():
        for point in evaluation.checkpoints if name == editor else ():
            both = {case.case_id: case for case in found[data, protocol, point.edits]}
            for case in point.fixed:
                own = both.get(case.case_id, case)
                merged = {"before": {**own.before, **case.before}, "after": {**own.after, **case.after}}
                both[case.case_id] = dataclasses.replace(case, **merged)
            found[data, protocol, point.edits] = list(both.values())
    return found


if __name__ == "__main__":
    main()
