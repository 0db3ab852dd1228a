"""Packs what comparisons of one model found, to be kept beside the README, and prints the README's tables of it.

python benchmarks/results.py smollm2 runs/compare/smollm2 runs/compare/smollm2-batch100 ...

Writes MODEL.jsonl.gz, a record for each editor, file, protocol, number of edits and case, without the data's words,
and MODEL.csv.gz, every mean with its n, interval, file and slice. What these hold of other editors, files and protocols
stays. Without folders: the tables of what is there.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from editing.comparison import read_comparison, scores_frame
from editing.comparison.tables import case_records
from editing.evaluation.tables import as_markdown, shown
from tracer.storage import atomic_path, to_json

SINGLE = ("ES", "PS", "NS", "S", "reliability_token_acc", "generalization_token_acc", "locality_agreement")
REACH = (
    *("subject_replace_token_acc", "reversed_relation_token_acc", "one_hop_token_acc"),
    *("other_relation_agreement", "distracting_neighborhood_agreement", "other_task_accuracy"),
)
MANY = ("S", "reliability_token_acc", "generalization_token_acc", "locality_agreement", "perplexity_ratio")
RUN = ["data", "protocol", "editor"]


def main() -> None:
    """Reads the folders, writes both files, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    found = [read_comparison(folder) for folder in options.folders]
    newer = [record for one in found for record in case_records(one)]
    runs = {tuple(record[name] for name in RUN) for record in newer}
    options.out.mkdir(parents=True, exist_ok=True)
    means, records = options.out / f"{options.model}.csv.gz", options.out / f"{options.model}.jsonl.gz"
    frames = [_others(pd.read_csv(means), runs)] if means.exists() else []
    frame = pd.concat([*frames, *map(scores_frame, found)], ignore_index=True)
    if found:
        kept = [line for line in _lines(records) if tuple(json.loads(line)[name] for name in RUN) not in runs]
        _pack(records, "".join(f"{line}\n" for line in [*kept, *(to_json(_without_words(one)) for one in newer)]))
        _pack(means, frame.to_csv(index=False))
    print("\n\n".join(tables(frame.loc[frame["cases"] == "all"])))


def tables(frame: pd.DataFrame) -> Iterable[str]:
    """Markdown of single edits, what they reach and spare, and many edits; `frame`: of `scores_frame`."""
    for data, protocol in frame[["data", "protocol"]].drop_duplicates().itertuples(index=False):
        rows = frame.loc[(frame["data"] == data) & (frame["protocol"] == protocol)]
        title = f"{data}, {protocol}; n = {rows['n'].max()}"
        if protocol == "single":
            yield from (f"{title}\n\n{_by_editor(rows, names)}" for names in (SINGLE, REACH) if _has(rows, names))
        else:
            yield from (f"{title}, {name}\n\n{_by_edits(rows, name)}" for name in MANY if _has(rows, [name]))


def _by_editor(rows: pd.DataFrame, names: Sequence[str]) -> str:
    """Editors down, scores across; the unedited model first."""
    there = [name for name in names if _has(rows, [name])]
    before, after = rows.loc[rows["when"] == "before"], rows.loc[rows["when"] == "after"]
    lines = {"unedited": before.drop_duplicates("score")}
    lines |= {editor: after.loc[after["editor"] == editor] for editor in dict.fromkeys(after["editor"])}
    cells = [[label, *(_cell(of, name) for name in there)] for label, of in lines.items()]
    return as_markdown(pd.DataFrame(cells, columns=["editor", *there]))


def _by_edits(rows: pd.DataFrame, name: str) -> str:
    """Editors down, numbers of edits across."""
    after = rows.loc[rows["when"] == "after"]
    counts = sorted(set(after["edits"]))
    cells = [
        [editor, *(_cell(after.loc[(after["editor"] == editor) & (after["edits"] == count)], name) for count in counts)]
        for editor in dict.fromkeys(after["editor"])
    ]
    return as_markdown(pd.DataFrame(cells, columns=["editor", *(f"{count} edits" for count in counts)]))


def _cell(rows: pd.DataFrame, name: str) -> str:
    one = rows.loc[rows["score"] == name]
    return "" if one.empty else shown(name, one["mean"].iloc[0], one["half_width"].iloc[0])


def _has(rows: pd.DataFrame, names: Sequence[str]) -> bool:
    return bool(set(names) & set(rows["score"]))


def _others(frame: pd.DataFrame, runs: set[tuple[str, ...]]) -> pd.DataFrame:
    """The rows of other runs."""
    return frame.loc[[run not in runs for run in frame[RUN].itertuples(index=False, name=None)]]


def _lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines() if path.exists() else []


def _without_words(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the numbers of its diagnostics alone."""
    numbers = {name: value for name, value in record["diagnostics"].items() if isinstance(value, int | float)}
    return {**record, "diagnostics": numbers}


def _pack(path: Path, text: str) -> None:
    """The same text gives the same bytes."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
