"""The command `editing recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editing.comparison.folder import read_comparison
from editing.comparison.properties import PROPERTIES
from editing.comparison.recommend import Recommendation
from editing.comparison.recommend import recommend as rank
from editing.errors import EvaluationError
from tracer.console import AsJson, reported, result
from tracer.options import names

Folder = Annotated[Path, typer.Argument(help="The folder of a comparison.")]


def recommend(
    folder: Folder,
    weights: Annotated[
        str, typer.Option(help=f"PROPERTY=WEIGHT, comma-separated. Properties: {', '.join(PROPERTIES)}.")
    ] = "reliability=1,generalization=1,locality=1",
    seed: Annotated[int, typer.Option(min=0, help="Of the resampled cases.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Rank the editors of a comparison by what matters to you; intervals are over resampled cases."""
    with reported():
        comparison = read_comparison(folder)
        found = rank(comparison, _weights(weights), seed=seed)
        model = comparison.about["model"]["name"]
        record = {
            "model": model,
            "editors": found.to_frame().to_dict("records"),
            "weights": dict(found.weights),
            "not_measured": list(found.not_measured),
            "not_ranked": dict(found.not_ranked),
            "unedited": {name: 100 * value for name, value in found.unedited.items()},
            "cases": dict(found.cases),
        }
        result(record, f"{_ranking(found)}\nmodel: {model}", as_json=as_json)


def _ranking(found: Recommendation) -> str:
    frame = found.to_frame()
    frame.insert(0, "", [str(place) for place in range(1, len(frame) + 1)])
    known = frame["low"].notna().to_list()
    interval = [
        f"{low:.1f} to {high:.1f}" if there and high > low else ""  # cases that all say the same show no spread
        for low, high, there in zip(frame["low"], frame["high"], known, strict=True)
    ]
    frame = frame.drop(columns=["low", "high"]).round(1)
    frame.insert(3, "95 %", interval)
    frame["first"] = [f"{share:.0f} %" if there else "" for share, there in zip(frame["first"], known, strict=True)]
    cases = ", ".join(f"{n} of {data}" for data, n in found.cases.items())
    resampled = [f"first: share of resamples of the cases ({cases}) it wins"] if cases else []
    if not cases:
        frame = frame.drop(columns=["95 %", "first"])
    lines = [frame.to_string(index=False), "", *resampled]
    if found.unedited:
        said = ", ".join(f"{name} {100 * value:.1f}" for name, value in found.unedited.items())
        lines.append(f"the unedited model has {said}: what counts for an editor is what it adds")
    lines += [f"{name} ({weight:g}): {PROPERTIES[name].said}" for name, weight in found.weights.items()]
    lines += [
        f"{name}: NOT MEASURED here ({PROPERTIES[name].said}), and left out of the score" for name in found.not_measured
    ]
    return "\n".join(lines + [f"{editor} is not ranked; it lacks {what}" for editor, what in found.not_ranked.items()])


def _weights(listed: str) -> dict[str, float]:
    found = {}
    for one in names(listed):
        name, weight = (part.strip() for part in one.partition("=")[::2])
        if name in found:
            raise EvaluationError(f"--weights gives {name} twice. Write it once.")
        try:
            found[name] = float(weight)
        except ValueError as error:
            raise EvaluationError(
                f"--weights {one!r}: {weight!r} is no number. Write {name}=1, several with commas between."
            ) from error
    return found
