"""Prompts with their targets, recorded once; the blocks from the lowest edited one up are run again.

nll     -(1/T) sum_t log p(y_t | x, y_<t)                of each row
drift   mean over its tokens of KL(p_base || p_now)      of each row

Which position predicts which token is said in `texts_of` alone: in a causal model the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from editing.fine_tuning.upper_blocks import UpperBlocks, upper_blocks
from tracer.model import LanguageModel
from tracer.model.tokens import encode_with_target, right_padded
from tracer.sweep.recording import record


@dataclass(frozen=True, eq=False)
class Texts:
    """Rows of text, one an edit.

    Attributes:
        model: that reads them.
        above: the blocks that an edit can change, on all tokens.
        base: what left the last block when they were recorded, [row, token, d_model].
        rows, places, targets: for each target token its row, the position that predicts it, and its id.
        read_rows, read_places: every position that is no padding.
    """

    model: LanguageModel
    above: UpperBlocks
    base: Tensor
    rows: Tensor
    places: Tensor
    targets: Tensor
    read_rows: Tensor
    read_places: Tensor

    @property
    def n_rows(self) -> int:
        """How many texts there are."""
        return len(self.base)

    def scores(self, *, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """The nll of each row, and whether every target token is the most probable one, [row] each."""
        logits = self._logits(self.above.outputs(), self.rows, self.places)
        each = functional.cross_entropy(logits, self.targets, reduction="none", label_smoothing=smoothing)
        right = (logits.argmax(-1) == self.targets).to(each)
        return self._means(each, self.rows), self._means(right, self.rows) == 1

    def drift(self) -> Tensor:
        """How far what is said at each token is from what was said when it was recorded, nats, [row]."""
        places = self.read_rows, self.read_places
        with torch.no_grad():
            before = self._logits(self.base, *places).log_softmax(-1)
        now = self._logits(self.above.outputs(), *places).log_softmax(-1)
        return self._means(functional.kl_div(now, before, reduction="none", log_target=True).sum(-1), self.read_rows)

    def _logits(self, outputs: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        logits = self.model.anatomy.unembed(outputs[rows, places])
        return logits if logits.dtype == torch.float64 else logits.float()

    def _means(self, each: Tensor, rows: Tensor) -> Tensor:
        return each.new_zeros(self.n_rows).index_add(0, rows, each) / rows.bincount(minlength=self.n_rows)


def texts_of(model: LanguageModel, layer: int, pairs: Sequence[tuple[str, str]]) -> Texts:
    """Tokenises (prompt, target) pairs and records them; `layer` is the lowest block that edits change.

    Raises:
        FactError: a target without tokens, or a text longer than the model's context.
    """
    encodings = [encode_with_target(model.tokenizer, prompt, target) for prompt, target in pairs]
    model.check_length(max(len(encoding.ids) for encoding in encodings) - 1)
    ids, mask = right_padded([encoding.ids[:-1] for encoding in encodings], device=model.device)
    flat = [
        (row, encoding.n_prompt - 1 + t, token)
        for row, encoding in enumerate(encodings)
        for t, token in enumerate(encoding.target_ids)
    ]
    with torch.no_grad():
        run = record(model, ids, attention_mask=mask)
    above = upper_blocks(run, layer, first=0, stop=ids.shape[1], lengths=mask.sum(1))
    rows, places, targets = torch.tensor(flat, device=model.device).T
    return Texts(model, above, run.outputs[-1], rows, places, targets, *mask.nonzero(as_tuple=True))
