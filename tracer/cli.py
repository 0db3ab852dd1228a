"""The `tracer` command: trace one fact, average many, locate the layer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import typer

import tracer
from tracer.console import (
    AsJson,
    DecoderStarts,
    Device,
    Dtype,
    Model,
    Out,
    Prompt,
    Quiet,
    Samples,
    Subject,
    SubjectAt,
    Window,
    opened,
    reported,
    result,
    run_folder,
    show_progress,
)
from tracer.effect import AverageTrace, TraceResult
from tracer.errors import SiteError
from tracer.facts import bundled, read_facts, spread_over_relations
from tracer.metric import METRIC_WORDS
from tracer.model import DEFAULT_MODEL
from tracer.options import (
    Answer,
    CorruptionOption,
    DirectionOption,
    EngineOption,
    Facts,
    GroupsOption,
    KindsOption,
    MetricOption,
    Seed,
    SeveredOption,
    WholeAnswer,
    names,
    severed_paths,
    token_groups,
)
from tracer.site import Kind
from tracer.studies import cli as studies
from tracer.studies.locating import FACTS_TO_LOCATE
from tracer.studies.study import saved_average

app = typer.Typer(
    help="Where does a language model keep a fact? Causal tracing, exact and fast.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (studies.study, studies.paired, studies.compare, studies.report):
    app.command()(command)


@app.command()
def tokens(
    prompt: Prompt,
    subject: Subject,
    subject_at: SubjectAt = None,
    answer: Answer = None,
    model: Model = DEFAULT_MODEL,
    decoder_starts: DecoderStarts = None,
    as_json: AsJson = False,
) -> None:
    """Show what the model will see: tokens, subject, BOS, answer token."""
    with reported():
        fact = tracer.Fact(prompt, subject, answer, subject_at=subject_at)
        tokenized = fact.preflight(opened(model, "cpu", "float32", decoder_starts), warn=False)
        result(dataclasses.asdict(tokenized), str(tokenized), as_json=as_json)


@app.command()
def trace(
    prompt: Prompt,
    subject: Subject,
    subject_at: SubjectAt = None,
    answer: Answer = None,
    other: Annotated[str | None, typer.Option(help="Another answer, for --metric logit_difference.")] = None,
    kinds: KindsOption = "state,mlp,attn",
    severed: SeveredOption = "",
    groups: GroupsOption = "",
    window: Window = 10,
    samples: Samples = 10,
    seed: Seed = 1,
    corruption: CorruptionOption = "gaussian",
    metric: MetricOption = "probability",
    direction: DirectionOption = "restore",
    whole_answer: WholeAnswer = False,
    engine: EngineOption = "sweep",
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = "float32",
    decoder_starts: DecoderStarts = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Trace one fact: heatmaps (PNG, HTML) and all numbers (safetensors, CSV)."""
    with reported():
        fact = tracer.Fact(prompt, subject, answer, subject_at=subject_at, other=other)
        found = tracer.trace(
            opened(model, device, dtype, decoder_starts),
            fact,
            kinds=names(kinds),
            severed=severed_paths(severed),
            groups=token_groups(groups),
            window=window,
            samples=samples,
            seed=seed,
            engine=engine,
            corruption=corruption,
            metric=metric,
            direction=direction,
            whole_answer=whole_answer,
            progress=show_progress(quiet),
        )
        paths = save_trace(found, run_folder(out, f"trace {prompt}"))
        record = {
            "answer": found.answer,
            "clean": found.clean,
            "corrupted": found.corrupted,
            "total_effect": found.total_effect,
            "peaks": {kind: _peak(found, kind) for kind in found.restored},
            "groups": _group_peaks(found),
            "files": list(map(str, paths)),
        }
        lines = [
            f"{fact.prompt}{found.answer}",
            f"{METRIC_WORDS[metric]}: clean {found.clean:.3f}, corrupted {found.corrupted:.3f}; "
            f"total effect {found.total_effect:+.3f}",
        ]
        for kind, peak in record["peaks"].items():
            lines.append(f"{kind:>19}: IE {peak['effect']:+.3f} at layer {peak['layer']}, token {peak['text']!r}")
        result(record, "\n".join([*lines, *_group_lines(found, "IE"), *map(str, paths)]), as_json=as_json)


