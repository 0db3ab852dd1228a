"""What an evaluation is made of: manifest.json beside its records.

Everything that a number depends on stands there. A run that finds the manifest of something else in its
folder refuses to go on. It holds no time and no path, so that two runs of one evaluation agree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from editing.datasets.benchmarks import Benchmark
from editing.datasets.case import Case
from editing.editors import Editor
from editing.errors import EvaluationError
from editing.evaluation.examination import Examination, Questions
from editing.metrics.alarms import PASSAGES
from editing.metrics.fluency import WORDS
from tracer.continuing import read_same
from tracer.model import LanguageModel
from tracer.storage import to_json, write_json
from tracer.studies.manifest import software

MANIFEST = "manifest.json"
RECORDS = ("cases.jsonl", "batches.jsonl", "steps.jsonl", "checkpoints.jsonl")


def manifest(
    examination: Examination,
    editor: Editor,
    benchmark: Benchmark,
    cases: Sequence[Case],
    protocol: dict[str, Any],
    *,
    conflicts: Sequence[str] = (),
    known_hops: Sequence[int] = (),
) -> dict[str, Any]:
    """An evaluation as JSON values; of `known_hops`, how many questions passed and how many there are."""
    model, questions = examination.model, examination.questions
    about = {
        "kind": "evaluation",
        "format": 1,
        "model": model_record(model, examination.unedited.fingerprint),
        "editor": editor_record(editor),
        "data": {
            "benchmark": benchmark.name,
            "target": benchmark.target,
            "template": "raw",
            "file_sha256": benchmark.sha256,
            "slice": benchmark.slice,
            "cases": len(cases),
            "cases_sha256": cases_digest(cases),
            "left_out": dict(benchmark.left_out),
            "conflicts": list(conflicts),
            "known_hops": list(known_hops),
        },
        "protocol": protocol,
        "questions": {**questions_record(questions), "words": WORDS, "passages": digest(PASSAGES)},
        "versions": [software()],
    }
    return json.loads(to_json(about))


def questions_record(questions: Questions) -> dict[str, Any]:
    """What is asked, with the sha256 of the snippets in their place."""
    snippets = digest(sorted(questions.snippets.items())) if questions.snippets else None
    return {**dataclasses.asdict(dataclasses.replace(questions, snippets=None)), "snippets": snippets}


def model_record(model: LanguageModel, fingerprint: str) -> dict[str, Any]:
    """What numbers depend on of the model, unedited."""
    about = {
        "name": model.name,
        "fingerprint": fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
    }
    return about | ({"decoder_starts": model.decoder_starts} if model.decoder_starts else {})


def threads_before(path: Path, what: str) -> int | None:
    """PyTorch's threads with which whatever this file describes (`what`, in words) was begun; None: no file is there.

    Raises:
        FileFormatError: the file is damaged.
    """
    about = read_same(path, {}, what=what, error=EvaluationError) or {}
    return about.get("model", {}).get("threads")


def editor_record(editor: Editor) -> dict[str, Any]:
    """The editor's class and settings."""
    fields = dataclasses.fields(editor) if dataclasses.is_dataclass(editor) else ()
    settings = {one.name: getattr(editor, one.name) for one in fields if not one.metadata.get("local")}
    if settings.get("corpus") is not None:
        settings["corpus"] = Path(settings["corpus"]).name
    return {"name": type(editor).__name__, **settings}


def continued_manifest(folder: Path, now: dict[str, Any]) -> dict[str, Any]:
    """Writes the manifest into a new folder; in one that holds records, checks that it says the same.

    Raises:
        EvaluationError: the records are of something else.
    """
    path, there = folder / MANIFEST, None
    if any((folder / name).is_file() for name in RECORDS):  # none: the run before this one found out that it cannot be
        there = read_same(path, now, what="evaluation", error=EvaluationError, but=("versions",))
    if there is not None:
        versions = there["versions"]
        now = {**now, "versions": versions if now["versions"][0] in versions else versions + now["versions"]}
    write_json(path, now)
    return now


def cases_digest(cases: Sequence[Any]) -> str:
    """sha256 of everything that is asked."""
    return digest([dataclasses.asdict(case) for case in cases])


def digest(value: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(to_json(value).encode()).hexdigest()
