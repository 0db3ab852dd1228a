"""MQuAKE in a folder, as other evaluations are kept: a record a case, resumable, with the same tables.

`before` holds multi_hop of the unedited model on the answer that was right then. A group of cases whose edits
cannot be written fails with its reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from editing.datasets.case import CaseScores
from editing.datasets.mquake import HopBenchmark, MultiHop, names_no_subject
from editing.editors import Editor
from editing.errors import EvaluationError
from editing.evaluation.lines import Lines
from editing.evaluation.making import FAILURES, OF_NO_CASE
from editing.evaluation.manifest import cases_digest, continued_manifest, editor_record, model_record
from editing.evaluation.multi_hop import MultiHopScores, check_group, multi_hop_before, multi_hop_scores
from editing.evaluation.records import Evaluation, read_cases
from editing.evaluation.unedited import UneditedModel
from editing.locate_then_edit.editor import LocateThenEdit
from tracer.errors import NumericsError
from tracer.model import LanguageModel
from tracer.progress import bar
from tracer.storage import to_json
from tracer.studies.manifest import software

PROTOCOL = "multi-hop"
SHARES = ("edit_wise", "instance_wise", "multi_hop", "multi_hop_exact", "unanswered")


def evaluate_hops(
    model: LanguageModel,
    editor: Editor,
    benchmark: HopBenchmark,
    folder: str | Path,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> Evaluation:
    """Multi-hop scores of an editor into a folder; run again, it goes on where it stopped.

    Raises:
        EvaluationError: no case a group, another evaluation in the folder, an editor that cannot be undone, or one
            that needs a subject where the file names none.
        AnatomyError, BaseModelError: the editor cannot edit this model at all.
    """
    check_group(benchmark.together, "together")
    if isinstance(editor, LocateThenEdit) and any(map(names_no_subject, benchmark.cases)):
        raise EvaluationError(
            f"{editor.method} writes at the subject's last token, and the edits of this reduced MQuAKE file name no "
            f"subjects. Take the file with `requested_rewrite`, or an editor that needs none."
        )
    folder = Path(folder)
    about = continued_manifest(folder, _manifest(model, editor, benchmark, seed))
    lines, known = Lines(folder / "cases.jsonl"), read_cases(folder)
    with bar(len(benchmark.cases), "multi-hop questions", show=progress, unit="case") as steps:
        for begin in range(0, len(benchmark.cases), benchmark.together):
            group = benchmark.cases[begin : begin + benchmark.together]
            if any(case.id not in known for case in group):
                fresh = [one for one in _scored(model, editor, group, seed) if one.case_id not in known]
                lines.append(map(vars, fresh))
                known |= {one.case_id: one for one in fresh}
            steps.update(len(group))
    return Evaluation(folder, about, cases=tuple(known[case.id] for case in benchmark.cases))


def _scored(model: LanguageModel, editor: Editor, group: Sequence[MultiHop], seed: int) -> Iterator[CaseScores]:
    try:
        found = list(multi_hop_scores(model, editor, group, group=len(group), seed=seed, progress=False))
    except (EvaluationError, *OF_NO_CASE):  # none of a case's making
        raise
    except FAILURES as error:
        for case, base in zip(group, multi_hop_before(model, editor, group), strict=True):
            asked = [name for name in SHARES if name != "unanswered" and (name != "instance_wise" or case.hops)]
            what = "lost" if isinstance(error, NumericsError) else "not_editable"
            yield CaseScores(case.id, _before(base), dict.fromkeys(asked, 0.0), {what: str(error)})
        return
    yield from map(_case_scores, found)


def _case_scores(found: MultiHopScores) -> CaseScores:
    after = {name: getattr(found, name) for name in SHARES}
    asked = {name: value for name, value in after.items() if not math.isnan(value)}
    return CaseScores(found.case_id, _before(found.base), asked)


def _before(base: float) -> dict[str, float]:
    return {} if math.isnan(base) else {"multi_hop": base}


def _manifest(model: LanguageModel, editor: Editor, benchmark: HopBenchmark, seed: int) -> dict[str, Any]:
    about = {
        "kind": "evaluation",
        "format": 1,
        "model": model_record(model, UneditedModel(model).fingerprint),
        "editor": editor_record(editor),
        "data": {
            "benchmark": benchmark.name,
            "target": benchmark.target,
            "file_sha256": benchmark.sha256,
            "slice": benchmark.slice,
            "cases": len(benchmark.cases),
            "cases_sha256": cases_digest(benchmark.cases),
        },
        "protocol": {"name": PROTOCOL, "together": benchmark.together, "seed": seed},
        "versions": [software()],
    }
    return json.loads(to_json(about))
