"""The command `editing evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from editing.datasets.benchmarks import BENCHMARKS, read_benchmark
from editing.datasets.choices import read_choices
from editing.editors import check_settings, editor_named
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
from editing.evaluation.manifest import MANIFEST, threads_before
from editing.evaluation.records import Evaluation
from editing.evaluation.run import check_protocol
from editing.evaluation.run import evaluate as run_evaluation
from editing.evaluation.sequential import SequentialPlan
from editing.evaluation.summary import edit_seconds
from editing.evaluation.tables import readable
from editing.located_layer import layer_for
from editing.metrics.alarms import FACTOR
from editing.options import EditorName, Layer, Seed, Settings, listed_numbers, named_values
from tracer.console import (
    AsJson,
    DecoderStarts,
    Device,
    Dtype,
    Model,
    Out,
    Quiet,
    Threads,
    opened,
    reported,
    result,
    run_folder,
    show_progress,
)
from tracer.model import DEFAULT_MODEL
from tracer.options import names
from tracer.workers import torch_threads


def evaluate(
    data: Annotated[Path, typer.Option(help="A CounterFact (also flat), zsRE or KnowEdit file, also gzipped.")],
    editor: EditorName = "r-rome",
    n: Annotated[int | None, typer.Option(min=1, help="Records; default: all.")] = None,
    evenly: Evenly = False,
    protocol: Annotated[Any, typer.Option(parser=str, metavar="NAME", help="single, batch or sequential.")] = "single",
    benchmark: Annotated[
        str | None, typer.Option(help=f"{', '.join(BENCHMARKS)}; default: the file's, and zsre's true answers.")
    ] = None,
    layer: Layer = None,
    settings: Settings = None,
    batch: Sizes = "1,10,100",
    step: Step = 1,
    checkpoints: Checkpoints = ALL_CHECKPOINTS,
    factor: Factor = FACTOR,
    stop: Stop = False,
    free: Free = True,
    kl: KL = True,
    text: Text = 0,
    known_hops: KnownHops = False,
    choices: Choices = None,
    choices_a_case: ChoicesACase = 5,
    groups: Groups = None,
    writing: Writing = False,
    snippets: SnippetsOption = None,
    seed: Seed = 0,
    threads: Threads = None,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = "float32",
    decoder_starts: DecoderStarts = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score an editor on a benchmark; stopped or killed, the same command goes on where it was."""
    with reported():
        check_protocol(protocol)
        sizes = listed_numbers(batch, "--batch")
        points = listed_numbers(checkpoints, "--checkpoints")
        plan = SequentialPlan(checkpoints=points, step=step, factor=factor, stop=stop)
        chosen, references = named_values(settings or []), told_snippets(snippets, writing)
        check_settings(editor, chosen)
        cases = read_benchmark(data, n=n, evenly=evenly, benchmark=benchmark, together=protocol != "single")
        cases = cases.only(names(groups)) if groups else cases
        cases = cases.asking(read_choices(choices), choices_a_case) if choices else cases
        where = run_folder(out, f"evaluate {protocol} {editor} {cases.name} {Path(model).name}")
        opened_model = opened(model, device, dtype, decoder_starts)
        layer = layer_for(editor, opened_model, layer, chosen, progress=show_progress(quiet))
        before = threads_before(where / MANIFEST, "evaluation")
        with torch_threads(threads or before or torch.get_num_threads()):
            found = run_evaluation(
                opened_model,
                editor_named(editor, opened_model, layer, **chosen),
                cases,
                where,
                protocol=protocol,
                sizes=sizes,
                plan=plan,
                questions=Questions(
                    free=free,
                    kl=kl,
                    text=text,
                    known_hops=known_hops,
                    writing=writing,
                    snippets=references,
                    seed=seed,
                ),
                seed=seed,
                progress=show_progress(quiet),
            )
        paths = [str(path) for path in found.save()]
        record = {"folder": str(where), "scores": found.table.to_dict("records"), "files": paths}
        record["not_editable"] = found.not_editable
        result(record, _told(found, paths), as_json=as_json)


def _told(found: Evaluation, paths: list[str]) -> str:
    lines = [readable(found.table).to_string(index=False)]
    if found.not_editable:
        lines.append(f"{found.not_editable} cases could not be edited and count as failures; table.md has both ways.")
    if conflicts := found.about["data"]["conflicts"]:
        lines.append(f"{len(conflicts)} cases left out, which edit a fact twice: {'; '.join(conflicts[:3])} ...")
    if found.checkpoints and found.checkpoints[-1].stopped:
        lines.append(f"Stopped after {found.checkpoints[-1].edits} edits: perplexity on ordinary text grew too far.")
    cases = found.cases or found.batches.get(max(found.batches, default=0), ())
    median, low, high, n = edit_seconds(cases)
    if n:
        together = max(case.together for case in cases)
        share = f", its share of {together} computed at once" if together > 1 else ""
        lines.append(f"{median:.2f} s an edit ({low:.2f} to {high:.2f}, n={n}){share}")
    return "\n".join([*lines, *paths])
