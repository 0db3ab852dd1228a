"""One web page of a study: every fact under the pointer, the average with its intervals, what was left out.

The page is `report.html` with plotly's script and the numbers put in, so it works without a network.
Effects are written as whole numbers of 1/10000, which keeps a page of 400 facts at some megabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from tracer.effect import TraceResult
from tracer.effect.estimate import own_layers
from tracer.errors import FileFormatError, StudyError
from tracer.fact import ROLES
from tracer.metric import METRIC_WORDS
from tracer.plot import COLOURS
from tracer.plot.labels import chosen_maps, map_family, map_words, token_labels
from tracer.storage import atomic_path
from tracer.studies.study import Study
from tracer.studies.table import bootstrap
from tracer.web_page import UNIT, filled, script_json


def save_report(studies: Sequence[Study], path: str | Path) -> Path:
    """Writes a page on which a reader picks study, fact and map; whole or not at all.

    Args:
        studies: one or more with traced facts, e.g. of two models or metrics.
        path: ends in .html.

    Raises:
        FileFormatError: another suffix.
        StudyError: a study without a traced fact.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise FileFormatError(f"A web page cannot be saved as {path.name!r}. End its name in .html.")
    if not studies:
        raise StudyError("No studies to report. Give the folder of one.")
    page = report_page([report_data(study) for study in studies])
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def report_page(data: Sequence[dict[str, Any]]) -> str:
    """The page that shows these studies."""
    template = files("tracer.studies").joinpath("report.html").read_text(encoding="utf-8")
    return filled(template, {"plotly": get_plotlyjs(), "data": script_json({"unit": UNIT, "studies": data})})


def report_data(study: Study) -> dict[str, Any]:
    """What the page shows of a study, as JSON values; effects in 1/10000, null where not traced."""
    average = study.average  # raises where nothing is traced
    settings = average.settings
    sign = settings.sense  # nearer to the clean run counts as positive
    kinds = [*chosen_maps(average.effects, None)]
    kinds += [kind for kind in average.effects if kind not in kinds]
    return {
        "name": study.folder.resolve().name,
        "model": settings.model,
        "metric": METRIC_WORDS[settings.metric],
        "doing": "corrupting" if settings.direction == "corrupt" else "restoring",
        "corruption": settings.corruption,
        "samples": settings.samples,
        "window": settings.window,
        "listed": len(study.manifest.facts),
        "total": _estimate(sign * (average.clean - average.corrupted)),
        "kinds": [
            {"name": kind, "words": map_words(kind, settings.window), "colours": COLOURS[map_family(kind)]}
            for kind in kinds
        ],
        "roles": list(ROLES),
        "average": {kind: average_rows(sign * average.effects[kind]) for kind in kinds},
        "facts": [_fact(study, number, trace, kinds, sign) for number, trace in study.traces()],
        "left_out": [
            {"prompt": entry.fact.prompt, "answer": entry.fact.answer, "status": entry.status, "reason": entry.reason}
            for entry in study.left_out
        ],
    }


def _fact(study: Study, number: int, trace: TraceResult, kinds: Sequence[str], sign: int) -> dict[str, Any]:
    effects, errors = trace.indirect_effect, trace.standard_error
    return {
        "number": number,
        "prompt": trace.fact.text,
        "subject": study.manifest.facts[number].fact.subject,
        "relation": study.manifest.facts[number].fact.relation,
        "answer": trace.answer.strip(),
        "clean": trace.clean,
        "corrupted": trace.corrupted,
        "total": sign * trace.total_effect,
        "tokens": token_labels(trace),
        "roles": [role or "before the subject" for role in trace.roles],
        "maps": {kind: {"effect": _whole(sign * effects[kind]), "error": _whole(errors[kind])} for kind in kinds},
    }


def average_rows(effects: np.ndarray) -> dict[str, Any]:
    """Rows of roles, with their 95 % percentile intervals and numbers of facts; null where no fact has the role.

    A layer of the stack that does not read the role's tokens is None.
    """
    rows = []
    for row in range(len(ROLES)):
        layers = own_layers(effects[:, row])
        known = effects[:, row, layers]
        known = known[~np.isnan(known).any(1)]
        if not len(layers):
            rows.append(None)
            continue
        wide = np.full((3, effects.shape[2]), np.nan)
        wide[:, layers] = known.mean(0), *bootstrap(known)
        mean, low, high = map(_whole, wide)
        rows.append({"effect": mean, "low": low, "high": high, "n": len(known)})
    return {"rows": rows}


def _estimate(values: np.ndarray) -> dict[str, Any]:
    low, high = bootstrap(values)
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}


def _whole(values: np.ndarray) -> Any:
    """Nested lists of whole numbers, NaN as None."""
    if values.ndim > 1:
        return [_whole(row) for row in values]
    return [None if np.isnan(value) else round(float(value) * UNIT) for value in values]
