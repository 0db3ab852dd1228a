"""The options of commands that trace, and what their text means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tracer.corrupt import CORRUPTIONS
from tracer.groups import Group
from tracer.metric import METRICS
from tracer.plan import MOST_SEED
from tracer.severed import Severed

Facts = Annotated[Path | None, typer.Argument(help="JSONL, known_1000 or CounterFact; default: bundled.")]
Answer = Annotated[str | None, typer.Option(help="The continuation; default: what the model predicts.")]
KindsOption = Annotated[str, typer.Option("--kinds", help="Maps, comma-separated: state,mlp,attn.")]
SeveredOption = Annotated[
    str,
    typer.Option(
        "--severed", help="Severed maps, comma-separated: mlp, attn, mlp:3-7 (layers), mlp:3-7@last token (tokens)."
    ),
]
GroupsOption = Annotated[
    str,
    typer.Option(
        "--groups", help="Tokens to restore together, comma-separated: subject, a role, or positions such as 3+5."
    ),
]
WholeAnswer = Annotated[bool, typer.Option("--whole-answer", help="Trace all tokens of the answer, not the first.")]
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the noise.")]
CorruptionOption = Annotated[
    str, typer.Option("--corruption", help=f"What is done to the subject: {', '.join(CORRUPTIONS)}.")
]
MetricOption = Annotated[str, typer.Option("--metric", help=f"What is read: {', '.join(METRICS)}.")]
DirectionOption = Annotated[Any, typer.Option("--direction", parser=str, metavar="NAME", help="restore or corrupt.")]
EngineOption = Annotated[
    Any, typer.Option("--engine", parser=str, metavar="NAME", help="sweep (fast, exact) or passes (the definition).")
]


def names(listed: str) -> Any:
    """The names in a comma-separated option; whoever takes them checks them."""
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def severed_paths(listed: str) -> tuple[Severed, ...]:
    """The paths in a comma-separated option, e.g. "mlp,attn:3-7"."""
    return tuple(map(Severed.parsed, names(listed)))


def token_groups(listed: str) -> tuple[Group, ...]:
    """The groups in a comma-separated option, e.g. "subject,3+5"."""
    return tuple(_positions(name) or name for name in names(listed))


def _positions(name: str) -> tuple[int, ...] | None:
    parts = name.split("+")
    return tuple(map(int, parts)) if all(part.strip().isdigit() for part in parts) else None
