"""The numbers of `tracer.passes` for an encoder-decoder, many sites in one batch.

An encoder looks both ways, so a restored token changes all others and few of `tracer.sweep`'s savings
hold. These do:

- below the first block in which a held value differs from the run's own, nothing changes: rows start there;
- sites in the decoder leave the encoder's output as it is: it is taken from the run;
- sites that begin in one block share a batch, and each weight is read once for all of them.

The blocks are the model's own, called with the arguments that they were called with in the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tracer.anatomy.hidden import hidden_of
from tracer.forward_pass import Run
from tracer.model.inputs import inputs_of
from tracer.model.lock import lock_of
from tracer.passes import BatchPasses, Passes
from tracer.reading import AnswerIds
from tracer.site import Kind, Site
from tracer.sweep.budget import Budget
from tracer.sweep.hooks import only_here, output_changed
from tracer.sweep.recording import by_name

Held = Mapping[Site, Tensor]
Write = tuple[int, int, Tensor]  # cell, place of the token in its stack, value [d_model] or [sample, d_model]


class TwoStackSweep(Passes):
    """`Passes` of an encoder-decoder whose maps are computed in batches of cells.

    A *cell* is what one entry of a map holds; it takes a row for each sample.

    Attributes:
        base: the run that cells start from, with everything kept: the corrupted one, to be restored.
        arguments: what each block was called with in it, by name, a row for each sample.
        budget: how many tokens run at once.
    """

    def __init__(self, *run: Any, budget: Budget | None = None, **options: Any) -> None:
        super().__init__(*run, **options)
        self.base = self.corrupted if self.direction == "restore" else self.clean
        self.budget = budget or Budget.of(self.rows.device)
        self.arguments = self._record()

    def _record(self) -> list[dict[str, Any]]:
        """The base run once more, for what its blocks are called with."""
        found: list[dict[str, Any]] = []
        begin, end = self.span

        def keep(block: nn.Module, args: tuple, kwargs: dict) -> None:
            found.append(by_name(type(block).forward, block, args, kwargs))

        def corrupt(embedded: Tensor) -> Tensor:
            embedded = embedded.clone()
            embedded[:, begin:end] = self.draws.onto(embedded[None, :, begin:end])[0]
            return embedded

        model, anatomy = self.model, self.model.anatomy
        with lock_of(model.torch), torch.inference_mode(), ExitStack() as hooks:
            if self.direction == "restore":
                hooks.enter_context(output_changed(anatomy.embedding, corrupt))
            for block in anatomy.blocks:
                hooks.callback(block.register_forward_pre_hook(only_here(keep), with_kwargs=True).remove)
            model.torch(**inputs_of(self.rows, self.n_encoder), use_cache=False)
        return found

    def _cells(self, cells: Sequence[Held], answer_id: AnswerIds) -> list[Tensor]:
        found = super()._cells([{}], answer_id) * len(cells)
        starts: dict[int, list[int]] = {}
        for number, held in enumerate(cells):
            if held:
                starts.setdefault(self._start(held), []).append(number)
        fitting = max(1, self.budget.packed_tokens // self.rows.numel())
        for start, numbers in starts.items():
            for at in range(0, len(numbers), fitting):
                some = numbers[at : at + fitting]
                for number, read in zip(some, self._read([cells[n] for n in some], start), strict=True):
                    found[number] = self._measured(Run(read), answer_id)
        return found

    def _start(self, held: Held) -> int:
        """The first block that computes something else than in the base run; the number of blocks if none does."""
        first = self.model.n_layers
        for site, value in held.items():
            own = self._value(self.base, site).expand(len(self.rows), -1)
            if not torch.equal(value.expand_as(own), own):
                first = min(first, site.layer + (site.kind == "state"))  # a state is what its block gives
        return first

    @torch.inference_mode()
    def _read(self, cells: Sequence[Held], start: int) -> Tensor:
        """Logits where the answer is read, with each cell's sites held, [cell, sample, position, vocab]."""
        anatomy, writes, encoded = self.model.anatomy, self._writes(cells), None
        before = self.base.kept["state"][start - 1] if start else self.arguments[0]["hidden_states"]
        hidden = self._repeated(before, len(cells))
        _put(hidden, writes.get((start - 1, "state"), ()), len(cells))
        for layer in range(start, anatomy.n_layers):
            if layer == anatomy.n_encoder_layers:
                encoded = anatomy.encoded(hidden)
                hidden = self._repeated(self.arguments[layer]["hidden_states"], len(cells))
            hidden = self._block(layer, hidden, encoded, len(cells), writes)
            _put(hidden, writes.get((layer, "state"), ()), len(cells))
        return anatomy.unembed(hidden[:, -self.reading.length :]).unflatten(0, (len(cells), -1))

    def _block(
        self, layer: int, hidden: Tensor, encoded: Tensor | None, n_cells: int, writes: Mapping[tuple, list[Write]]
    ) -> Tensor:
        """Block `layer` on all cells' rows; `encoded` is what the decoder reads, None: what it read in the base run."""
        arguments = dict(self.arguments[layer], hidden_states=hidden)
        for name, value in arguments.items():
            if name == "encoder_hidden_states" and value is not None:
                arguments[name] = self._repeated(value, n_cells) if encoded is None else encoded
            elif isinstance(value, Tensor) and value.dim() == 4:  # masks and biases: all rows have the same
                arguments[name] = value[:1]
        with ExitStack() as hooks:
            for kind in self.model.anatomy.kinds_in(layer):
                if kind != "state" and (layer, kind) in writes:
                    change = partial(_changed, writes[layer, kind], n_cells)
                    hooks.enter_context(output_changed(self.model.anatomy.site_module(kind, layer), change))
            return hidden_of(self.model.anatomy.blocks[layer](**arguments))

    def _repeated(self, rows: Tensor, n_cells: int) -> Tensor:
        """Rows of the base run for each cell, [cell * sample, token, d_model]."""
        return rows.expand(len(self.rows), -1, -1).repeat(n_cells, 1, 1)

    def _writes(self, cells: Sequence[Held]) -> dict[tuple[int, Kind], list[Write]]:
        """What is held in each layer and kind of site."""
        found: dict[tuple[int, Kind], list[Write]] = {}
        for number, held in enumerate(cells):
            for site, value in held.items():
                place = self.model.anatomy.place(site.layer, site.token, self.n_encoder)
                assert place is not None
                found.setdefault((site.layer, site.kind), []).append((number, place, value))
        return found


def _put(hidden: Tensor, writes: Sequence[Write], n_cells: int) -> None:
    """Writes into hidden states [cell * sample, token, d_model], in place."""
    by_cell = hidden.unflatten(0, (n_cells, -1))
    for cell, place, value in writes:
        by_cell[cell, :, place] = value.to(hidden)


def _changed(writes: Sequence[Write], n_cells: int, hidden: Tensor) -> Tensor:
    hidden = hidden.clone()
    _put(hidden, writes, n_cells)
    return hidden


class BatchTwoStackSweep(BatchPasses):
    """`TwoStackSweep` for several prompts, one after the other."""

    kind: ClassVar[type[Passes]] = TwoStackSweep
