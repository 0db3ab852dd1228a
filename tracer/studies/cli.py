"""The commands about studies: study, paired, compare, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tracer.console import (
    AsJson,
    Backend,
    DecoderStarts,
    Device,
    Dtype,
    Model,
    Out,
    Quiet,
    Samples,
    Threads,
    Window,
    Workers,
    opened,
    reported,
    result,
    run_folder,
    show_progress,
)
from tracer.facts import bundled, read_facts, spread_over_relations
from tracer.model import DEFAULT_MODEL
from tracer.options import (
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
from tracer.plan import Plan
from tracer.storage import atomic_path
from tracer.studies.compare import compare as side_by_side
from tracer.studies.components import sample_components
from tracer.studies.paired import paired_tests
from tracer.studies.run import run_study
from tracer.studies.study import Study
from tracer.studies.table import average_frame

Run = Annotated[Path, typer.Argument(help="The folder of a study.")]
Runs = Annotated[list[Path], typer.Argument(help="Folders of studies.")]


def study(
    facts: Facts = None,
    out: Out = None,
    n: Annotated[int | None, typer.Option(min=1, help="Stop after this many facts; default: all.")] = None,
    until_ci: Annotated[
        float | None, typer.Option(help="Stop when every peak's 95 % interval is narrower than ± this, e.g. 0.01.")
    ] = None,
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
    engine: EngineOption = "sweep",
    all_facts: Annotated[bool, typer.Option("--all-facts", help="Also facts the model does not predict.")] = False,
    workers: Workers = 0,
    backend: Backend = "local",
    threads: Threads = None,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = "float32",
    decoder_starts: DecoderStarts = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Trace many facts into a folder; run it again and it goes on where it stopped."""
    with reported():
        chosen = read_facts(facts) if facts else spread_over_relations(bundled())
        plan = Plan(
            kinds=names(kinds),
            severed=severed_paths(severed),
            groups=token_groups(groups),
            window=window,
            samples=samples,
            seed=seed,
            corruption=corruption,
            engine=engine,
            metric=metric,
            direction=direction,
            whole_answer=whole_answer,
        )
        source = facts.name if facts else "bundled"
        found = run_study(
            opened(model, device, dtype, decoder_starts),
            chosen,
            run_folder(out, f"study {source} {Path(model).name}"),
            plan=plan,
            known_only=not all_facts,
            most=n,
            until_ci=until_ci,
            workers=workers,
            backend=backend,
            threads=threads,
            source=source,
            progress=show_progress(quiet),
        )
        table = average_frame(found.average)  # or the error that says why nothing was traced
        with atomic_path(found.folder / "average.csv") as path:
            table.to_csv(path, index=False)
        result(_record(found), _summary(found), as_json=as_json)


def paired(
    run: Run,
    first: Annotated[str, typer.Option(help="A map.")] = "mlp",
    second: Annotated[str, typer.Option(help="The map to compare it with.")] = "attn",
    method: Annotated[
        Any, typer.Option(parser=str, metavar="NAME", help="sign-flip or bootstrap, over facts.")
    ] = "sign-flip",
    out: Annotated[Path | None, typer.Option(help="A CSV file for the whole table.")] = None,
    as_json: AsJson = False,
) -> None:
    """Test whether two maps differ, by role and layer, with Holm's correction over the layers."""
    with reported():
        table = paired_tests(Study.open(run).average, first, second, method=method)
        if out:
            with atomic_path(out) as path:
                table.to_csv(path, index=False)
        columns = ["role", "layer", "difference", "low", "high", "p", "p_holm", "n"]
        text = table[columns].round(4).to_string(index=False)
        result({"tests": table.to_dict("records")}, f"{first} - {second}, {method}\n{text}", as_json=as_json)


def compare(
    runs: Runs,
    shared: Annotated[bool, typer.Option("--shared", help="Only facts that all of them traced.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the peaks of several studies side by side, by relative depth."""
    with reported():
        folders = [run.name for run in runs]
        named = {run.name if folders.count(run.name) == 1 else str(run): Study.open(run) for run in runs}
        table = side_by_side(named, shared=shared)
        record = [
            {"kind": kind, "role": role, **{f"{name}.{key}": value for (name, key), value in row.items()}}
            for (kind, role), row in table.to_dict("index").items()
        ]
        result({"peaks": record}, table.round(3).to_string(), as_json=as_json)


def report(
    runs: Runs,
    out: Annotated[Path | None, typer.Option(help="The page; default report.html in the first folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one web page that shows every fact of a study; it needs no network."""
    from tracer.studies.report import save_report  # which reads plotly's script, some MB

    with reported():
        path = save_report([Study.open(run) for run in runs], out or runs[0] / "report.html")
        result({"files": [str(path)]}, str(path), as_json=as_json)


def _record(found: Study) -> dict[str, Any]:
    about: dict[str, Any] = {"folder": str(found.folder), "facts": found.manifest.counts()}
    about["left_out"] = [[entry.fact.prompt, entry.reason] for entry in found.left_out]
    peaks = {kind: found.average.peak(kind) for kind in found.average.effects}
    about["total_effect"] = vars(found.average.total_effect)
    about["peaks"] = {kind: {"role": role, "layer": at, **vars(aie)} for kind, (role, at, aie) in peaks.items()}
    return about


def _summary(found: Study) -> str:
    """What was found, in a few lines."""
    lines = [str(found), f"ATE {found.average.total_effect}"]
    for kind in found.average.effects:
        role, at, aie = found.average.peak(kind)
        lines.append(f"{kind:>19}: AIE {aie} at layer {at}, {role}")
    first = next(iter(found.average.effects))
    if found.average.peak(first)[2].n > 1 and found.manifest.settings["plan"]["samples"] > 1:
        lines.append(str(sample_components(found, first)))
    return "\n".join([*lines, str(found.folder / "average.csv")])
