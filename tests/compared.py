"""Folders of comparisons with planted numbers, written without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editing.comparison import Comparison, read_comparison
from editing.evaluation.lines import Lines
from tracer.storage import write_json

DATA = {"benchmark": "counterfact", "target": "target_new", "slice": "first 4 of 9", "file_sha256": "ab" * 32,
        "conflicts": [], "cases": 4}  # fmt: skip
COST = {"edit_seconds": 1.0, "one_off_seconds": 100.0, "peak_bytes": 10**6, "absolute_peak_bytes": 10**9,
        "persistent_bytes": None, "latency_ratio": 1.0, "edits": 3, "memory": "resident set"}  # fmt: skip
MODEL = {"name": "tiny", "fingerprint": "f" * 64, "dtype": "float32", "device": "cpu", "threads": 1}


def scores(number: int, after: Mapping[str, float], before: Mapping[str, float] | None = None, seconds: float = 1.0):
    """The record of one case."""
    return {"case_id": str(number), "before": before or dict.fromkeys(after, 0.5), "after": dict(after),
            "diagnostics": {}, "seconds": seconds}  # fmt: skip


def planted_comparison(
    folder: Path,
    single: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    data: str = "counterfact",
    batches: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]] | None = None,
    points: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
    families: Mapping[str, str] | None = None,
) -> Comparison:
    """A comparison whose editors have these records of single edits, batches by size, and checkpoints."""
    editors = dict.fromkeys([*single, *(batches or {}), *(points or {})])
    entry = {"editor": "rome", "layer": 1, "settings": {}}
    about = {name: {"family": (families or {}).get(name, "memory"), **entry} for name in editors}
    left_out = [{"editor": "mend", "what": "everything", "reason": "</script><b>untrained</b>"}]
    write_json(
        folder / "comparison.json", {"kind": "comparison", "model": MODEL, "editors": about, "left_out": left_out}
    )
    for name, records in single.items():
        _evaluation(folder / "runs" / data / "single" / name, "single", "cases.jsonl", records)
    for name, sizes in (batches or {}).items():
        lines = [{"size": size, "cases": list(cases)} for size, cases in sizes.items()]
        _evaluation(folder / "runs" / data / "batch" / name, "batch", "batches.jsonl", lines)
    for name, records in (points or {}).items():
        _evaluation(folder / "runs" / data / "sequential" / name, "sequential", "checkpoints.jsonl", records)
    for name, cost in (costs or {}).items():
        write_json(folder / "costs" / f"{name}.json", cost)
    return read_comparison(folder)


def with_hops(folder: Path, editor: str, records: Sequence[Mapping[str, Any]]) -> Comparison:
    """The comparison there with multi-hop cases of one of its editors."""
    _evaluation(folder / "runs" / "mquake" / "multi-hop" / editor, "multi-hop", "cases.jsonl", records)
    return read_comparison(folder)


def point(edits: int, cases: Sequence[Mapping[str, Any]], fixed: Sequence[Mapping[str, Any]], ratio: float = 1.0):
    """The record of one checkpoint."""
    text = {"perplexity": 10.0 * ratio, "ratio": ratio, "kl": 0.1, "collapsed": ratio > 1.5}
    return {"edits": edits, "step": 1, "scores": list(cases), "fixed": list(fixed), "text": text,
            "relative_change": {"w": 0.1, "was zero": None}, "stopped": False}  # fmt: skip


def _evaluation(where: Path, protocol: str, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    write_json(where / "manifest.json", {"protocol": {"name": protocol}, "editor": {"name": "ROME"}, "data": DATA})
    Lines(where / name).append(records)