@app.command()
def average(
    facts: Facts = None,
    n: Annotated[int, typer.Option(min=1, help="Facts to trace, of those that the model predicts.")] = 50,
    kinds: KindsOption = "state,mlp,attn",
    severed: SeveredOption = "mlp",
    groups: GroupsOption = "",
    window: Window = 10,
    samples: Samples = 10,
    seed: Seed = 1,
    corruption: CorruptionOption = "gaussian",
    metric: MetricOption = "probability",
    direction: DirectionOption = "restore",
    whole_answer: WholeAnswer = False,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = "float32",
    decoder_starts: DecoderStarts = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Average many facts by token role; a run that was stopped goes on where it was."""
    with reported():
        chosen = read_facts(facts) if facts else spread_over_relations(bundled())
        folder = run_folder(out, f"average {facts.stem if facts else 'bundled'} {Path(model).name}")
        found = tracer.average(
            opened(model, device, dtype, decoder_starts),
            chosen,
            kinds=names(kinds),
            severed=severed_paths(severed),
            groups=token_groups(groups),
            window=window,
            samples=samples,
            seed=seed,
            corruption=corruption,
            metric=metric,
            direction=direction,
            whole_answer=whole_answer,
            most=n,
            folder=folder / "facts",
            progress=show_progress(quiet),
        )
        paths = save_average(found, folder)
        peaks = {kind: found.peak(kind) for kind in found.effects}
        record = {
            "facts": found.n,
            "skipped": found.skipped,
            "total_effect": vars(found.total_effect),
            "peaks": {kind: {"role": role, "layer": at, **vars(aie)} for kind, (role, at, aie) in peaks.items()},
            "groups": _group_peaks(found),
            "files": list(map(str, paths)),
        }
        lines = [f"{found.n} facts, {len(found.skipped)} left out; ATE {found.total_effect}"]
        lines += [f"{kind:>19}: AIE {aie} at layer {at}, {role}" for kind, (role, at, aie) in peaks.items()]
        result(record, "\n".join([*lines, *_group_lines(found, "AIE"), *map(str, paths)]), as_json=as_json)


@app.command()
def locate(
    source: Annotated[
        Path | None, typer.Argument(help="A saved average or a study's folder; default: trace bundled facts now.")
    ] = None,
    kind: Annotated[str, typer.Option(help="The map to look at.")] = "mlp",
    role: Annotated[str, typer.Option(help="The token to look at.")] = "last subject token",
    n: Annotated[int, typer.Option(min=1, help="Facts to trace, if none are given.")] = FACTS_TO_LOCATE,
    window: Annotated[int | None, typer.Option(min=1, help="Default: as 10 are to 48 layers.")] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = "float32",
    decoder_starts: DecoderStarts = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say which layer to edit, and how sure that is."""
    with reported():
        if source is not None:
            if window is not None:
                raise SiteError("A saved average has its own window. Leave --window out, or give it to tracer average.")
            found = saved_average(source)
        else:
            opened_model = opened(model, device, dtype, decoder_starts)
            found = tracer.average_to_locate(
                opened_model, kind=cast(Kind, kind), role=role, most=n, window=window, progress=show_progress(quiet)
            )
        place = tracer.locate(found, kind=kind, role=role)
        table = place.to_frame().round(3).to_string(index=False)
        result(place.record(), f"{place}\n{place.describe()}\n{table}", as_json=as_json)


def save_trace(found: TraceResult, folder: Path) -> list[Path]:
    """Writes figures and numbers of a trace; returns their paths."""
    from tracer.plot import plot_trace, save_figure
    from tracer.plot.interactive import hover_trace, save_html

    found.save(folder / "trace.safetensors")
    found.to_frame().to_csv(folder / "trace.csv", index=False)
    more = _save_groups(found, folder)
    image = save_figure(plot_trace(found), folder / "trace.png")
    page = save_html(hover_trace(found), folder / "trace.html")
    return [image, page, folder / "trace.csv", *more, folder / "trace.safetensors"]


def save_average(found: AverageTrace, folder: Path) -> list[Path]:
    """Writes figures and numbers of an average; returns their paths."""
    from tracer.plot import plot_average, plot_severed, save_figure
    from tracer.plot.interactive import hover_average, save_html

    found.save(folder / "average.safetensors")
    found.to_frame().to_csv(folder / "average.csv", index=False)
    paths = [save_figure(plot_average(found), folder / "average.png")]
    if "state" in found.effects and any(name.endswith("severed") for name in found.effects):
        paths.append(save_figure(plot_severed(found), folder / "severed.png"))
    page = save_html(hover_average(found), folder / "average.html")
    return [*paths, page, folder / "average.csv", *_save_groups(found, folder), folder / "average.safetensors"]


def _save_groups(found: TraceResult | AverageTrace, folder: Path) -> list[Path]:
    if not found.groups:
        return []
    found.groups_to_frame().to_csv(folder / "groups.csv", index=False)
    return [folder / "groups.csv"]


def _group_peaks(found: TraceResult | AverageTrace) -> dict[str, dict[str, dict[str, float]]]:
    """For each map and group the layer where restoring the group does most to carry the answer."""
    peaks: dict[str, dict[str, dict[str, float]]] = {}
    for kind, effect in found.group_effect.items():
        peaks[kind] = {}
        for group, row in zip(found.groups, effect, strict=True):
            if not np.isnan(row).all():
                layer = int(np.nanargmax(found.settings.sense * row))
                peaks[kind][group] = {"layer": layer, "effect": float(row[layer])}
    return peaks


def _group_lines(found: TraceResult | AverageTrace, effect: str) -> list[str]:
    return [
        f"{kind:>19}: {effect} {peak['effect']:+.3f} at layer {peak['layer']}, {group} together"
        for kind, peaks in _group_peaks(found).items()
        for group, peak in peaks.items()
    ]


def _peak(found: TraceResult, kind: str) -> dict[str, float | int | str]:
    effect = found.indirect_effect[kind]
    token, layer = divmod(int(np.nanargmax(found.settings.sense * effect)), effect.shape[1])
    return {"token": token, "text": found.tokens[token], "layer": layer, "effect": float(effect[token, layer])}


if __name__ == "__main__":
    app()
