"""The command `editing compare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from editing.comparison.compare import compare as run_comparison
from editing.comparison.entrant import entrants, read_settings
from editing.comparison.files import Reading, read_files
from editing.comparison.folder import Comparison
from editing.comparison.plan import TEXT, ComparisonPlan
from editing.comparison.saving import save_comparison
from editing.comparison.tables import ShownTable
from editing.datasets.choices import read_choices
from editing.editors import EDITORS
from editing.errors import EvaluationError
from editing.evaluation.cli_options import (
    ALL_CHECKPOINTS,
    KL,
    Checkpoints,
    Choices,
    ChoicesACase,
    Evenly,
    Factor,
    Free,
    Groups,
    KnownHops,
    Sizes,
    SnippetsOption,
    Step,
    Stop,
    Text,
    Writing,
    told_snippets,
)
from editing.evaluation.examination import Questions
from editing.evaluation.run import ProtocolName
from editing.evaluation.sequential import SequentialPlan
from editing.evaluation.tables import as_markdown
from editing.located_layer import located_layer
from editing.metrics.alarms import FACTOR
from editing.options import Seed, listed_numbers, named_values
from tracer.console import (
    AsJson,
    Backend,
    DecoderStarts,
    Device,
    Dtype,
    Model,
    Out,
    Quiet,
    Threads,
    Workers,
    opened,
    reported,
    result,
    run_folder,
    show_progress,
)
from tracer.model import DEFAULT_MODEL
from tracer.options import names

# Options about cases of one edit, and of how such edits are made.
NOT_OF_HOPS = (
    *("protocols", "batch", "step", "checkpoints", "factor", "stop"),
    *("benchmark", "groups", "choices", "choices_a_case"),
    *("free", "kl", "text", "known_hops", "writing", "snippets"),
)


def compare(
    context: typer.Context,
    data: Annotated[list[Path], typer.Option(help="CounterFact, zsRE, KnowEdit or MQuAKE file; repeatable.")],
    editors: Annotated[
        str, typer.Option(help=f"all, or some of {', '.join(EDITORS)} and tables of --settings.")
    ] = "all",
    n: Annotated[int | None, typer.Option(min=1, help="Records of each file; default: all.")] = None,
    evenly: Evenly = False,
    benchmark: Annotated[
        str | None, typer.Option(help="Of zsRE files: zsre (true answers) or zsre-survey (false ones).")
    ] = None,
    protocols: Annotated[str, typer.Option(help="Of single, batch, sequential; comma-separated.")] = "single",
    layer: Annotated[
        int | None, typer.Option(help="For editors that need one and are told none; default: located by tracing.")
    ] = None,
    settings: Annotated[Path | None, typer.Option(help="TOML or JSON, a table for each editor.")] = None,
    given: Annotated[
        list[str] | None, typer.Option("--set", help="Another setting, EDITOR.NAME=VALUE; repeatable.")
    ] = None,
    batch: Sizes = "1,10,100",
    step: Step = 1,
    checkpoints: Checkpoints = ALL_CHECKPOINTS,
    factor: Factor = FACTOR,
    stop: Stop = False,
    together: Annotated[int, typer.Option(min=1, help="Cases of MQuAKE whose edits live together.")] = 1,
    groups: Groups = None,
    choices: Choices = None,
    choices_a_case: ChoicesACase = 5,
    free: Free = True,
    kl: KL = True,
    text: Text = TEXT,
    known_hops: KnownHops = False,
    writing: Writing = False,
    snippets: SnippetsOption = None,
    costs: Annotated[bool, typer.Option("--costs/--no-costs", help="Also time, memory and bytes.")] = True,
    cold: Annotated[
        bool, typer.Option("--cold", help="Measure costs with an empty cache: each editor makes its own statistics.")
    ] = False,
    seed: Seed = 0,
    workers: Workers = 0,
    backend: Backend = "local",
    threads: Threads = None,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = "float32",
    decoder_starts: DecoderStarts = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run editors beside each other; stopped or killed, the same command goes on where it was."""
    with reported():
        tables = _with_settings(read_settings(settings) if settings else {}, given or [])
        takes_part = entrants(names(editors), layer=layer, tables=tables)
        several = _protocols(protocols)
        reading = Reading(
            n=n,
            evenly=evenly,
            benchmark=benchmark,
            together=several != ("single",),
            groups=names(groups or ""),
            choices=read_choices(choices) if choices else (),
            choices_a_case=choices_a_case,
            hops_together=together,
        )
        files = read_files(data, reading, not_of_hops=_written(context, NOT_OF_HOPS))
        plan = ComparisonPlan(
            protocols=several,
            sizes=listed_numbers(batch, "--batch"),
            sequence=SequentialPlan(
                checkpoints=listed_numbers(checkpoints, "--checkpoints"), step=step, factor=factor, stop=stop
            ),
            questions=Questions(
                free=free,
                kl=kl,
                text=text,
                known_hops=known_hops,
                writing=writing,
                snippets=told_snippets(snippets, writing),
                seed=seed,
            ),
            costs=costs,
            cold=cold,
            seed=seed,
        )
        where = run_folder(out, f"compare {Path(model).name}")
        opened_model = opened(model, device, dtype, decoder_starts)
        if any(one.lacks_layer for one in takes_part):
            located = located_layer(opened_model, progress=show_progress(quiet))
            takes_part = [dataclasses.replace(one, layer=located) if one.lacks_layer else one for one in takes_part]
        if layer is not None:
            opened_model.anatomy.check_layer(layer)
        for one in takes_part:
            one.check_layers(opened_model)
        found = run_comparison(
            opened_model,
            takes_part,
            files,
            where,
            plan=plan,
            workers=workers,
            backend=backend,
            threads=threads,
            progress=show_progress(quiet),
        )
        paths, told = save_comparison(found)
        record = {"folder": str(where), "editors": found.editors, "left_out": found.about["left_out"]}
        result(record | {"files": list(map(str, paths))}, _told(found, told, paths), as_json=as_json)


def _told(found: Comparison, tables: Sequence[ShownTable], paths: Sequence[Path]) -> str:
    lines = [f"{one.title}\n{as_markdown(one.cells)}\n" for one in tables]
    lines += [f"left out: {one['editor']} ({one['what']}): {one['reason']}" for one in found.about["left_out"]]
    return "\n".join([*lines, *map(str, paths)])


def _written(context: typer.Context, names: Sequence[str]) -> list[str]:
    """Those of these options that the user wrote, as on the command line."""
    found = []
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            found.append(f"--{'no-' if context.params[name] is False else ''}{name.replace('_', '-')}")
    return found


def _with_settings(tables: dict[str, dict[str, Any]], given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The tables of the file with what --set EDITOR.NAME=VALUE adds."""
    for name, value in named_values(given).items():
        editor, dot, setting = name.partition(".")
        if not dot:
            raise EvaluationError(f"--set {name}: of which editor? Write --set memit.{name}={value}.")
        tables.setdefault(editor, {})[setting] = value
    return tables


def _protocols(listed: str) -> tuple[ProtocolName, ...]:
    chosen = tuple(name for name in get_args(ProtocolName) if name in names(listed))
    if not chosen or set(names(listed)) - set(chosen):
        raise EvaluationError(f"--protocols {listed!r}: choose from {', '.join(get_args(ProtocolName))}.")
    return chosen
