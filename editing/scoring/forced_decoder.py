"""An encoder-decoder forced with targets: the encoder reads the prompt, the decoder the target so far.

    encoder   x                                          padded on the right and masked
    decoder   start, what the answer follows, y_1 .. y_(T-1)     its output before y_t predicts y_t
The decoder's tokens are shifted by one already, so the model is never given labels: it would shift them again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from tracer.anatomy.hidden import hidden_of
from tracer.model import LanguageModel
from tracer.model.tokens import TargetEncoding, right_padded
from tracer.precision import wide
from tracer.sweep.hooks import only_here

TOKENS = 1024  # padded tokens of both stacks in one pass
Pair = tuple[str, str]


@dataclass(frozen=True, eq=False)
class ForcedDecoder:
    """What both stacks read, a row for each prompt and target.

    Attributes:
        model: an encoder-decoder.
        read, mask: ids of the encoder and 1 for those that are no padding, [row, token].
        written: ids of the decoder, [row, token]; padding is behind all that counts.
        encoded: the encoder's output, [row, token, d_model], where it stays as it is; None: the encoder runs too.
    """

    model: LanguageModel
    read: Tensor
    mask: Tensor
    written: Tensor
    encoded: Tensor | None = None

    @classmethod
    def of(cls, model: LanguageModel, rows: Sequence[tuple[int, ...]], n_encoder: Sequence[int]) -> ForcedDecoder:
        """Rows of ids, each an encoder's first `n_encoder` and then its decoder's."""
        both = list(zip(rows, n_encoder, strict=True))
        read, mask = right_padded([ids[:n] for ids, n in both], device=model.device)
        written, _ = right_padded([ids[n:] for ids, n in both], device=model.device)
        return cls(model, read, mask, written)

    @torch.no_grad()
    def with_encoded(self) -> ForcedDecoder:
        """With the encoder's output as it is now, so that only the decoder runs from now on."""
        found = self.model.torch.get_encoder()(input_ids=self.read, attention_mask=self.mask)
        return dataclasses.replace(self, encoded=found.last_hidden_state)

    def fixed_below(self, layer: int) -> ForcedDecoder:
        """The same where only blocks from `layer` up, counted through, may change.

        If those are all the decoder's, the encoder is run now and not again.
        """
        return self.with_encoded() if layer >= self.model.anatomy.n_encoder_layers else self

    def copies(self, n: int) -> ForcedDecoder:
        """Each row `n` times."""
        stores = {name: getattr(self, name) for name in ("read", "mask", "written", "encoded")}
        return dataclasses.replace(
            self, **{name: None if one is None else one.repeat_interleave(n, 0) for name, one in stores.items()}
        )

    def logits(self) -> Tensor:
        """After every token that the decoder reads, [row, token, vocab]."""
        return self.model.torch(**self._arguments()).logits

    def outputs(self) -> Tensor:
        """What leaves the decoder's last block, [row, token, d_model], with the weights and hooks of now."""
        found: list[Tensor] = []
        keep = only_here(lambda _block, _inputs, output: found.append(hidden_of(output)))
        handle = self.model.anatomy.blocks[-1].register_forward_hook(keep)
        try:
            self.model.torch(**self._arguments())
        finally:
            handle.remove()
        return found[0]

    def _arguments(self) -> dict[str, Any]:
        encoder: dict[str, Any] = {"input_ids": self.read}
        if self.encoded is not None:
            encoder = {"encoder_outputs": BaseModelOutput(last_hidden_state=self.encoded)}  # pyright: ignore
        return {**encoder, "attention_mask": self.mask, "decoder_input_ids": self.written, "use_cache": False}


@torch.inference_mode()
def forced_log_probs(model: LanguageModel, encodings: Mapping[Pair, TargetEncoding]) -> Iterator[tuple[Pair, Tensor]]:
    """Each pair with its log-probabilities at the target's tokens, [target token, vocab], float32 or better.

    Raises:
        NumericsError: logits that are not finite.
    """
    for batch in _batches(encodings):
        rows = [encodings[pair] for pair in batch]
        # The last target token is predicted, never read.
        forced = ForcedDecoder.of(model, [row.ids[:-1] for row in rows], [row.n_encoder for row in rows])
        for pair, row, logits in zip(batch, rows, forced.logits(), strict=True):
            stop = len(row.ids) - 1 - row.n_encoder
            own = logits[stop - len(row.target_ids) : stop]
            model.check_finite(own)
            yield pair, wide(own).log_softmax(-1)


def _batches(encodings: Mapping[Pair, TargetEncoding]) -> Iterator[list[Pair]]:
    """Pairs by what the encoder reads, as many at a time as fit into `TOKENS` when padded."""
    batch: list[Pair] = []
    for pair, encoding in sorted(encodings.items(), key=lambda item: (item[1].n_encoder, len(item[1].ids))):
        if batch and (len(batch) + 1) * len(encoding.ids) > TOKENS:
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch
