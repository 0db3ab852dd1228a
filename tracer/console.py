"""What the two command lines share: options, errors in one line, results as text or JSON.

Results go to stdout; bars, notes and errors to stderr.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tracer.model import LanguageModel, load
from tracer.storage import to_json

Model = Annotated[
    str, typer.Option(help="gemma-3-270m, smollm2, a hub name, a folder or a .gguf file.", rich_help_panel="Model")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 or auto (spread over all).", rich_help_panel="Model")
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float64.", rich_help_panel="Model")]
DecoderStarts = Annotated[
    str | None,
    typer.Option(
        help="What an encoder-decoder reads before an answer, e.g. <extra_id_0> for one that only fills spans.",
        rich_help_panel="Model",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON record instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Prompt = Annotated[str, typer.Option(help="The text up to the answer.")]
Subject = Annotated[str, typer.Option(help="The words of the prompt that the fact is about.")]
SubjectAt = Annotated[int | None, typer.Option(help="The character where the subject begins; default: its last.")]
Samples = Annotated[int, typer.Option(min=1, help="Noise draws.")]
Window = Annotated[int, typer.Option(min=1, help="Layers restored together for MLP and attention.")]
Workers = Annotated[
    int, typer.Option(min=0, help="Processes that hold a model each; 0: this one.", rich_help_panel="Workers")
]
Backend = Annotated[
    Any, typer.Option(parser=str, metavar="NAME", help="Of the workers: local or ray.", rich_help_panel="Workers")
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, help="Of PyTorch in each process; part of the settings, as rounding is.", rich_help_panel="Workers"
    ),
]
Out = Annotated[Path | None, typer.Option(file_okay=False, help="Folder for figures and files; default runs/NAME.")]


@contextmanager
def reported() -> Iterator[None]:
    """Turns a user's mistake into one line on stderr and exit code 2, and warnings into notes."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: typer.echo(f"note: {message}", err=True)
        try:
            yield
        except (ValueError, OSError) as error:
            ours = type(error).__module__.split(".")[0] in ("tracer", "editing")
            if not ours and not isinstance(error, OSError):
                raise
            typer.echo(f"{type(error).__name__}: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            typer.echo("Interrupted; nothing half-written is left.", err=True)
            raise typer.Exit(130) from None


def opened(model: str, device: str | None, dtype: str, decoder_starts: str | None = None) -> LanguageModel:
    """Loads the model, transformers' own bars shown in a terminal only."""
    typer.echo(f"Loading {model} ...", err=True)
    return load(model, device=device, dtype=dtype, decoder_starts=decoder_starts)


def show_progress(quiet: bool) -> bool | None:
    """None (bars in a terminal) unless silenced."""
    return False if quiet else None


def result(record: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Prints a result on stdout, as JSON or as text."""
    typer.echo(to_json(record) if as_json else text)


def run_folder(out: Path | None, name: str) -> Path:
    """The folder that a command writes to."""
    return out or Path("runs") / (re.sub(r"[\W_]+", "-", name).strip("-").lower()[:80] or "run")
