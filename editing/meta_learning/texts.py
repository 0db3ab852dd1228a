"""Prompts with their targets, recorded once; the blocks from the lowest edited one up are run again.

nll     -(1/T) sum_t log p(y_t | x, y_<t)                of each row
drift   mean over its tokens of KL(p_base || p_now)      of each row

Which position predicts which token is said in `_texts` alone: in a causal model the one before it, and so in
the decoder of an encoder-decoder, whose tokens alone have a drift.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from editing.meta_learning.divergence import divergence
from editing.meta_learning.states import Ids, Read, blocks_on, states_entering
from editing.scoring.forced_decoder import ForcedDecoder
from tracer.model import LanguageModel
from tracer.model.inputs import target_encoding
from tracer.model.tokens import TargetEncoding
from tracer.precision import wide
from tracer.sweep.upper_blocks import UpperBlocks

Pair = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Texts:
    """Rows of text, one an edit.

    Attributes:
        model: that reads them.
        above: the blocks that an edit can change, on all tokens.
        n_rows: how many texts there are.
        rows, places, targets: for each target token its row, the position that predicts it, and its id.
        read_rows, read_places: every position that is no padding.
        base: what left the last block, [row, token, d_model], where the drift from that is to be measured.
    """

    model: LanguageModel
    above: UpperBlocks | ForcedDecoder
    n_rows: int
    rows: Tensor
    places: Tensor
    targets: Tensor
    read_rows: Tensor
    read_places: Tensor
    base: Tensor | None = None

    @torch.no_grad()
    def kept(self) -> Texts:
        """With what is said now, from which `drift` will be measured."""
        return dataclasses.replace(self, base=self.above.outputs())

    def scores(self, *, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """The nll of each row, and whether every target token is the most probable one, [row] each."""
        logits = self._logits(self.above.outputs(), self.rows, self.places)
        each = functional.cross_entropy(logits, self.targets, reduction="none", label_smoothing=smoothing)
        right = (logits.argmax(-1) == self.targets).to(each)
        return self._means(each, self.rows), self._means(right, self.rows) == 1

    def drift(self) -> Tensor:
        """How far what is said at each token is from what was said when it was kept, nats, [row]."""
        assert self.base is not None, "these texts were not kept"
        places = self.read_rows, self.read_places
        with torch.no_grad():
            before = self._logits(self.base, *places)
        now = self._logits(self.above.outputs(), *places)
        return self._means(divergence(before, now), self.read_rows)

    def _logits(self, outputs: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        logits = self.model.anatomy.unembed(outputs[rows, places])
        return wide(logits)

    def _means(self, each: Tensor, rows: Tensor) -> Tensor:
        return each.new_zeros(self.n_rows).index_add(0, rows, each) / rows.bincount(minlength=self.n_rows)


def texts_of(model: LanguageModel, layer: int, pairs: Sequence[Pair]) -> Texts:
    """Tokenises (prompt, target) pairs and records them; `layer` is the lowest block that edits change.

    Raises:
        FactError: a target without tokens, or a text longer than the model's context.
    """
    return texts_of_each(model, layer, [pairs])[0]


def texts_of_each(
    model: LanguageModel, layer: int, groups: Sequence[Sequence[Pair]], *, read: Read | None = None
) -> list[Texts]:
    """The same for several groups of pairs, which are read together: by `read`, where a `Shelf` may know them."""
    encoded = [[target_encoding(model, *pair) for pair in pairs] for pairs in groups]
    model.check_length(max(len(one.ids) for group in encoded for one in group) - 1)
    # The last target token is predicted, never read.
    rows = [[one.ids[:-1] for one in group] for group in encoded]
    if model.is_encoder_decoder:
        both = zip(rows, encoded, strict=True)
        forced = [ForcedDecoder.of(model, ids, [one.n_encoder for one in group]) for ids, group in both]
        above = [each.fixed_below(layer) for each in forced]
    else:
        read = read or partial(states_entering, model, layer)
        states = read(ids for group in rows for ids in group)
        above = [blocks_on(model, layer, group, states) for group in rows]
    return [_texts(model, each, group) for each, group in zip(above, encoded, strict=True)]


def rows_of(model: LanguageModel, groups: Sequence[Sequence[Pair]]) -> list[Ids]:
    """What `read` is asked for."""
    return [target_encoding(model, *pair).ids[:-1] for pairs in groups for pair in pairs]


def _texts(model: LanguageModel, above: UpperBlocks | ForcedDecoder, encodings: Sequence[TargetEncoding]) -> Texts:
    flat = [
        (row, encoding.n_prompt - encoding.n_encoder - 1 + t, token)
        for row, encoding in enumerate(encodings)
        for t, token in enumerate(encoding.target_ids)
    ]
    read = [(row, at) for row, one in enumerate(encodings) for at in range(len(one.ids) - 1 - one.n_encoder)]
    places = (torch.tensor(each, device=model.device).T for each in (flat, read))
    (rows, predicting, targets), (read_rows, read_places) = places
    return Texts(model, above, len(encodings), rows, predicting, targets, read_rows, read_places)
