"""Packs comparisons of one model, to be kept beside the README, and prints the README's tables of them.

python benchmarks/results.py smollm2 runs/compare/smollm2 runs/compare/smollm2-sequence ...

Writes MODEL.tar.gz, the folders with every finished evaluation but without the data's words, and MODEL.csv.gz,
every mean with its n, interval, file and slice. Unpacked (tar xzf benchmarks/results/smollm2.tar.gz -C runs/compare) a
folder is read by `editing recommend`, and `editing compare` goes on in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from editing.comparison import read_comparison, scores_frame
from editing.comparison.folder import ABOUT
from editing.comparison.plan import ASKED
from editing.evaluation.manifest import MANIFEST
from editing.evaluation.tables import as_markdown, shown
from tracer.storage import atomic_path, to_json

KEPT = (MANIFEST, ASKED, "cases.jsonl", "batches.jsonl", "checkpoints.jsonl", "steps.jsonl")
ELSEWHERE = "see a run"
WORDS = ("rule",)  # of diagnostics that are none of the data's
SINGLE = ("ES", "PS", "NS", "S", "reliability_token_acc", "generalization_token_acc", "locality_agreement")
REACH = (
    *("subject_replace_token_acc", "reversed_relation_token_acc", "one_hop_token_acc"),
    *("other_relation_agreement", "distracting_neighborhood_agreement", "other_task_accuracy"),
)
MANY = ("S", "reliability_token_acc", "generalization_token_acc", "locality_agreement", "perplexity_ratio")


def main() -> None:
    """Reads the folders, writes both files, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    frame = pd.concat(map(finished_scores, options.folders), ignore_index=True)
    options.out.mkdir(parents=True, exist_ok=True)
    _write(options.out / f"{options.model}.tar.gz", packed(options.folders))
    _write(options.out / f"{options.model}.csv.gz", frame.to_csv(index=False).encode())
    print("\n\n".join(tables(frame.loc[frame["cases"] == "all"])))


def finished_scores(folder: Path) -> pd.DataFrame:
    """Every mean of the evaluations that are finished."""
    found = read_comparison(folder)
    finished = {where.parts[-3:] for where in _finished(folder)}
    done = {key: one for key, one in found.evaluations.items() if key in finished}
    return scores_frame(dataclasses.replace(found, evaluations=done))


def packed(folders: Iterable[Path]) -> bytes:
    """A tar file of what `editing compare` reads again; equal folders give equal bytes."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for folder in folders:
            for path in _kept(folder):
                content = without_words(path).encode()
                entry = tarfile.TarInfo(str(path.relative_to(folder.parent)))
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def _kept(folder: Path) -> Iterator[Path]:
    yield folder / ABOUT
    yield from sorted((folder / "costs").glob("*.json"))
    for where in _finished(folder):
        yield from (path for name in KEPT if (path := where / name).is_file())


def _finished(folder: Path) -> list[Path]:
    """Folders of evaluations, whose tables are written last."""
    return sorted(table.parent for table in (folder / "runs").glob("*/*/*/table.csv"))


def without_words(path: Path) -> str:
    """The text of a file, of its diagnostics only the numbers."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return text
    return "".join(f"{to_json(_stripped(json.loads(line)))}\n" for line in text.splitlines())


def _stripped(record: Any) -> Any:
    if isinstance(record, list):
        return list(map(_stripped, record))
    if not isinstance(record, dict):
        return record
    found = {name: _stripped(value) for name, value in record.items()}
    if found.get("reason"):
        found["reason"] = ELSEWHERE
    if "diagnostics" in found:
        several = isinstance(found["diagnostics"], list)
        told = list(map(_without_words, found["diagnostics"] if several else [found["diagnostics"]]))
        found["diagnostics"] = told if several else told[0]
    return found


def _without_words(diagnostics: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: one for name, one in diagnostics.items() if isinstance(one, int | float) or name in WORDS}
    return numbers | ({"not_editable": ELSEWHERE} if "not_editable" in diagnostics else {})


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


def _write(path: Path, content: bytes) -> None:
    """Compressed; the same content gives the same bytes."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(content, 9, mtime=0))


if __name__ == "__main__":
    main()
