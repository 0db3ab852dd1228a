"""The values of any number of requests: found together, and kept for whoever wants the same ones.

A value depends on the model, the place, the search, the contexts and the fact, not on who writes it:
ROME's variants share theirs, so do MEMIT and AlphaEdit, and a fact's is the same alone and in any batch
(to rounding). Only those of the unedited model are kept; others are hardly asked for twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from editing.locate_then_edit.configuration import configuration
from editing.locate_then_edit.rows import batched_rows
from editing.locate_then_edit.suffix import Part
from editing.locate_then_edit.values import Search, Value, optimise_values
from editing.request import EditRequest
from editing.stopwatch import now
from tracer.errors import FileFormatError
from tracer.model import LanguageModel
from tracer.model.tokens import joined
from tracer.progress import Count, uncounted
from tracer.storage import read_tensors, to_json, write_tensors

KIND = "value"
FORMAT = 1
TOKENS_TOGETHER = 2048  # tokens of requests that are optimised together
TOGETHER_TIMES_VOCABULARY = 1 << 28  # as their logits take memory


@dataclass(frozen=True)
class Wanted:
    """What all requests have in common.

    Attributes:
        layer, parts: where values are wanted.
        search: how they are looked for.
        prefixes: the contexts, the empty one first.
    """

    layer: int
    parts: tuple[Part, ...]
    search: Search
    prefixes: tuple[str, ...]


def find_values(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    wanted: Wanted,
    *,
    folder: str | Path | None,
    count: Count = uncounted,
) -> list[Value]:
    """The value of each request on the model as it is, those of about the same length optimised together.

    Args:
        model: as it is now.
        requests: facts.
        wanted: of all of them.
        folder: where values of the unedited model are kept; None: nowhere.
        count: is told how many steps more were taken.
    """
    edited = any(edit.before or edit.attachments for edit in model.edits)  # one of them may just have begun
    kept = None if folder is None or edited else KeptValues(folder, model, wanted)
    found = {number: value for number, one in enumerate(requests) if kept and (value := kept.find(one))}
    count(len(found) * wanted.search.steps)
    missing = [number for number in range(len(requests)) if number not in found]
    for at, value in _optimised(model, [requests[number] for number in missing], wanted, count):
        found[missing[at]] = value
        if kept:
            kept.keep(requests[missing[at]], value)
    return [found[number] for number in range(len(requests))]


def _optimised(
    model: LanguageModel, requests: Sequence[EditRequest], wanted: Wanted, count: Count
) -> Iterator[tuple[int, Value]]:
    """Values with the numbers of their requests, a batch after the other."""
    vocabulary = int(model.torch.config.get_text_config().vocab_size)
    most = min(TOKENS_TOGETHER, TOGETHER_TIMES_VOCABULARY // vocabulary)
    turn = None if wanted.search.contexts_a_step is None else 1 + wanted.search.contexts_a_step
    for numbers, rows in batched_rows(model, requests, wanted.prefixes, tokens=most, contexts_a_step=turn):
        begun, update = now(model), partial(count, len(numbers))
        values = optimise_values(model, wanted.layer, rows, wanted.search, parts=wanted.parts, each_step=update)
        share = (now(model) - begun) / len(numbers)
        for number, value in zip(numbers, values, strict=True):
            yield number, dataclasses.replace(value, seconds=share)


class KeptValues:
    """A folder with a small file for each value."""

    def __init__(self, folder: str | Path, model: LanguageModel, wanted: Wanted) -> None:
        self.folder, self.device = Path(folder), model.device
        of_model = {"model": model.fingerprint(), "configuration": configuration(model)}
        self._of_all = {"format": FORMAT, **of_model, **dataclasses.asdict(wanted)}

    def find(self, request: EditRequest) -> Value | None:
        """The value of a request, or None where it is not known yet, or its file is damaged."""
        with contextlib.suppress(FileFormatError):
            tensors, about = read_tensors(self._path(request), KIND)
            placed = {name: tensor.to(self.device) for name, tensor in tensors.items()}
            about = {**about["value"], "probability": tuple(about["value"]["probability"])}
            return Value(**placed, **about, kept=True)
        return None

    def keep(self, request: EditRequest, value: Value) -> None:
        """Writes a request's value to its file, atomically."""
        about = {name: found for name, found in vars(value).items() if name not in ("delta", "initial", "kept")}
        tensors = {"delta": value.delta, "initial": value.initial}
        write_tensors(self._path(request), tensors, {"kind": KIND, "value": about})

    def _path(self, request: EditRequest) -> Path:
        words = request.new.strip()
        # " Paris" and "Paris" are joined to the prompt alike; "\nParis" and "Paris." are other tokens.
        new = words if joined(request.prompt, words) == joined(request.prompt, request.new) else request.new
        fact = {"prompt": request.prompt, "subject": request.fact.character_span, "new": new}
        return (
            self.folder / f"{hashlib.sha256(to_json({**self._of_all, **fact}).encode()).hexdigest()[:40]}.safetensors"
        )
