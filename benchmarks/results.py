"""Packs comparisons of one model, to be kept with the code; benchmarks/all_editors.py tells what is in them.

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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from editing.comparison import read_comparison, scores_frame
from editing.comparison.folder import ABOUT
from editing.comparison.plan import ASKED, LAST
from editing.evaluation.manifest import MANIFEST
from tracer.storage import atomic_path, to_json

KEPT = (MANIFEST, ASKED, "cases.jsonl", "batches.jsonl", "checkpoints.jsonl", "steps.jsonl", "table.csv", LAST)
ELSEWHERE = "see a run"
WORDS = ("rule",)  # of diagnostics that are none of the data's


def main() -> None:
    """Reads the folders, writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    folders = [folder for folder in options.folders if _finished(folder)]  # others have just begun
    if not folders:
        parser.error("nothing in these folders is finished")
    frame = pd.concat(map(finished_scores, folders), ignore_index=True)
    options.out.mkdir(parents=True, exist_ok=True)
    _write(options.out / f"{options.model}.tar.gz", packed(folders))
    _write(options.out / f"{options.model}.csv.gz", frame.to_csv(index=False).encode())


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
    """Folders of evaluations whose last file is there."""
    return sorted(table.parent for table in (folder / "runs").glob(f"*/*/*/{LAST}"))


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


def _write(path: Path, content: bytes) -> None:
    """Compressed; the same content gives the same bytes."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(content, 9, mtime=0))


if __name__ == "__main__":
    main()
