"""What a comparison says as tables: every number with its metric, n, interval, file and slice.

`scores_frame` has them all, a row each; `shown_tables` are those that a reader looks at first, a table for each
data file and protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any

import numpy as np
import pandas as pd

from editing.comparison.costs import OF_TRAINING
from editing.comparison.folder import Comparison, Key
from editing.datasets.case import CaseScores
from editing.evaluation.multi_hop_run import PROTOCOL as HOPS
from editing.evaluation.records import Evaluation
from editing.evaluation.summary import edit_seconds
from editing.evaluation.tables import as_latex, as_markdown, shown
from editing.metrics.alarms import PASSAGES
from editing.metrics.definitions import GROUPS
from editing.metrics.of_cases import metric_name

SCORES = (
    *("ES", "PS", "NS", "S", "reliability_token_acc", "generalization_token_acc", "locality_agreement"),
    *("specificity_accuracy", "accuracy_S"),
    *(
        metric_name(group, "token_acc")
        for group in ("subject_replace", "reversed_relation", "one_hop", "one_hop_known")
    ),
    *(metric_name(group, "token_acc") for group in ("subject_aliasing", "reasoning", "logical_generalization")),
    *(metric_name(group, "agree") for group in ("other_relation", "distracting_neighborhood")),
    *(metric_name(group, "agree") for group in ("relation_specificity", "forgetfulness")),
    *("other_task_accuracy", "fluency", "consistency", "perplexity_ratio", "edit_wise", "instance_wise", "multi_hop"),
    *("multi_hop_exact", "unanswered"),
)
WHOLE = tuple(
    metric_name(group, statistic)
    for group in GROUPS
    for statistic in ("tf_exact", "gen_exact")
    if not group.startswith(("other", "distracting", "relation", "forget", "neighborhood"))
)
UNEDITED = "unedited"
OF_EDITS = {  # columns behind the scores
    "single": ("edit_seconds", "not editable"),
    "batch": ("edit_seconds", "not editable"),
    "sequential": ("edit_seconds", "not editable", "alarm"),
    HOPS: ("not editable",),
}


@dataclass(frozen=True)
class ShownTable:
    """A table for readers.

    Attributes:
        title: data, protocol and kind of scores.
        source: file and slice that every number in it is of.
        cells: as text; the first column names the editor.
    """

    title: str
    source: str
    cells: pd.DataFrame


def scores_frame(comparison: Comparison) -> pd.DataFrame:
    """Every mean: editor, data, protocol, edits, when, cases, score, mean, half_width, n, last, data_sha256, slice.

    `cases` is "all" or, where some could not be edited, also "editable"; `last` is the mean over a sequence's last
    step, of which `mean` is the retention.
    """
    frames = [_rows(key, evaluation) for key, evaluation in comparison.evaluations.items()]
    columns = ["editor", "data", "protocol", "edits", "when", "cases", "score", "mean", "half_width", "n", "last"]
    return pd.concat(frames, ignore_index=True).loc[:, [*columns, "data_sha256", "slice"]]


def case_records(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """A record for each editor, data file, protocol, number of edits and case.

    "fixed" tells the cases of a sequence's fixed set, whose neighbours are asked at every checkpoint, from its edits.
    """
    scored = [(*one, False) for one in comparison.scored()]
    for key, evaluation in comparison.evaluations.items():
        scored += [(key, point.edits, point.fixed, True) for point in evaluation.checkpoints]
    for (data, protocol, editor), edits, cases, fixed in scored:
        about = {"data": data, "protocol": protocol, "editor": editor, "edits": edits, "fixed": fixed}
        yield from ({**about, **vars(case)} for case in cases)


def shown_tables(comparison: Comparison, frame: pd.DataFrame) -> list[ShownTable]:
    """Scores, then whole answers, of each data file and protocol; then costs. `frame`: from `scores_frame`."""
    frame = frame.loc[frame["cases"] == "all"]
    found = []
    for data, protocol in dict.fromkeys(key[:2] for key in comparison.evaluations):
        rows = frame.loc[(frame["data"] == data) & (frame["protocol"] == protocol)]
        evaluations = {key: one for key, one in comparison.evaluations.items() if key[:2] == (data, protocol)}
        about = next(iter(evaluations.values())).about["data"]
        source = (
            f"{about['benchmark']} (writes {about['target']}), {about['slice']} records, file sha256 "
            + about["file_sha256"]
        )
        for word, names in (("scores", SCORES), ("whole answers", WHOLE)):
            cells = _wide(rows, names)
            if cells is not None:
                if word == "scores":
                    keys = [name for name in ("editor", "edits") if name in cells]
                    extra = _of_edits(evaluations)[[*keys, *OF_EDITS[protocol]]]
                    cells = cells.merge(extra, on=keys, how="left").fillna("")
                read = _passages(evaluations) if "perplexity_ratio" in cells else ""
                found.append(ShownTable(f"{data}, {protocol} edits: {word}", source + read, cells))
    if comparison.costs:
        found.append(_costs(comparison))
    return found


def markdown(tables: Sequence[ShownTable]) -> str:
    """The tables under headings."""
    return "\n\n".join(f"## {one.title}\n\n{one.source}\n\n{as_markdown(one.cells)}" for one in tables) + "\n"


def latex(tables: Sequence[ShownTable]) -> str:
    """The tables as `tabular`s, each behind a comment that says of what."""
    return "\n\n".join(f"% {one.title}; {one.source}\n{as_latex(one.cells)}" for one in tables) + "\n"


def _rows(key: Key, evaluation: Evaluation) -> pd.DataFrame:
    data, protocol, editor = key
    parts = [evaluation.summarised(editable_only=False).assign(cases="all")]
    if evaluation.not_editable:
        parts.append(evaluation.summarised(editable_only=True).assign(cases="editable"))
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True).rename(columns={"size": "edits"})
    fixed = {"editor": editor, "data": data, "protocol": protocol}
    about = evaluation.about["data"]
    fixed |= {"data_sha256": about["file_sha256"], "slice": about["slice"]}
    defaults = {"edits": 1, "when": "after", "last": np.nan}
    return frame.assign(**fixed, **{name: value for name, value in defaults.items() if name not in frame})


def _wide(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame | None:
    """Editors (and numbers of edits) down, scores across, n last; the unedited model first where it was asked."""
    there = [name for name in names if name in set(rows.loc[rows["when"] == "after", "score"])]
    chosen = rows.loc[[score in there for score in rows["score"]]]
    if not there:
        return None
    before = _unedited(chosen.loc[chosen["when"] == "before"])
    whole = pd.concat([before, chosen.loc[chosen["when"] == "after"]])
    keys = ["editor", "edits"] if len(set(rows["edits"])) > 1 else ["editor"]
    whole = whole.assign(
        cell=list(starmap(shown, zip(whole["score"], whole["mean"], whole["half_width"], strict=True)))
    )
    order = whole.drop_duplicates(keys)[keys]
    wide = whole.pivot(index=keys, columns="score", values="cell").reindex(columns=there).fillna("").reset_index()
    counts = whole.groupby(keys)["n"].agg(["min", "max"]).reset_index()
    counts["n"] = [str(low) if low == high else f"{low}-{high}" for low, high in counts[["min", "max"]].to_numpy()]
    merged = order.merge(wide, on=keys).merge(counts[[*keys, "n"]], on=keys)
    return merged.rename_axis(columns=None)


def _unedited(before: pd.DataFrame) -> pd.DataFrame:
    """The unedited model's rows: of the editor with most cases; each editor's where each asks in a way of its own."""
    if set(before["protocol"]) == {HOPS}:
        return before.assign(editor=[f"{UNEDITED}, as {editor} asks" for editor in before["editor"]])
    cases = {editor: 0 for editor in before["editor"]}
    for editor, n in zip(before["editor"], before["n"], strict=True):
        cases[editor] += n
    most = max(cases, key=lambda editor: cases[editor], default="")
    return before.loc[before["editor"] == most].assign(editor=UNEDITED)


def _of_edits(evaluations: Mapping[Key, Evaluation]) -> pd.DataFrame:
    """By editor and number of edits the seconds they took, how many could not be made, and whether the alarm rang."""
    rows = []
    for (_, _, editor), evaluation in evaluations.items():
        if evaluation.cases:
            rows.append((editor, 1, _seconds(evaluation.cases), str(evaluation.not_editable), ""))
        for size, cases in evaluation.batches.items():
            written = [case.seconds for case in cases if case.editable]
            total = sum(written)
            said = f"{total / len(written):.3g}, {total:.3g} in all" if total > 0 else ""
            rows.append((editor, size, said, _not_editable(cases), ""))
        for point in evaluation.checkpoints:
            alarm = "collapsed" if point.text.collapsed else "no"
            rows.append((editor, point.edits, _seconds(point.scores), _not_editable(point.scores), alarm))
    return pd.DataFrame(rows, columns=pd.Index(["editor", "edits", "edit_seconds", "not editable", "alarm"]))


def _passages(evaluations: Mapping[Key, Evaluation]) -> str:
    """How many passages the perplexity is over, in words: ratios over others are others."""
    asked = (one.about.get("questions", {}).get("text") for one in evaluations.values() if not one.checkpoints)
    read = {*filter(None, asked), *(len(PASSAGES) for one in evaluations.values() if one.checkpoints)}
    return f"; perplexity over {' or '.join(map(str, sorted(read)))} of {len(PASSAGES)} passages" if read else ""


def _seconds(cases: Sequence[CaseScores]) -> str:
    """Median and quartiles; "" where no time is known."""
    median, low, high, n = edit_seconds(cases)
    together = max((case.together for case in cases), default=1)
    share = f", a share of {together} at once" if together > 1 else ""
    return f"{median:.3g} ({low:.3g} to {high:.3g}){share}" if n else ""


def _not_editable(cases: Sequence[CaseScores]) -> str:
    return str(sum(not case.editable for case in cases))


def _costs(comparison: Comparison) -> ShownTable:
    costs = comparison.costs
    trained = any(cost.get(name, 0) != 0 for cost in costs.values() for name in OF_TRAINING)
    names = ["edit_seconds", "one_off_seconds", "peak_bytes", "absolute_peak_bytes", "persistent_bytes"]
    names += ["latency_ratio", *(OF_TRAINING if trained else ())]
    rows = [
        [editor, *(_number(cost.get(name)) for name in names), str(cost["edits"])] for editor, cost in costs.items()
    ]
    memory = ", ".join(dict.fromkeys(cost["memory"] for cost in costs.values()))
    about = comparison.about["model"]
    source = f"{about['name']}, {about['dtype']} on {about['device']}, {about['threads']} threads; memory: {memory}"
    source += "; edits one at a time"
    source += f"; {' and '.join(OF_TRAINING)} as the training's folder says, not measured here" if trained else ""
    warm = [editor for editor, cost in costs.items() if not cost.get("cold")]
    source += f"; one_off_seconds of {', '.join(warm)} with the cache as it was (--cold empties it)" if warm else ""
    beside = {cost.get("workers", 0): None for cost in costs.values() if cost.get("workers", 0) > 1}
    source += f"; measured while {' or '.join(map(str, beside))} workers ran" if beside else ""
    return ShownTable("costs", source, pd.DataFrame(rows, columns=pd.Index(["editor", *names, "n"])))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
