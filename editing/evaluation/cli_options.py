"""Options that every command which scores editors has, told once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editing.errors import EvaluationError
from editing.evaluation.sequential import CHECKPOINTS
from editing.metrics.fluency import Snippets, read_snippets

ALL_CHECKPOINTS = ",".join(map(str, CHECKPOINTS))
Evenly = Annotated[bool, typer.Option("--evenly", help="Every (records // n)th of the file, not its first n.")]
Sizes = Annotated[str, typer.Option(help="Sizes of batches, comma-separated.")]
Step = Annotated[int, typer.Option(min=1, help="Edits of a sequence written together.")]
Checkpoints = Annotated[str, typer.Option(help="Of a sequence, comma-separated.")]
Factor = Annotated[float, typer.Option(help="Growth of perplexity that rings a sequence's alarm.")]
Stop = Annotated[bool, typer.Option("--stop", help="Stop a sequence there, back at the last good checkpoint.")]
Groups = Annotated[str | None, typer.Option(help="Kinds of prompts asked, comma-separated; default: all.")]
Choices = Annotated[Path | None, typer.Option(help="PIQA file: another task, as a side effect.")]
ChoicesACase = Annotated[int, typer.Option(min=1, help="Of its questions, asked with each case.")]
Free = Annotated[bool, typer.Option("--free/--no-free", help="Also greedy answers (gen_exact).")]
KL = Annotated[bool, typer.Option("--kl/--no-kl", help="Also KL where nothing should change.")]
Text = Annotated[int, typer.Option(min=0, help="Passages of a fixed text read after each edit: perplexity.")]
KnownHops = Annotated[
    bool, typer.Option("--known-hops", help="Also by themselves: one-hop questions whose second hop the model knows.")
]
Writing = Annotated[
    bool, typer.Option("--writing", help="Also sampled texts: fluency and, with --snippets, consistency. Slow.")
]
SnippetsOption = Annotated[Path | None, typer.Option(help="CounterFact's attribute snippets, for consistency.")]


def told_snippets(path: Path | None, writing: bool) -> Snippets | None:
    """The reference texts of this file.

    Raises:
        EvaluationError: no texts are sampled that could be compared with them.
    """
    if path is None:
        return None
    if not writing:
        raise EvaluationError("--snippets are what sampled texts are compared with. Add --writing, which samples them.")
    return read_snippets(path)
