"""The codebook at one place of a model: the replay of the journals of all edits that are attached there.

An edit keeps a journal: its queries, trained values and labels. Whatever is attached or taken off, in any
order, the codebook is built again from the journals that are left; nothing is trained again.

Where a prompt ends the query is what enters the value matrix; of a padded row that is its last token that the
pass's mask has. It is asked for once a row: a pass over one token (a decoding step) asks nothing, so prompts of
one token are never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from editing.added_parameters.codebook import Codebook, Record
from editing.added_parameters.passing import Noted, Padding
from editing.attachment import Attachment
from tracer.anatomy.hidden import by_token
from tracer.model import LanguageModel
from tracer.model.prompt_ends import prompt_ends

Replace = Literal["last", "prompt"]
ROUNDING = 8  # units in the last place: a query read in another batch


@dataclass(frozen=True)
class CodebookPlace:
    """Which codebook.

    Attributes:
        layer: of the value matrix whose output is replaced.
        replace: where: at the prompt's last token, or at all of its tokens.
        radius: eps_init.
    """

    layer: int
    replace: Replace
    radius: float


class Journal(Attachment, kind="grace codebook"):
    """What one edit wrote into the codebook of a place.

    Attributes:
        place: which codebook.
        records: in the order in which they were written.
    """

    def __init__(self, place: CodebookPlace, records: Sequence[Record]) -> None:
        self.place, self.records = place, tuple(records)

    def attach(self, model: LanguageModel) -> Callable[[], None]:
        """Writes the records into the model's codebook, which is made if there is none."""
        stores: dict[CodebookPlace, CodebookBranch] = model.torch.__dict__.setdefault("_codebooks", {})
        branch = stores.setdefault(self.place, CodebookBranch(self.place))
        branch.add(model, self)

        def detach() -> None:
            branch.remove(self)
            if not branch.journals:
                stores.pop(self.place, None)

        return detach

    @property
    def store(self) -> str:
        """The codebook of all edits at this place."""
        return str(self.place)

    def tensors(self) -> dict[str, Tensor]:
        """Queries [record, n_in] and values [record, n_out]."""
        return {
            "queries": torch.stack([record.query for record in self.records]),
            "values": torch.stack([record.value for record in self.records]),
        }

    def about(self) -> dict[str, Any]:
        """The place and the labels."""
        return {"place": asdict(self.place), "labels": [list(record.label) for record in self.records]}

    @classmethod
    def restored(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The branch that a file's tensors and record were written from."""
        parts = zip(tensors["queries"], tensors["values"], about["labels"], strict=True)
        records = [Record(query, value, tuple(label)) for query, value, label in parts]
        return cls(CodebookPlace(**about["place"]), records)


class CodebookBranch:
    """The hooks of one codebook.

    Attributes:
        journals: of the attached edits, in order.
        book: their replay.
    """

    def __init__(self, place: CodebookPlace) -> None:
        self.place = place
        self.journals: list[Journal] = []
        self.book = Codebook.of((), place.radius)
        self._handles: list[Any] = []

    def add(self, model: LanguageModel, journal: Journal) -> None:
        """Replays with one more journal; the hooks come after all that are there."""
        self._take_off()
        block, matrix = model.anatomy.blocks[self.place.layer], model.anatomy.value_matrix(self.place.layer)
        self._rounding, self._device = rounding_of(model), next(matrix.parameters()).device
        rows, padding = Noted(block, lambda hidden: len(hidden)), Padding(model.torch)
        self._handles = [rows, padding, matrix.register_forward_hook(self._hook(model, rows, padding))]
        self.journals.append(journal)
        self._replay()

    def remove(self, journal: Journal) -> None:
        """Replays without it; after the last one the hooks come off."""
        self.journals.remove(journal)
        self._replay()
        if not self.journals:
            self._take_off()

    def _take_off(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _replay(self) -> None:
        records = [record for journal in self.journals for record in journal.records]
        here = [Record(one.query.to(self._device), one.value.to(self._device), one.label) for one in records]
        self.book = Codebook.of(here, self.place.radius, self._rounding)

    def _hook(self, model: LanguageModel, rows: Noted, padding: Padding) -> Callable[..., Tensor | None]:
        def hook(_matrix: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            """The output, with a key's value where the query at a prompt's end lies in its radius."""
            entering, leaving = by_token(inputs[0], rows.value), by_token(output, rows.value)
            ends = prompt_ends(model.torch, entering.shape[0], entering.shape[1], padding.mask).to(entering.device)
            each = torch.arange(len(entering), device=entering.device)
            key = self.book.answering(entering[each, ends].detach())
            answered = (key >= 0) & (ends > 0)
            if not answered.any():
                return None  # the module's own output, untouched
            chosen = replaced_tokens(ends, entering.shape[1], self.place.replace) & answered[:, None]
            values = self.book.values[key.clamp(min=0)].to(leaving.dtype)
            return torch.where(chosen[..., None], values[:, None], leaving).reshape(output.shape)

        return hook


def codebook_at(model: LanguageModel, place: CodebookPlace) -> Codebook:
    """The codebook there as it is now; an empty one where no edit is attached."""
    branch = model.torch.__dict__.get("_codebooks", {}).get(place)
    return Codebook.of((), place.radius, rounding_of(model)) if branch is None else branch.book


def rounding_of(model: LanguageModel) -> float:
    """How far two readings of one query may lie apart, as a share of its norm."""
    return ROUNDING * torch.finfo(model.dtype).eps


def replaced_tokens(ends: Tensor, n_tokens: int, replace: Replace) -> Tensor:
    """Which tokens take the value where prompts end at `ends` [row]: bool [row, token]."""
    tokens = torch.arange(n_tokens, device=ends.device)
    return tokens == ends[:, None] if replace == "last" else tokens <= ends[:, None]
