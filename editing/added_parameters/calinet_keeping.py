"""What a branch should leave alone: the next word after bundled prompts about other subjects.

    KL = mean over prompts of sum_w p(w) log(p(w) / p'(w))      p before the branch, p' with it, nats
The published loss has no such term, and a branch acts at every token: trained on one fact it says that
fact's answer everywhere. The term holds the prompts that it is given; others, near the edited one, may still move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from editing.scoring.forced_decoder import ForcedDecoder
from tracer.facts import bundled, spread_over_relations
from tracer.model import LanguageModel
from tracer.model.inputs import prompt_encoding
from tracer.model.prompt_ends import prompts_end_at
from tracer.model.tokens import Encoding, right_padded
from tracer.precision import wide
from tracer.sweep.recording import record
from tracer.sweep.upper_blocks import UpperBlocks, upper_blocks


@dataclass(frozen=True, eq=False)
class Kept:
    """Prompts whose next word is to stay as it was.

    Attributes:
        model: the model.
        above: the blocks that a branch can change, on these prompts.
        ends: each prompt's last token (of an encoder-decoder the decoder's), [prompt].
        before: log-probabilities of the next word without the branch, [prompt, vocab].
    """

    model: LanguageModel
    above: UpperBlocks | ForcedDecoder
    ends: Tensor
    before: Tensor

    def divergence(self) -> Tensor:
        """KL from the words before to those now, nats a prompt."""
        now = _next_words(self.model, self.above, self.ends)
        return nn.functional.kl_div(now, self.before, log_target=True, reduction="batchmean")


def kept_prompts(model: LanguageModel, layer: int, n: int, *, without: Sequence[str]) -> Kept:
    """Reads `n` bundled prompts of many relations, none about the subjects `without`, as the model is now."""
    others = [fact.prompt for fact in spread_over_relations(bundled()) if fact.subject not in without]
    read = [prompt_encoding(model, prompt) for prompt in others[:n]]
    ends = torch.tensor([len(one.ids) - one.n_encoder - 1 for one in read], device=model.device)
    with torch.no_grad():
        above = _read(model, layer, read, ends)
        return Kept(model, above, ends, _next_words(model, above, ends))


def _read(model: LanguageModel, layer: int, read: Sequence[Encoding], ends: Tensor) -> UpperBlocks | ForcedDecoder:
    rows = [one.ids for one in read]
    if model.is_encoder_decoder:
        return ForcedDecoder.of(model, rows, [one.n_encoder for one in read]).fixed_below(layer)
    ids, mask = right_padded(rows, device=model.device)
    with prompts_end_at(model, ends.tolist()):
        run = record(model, ids, attention_mask=mask)
    return upper_blocks(run, layer, first=0, stop=ids.shape[1], lengths=mask.sum(1))


def _next_words(model: LanguageModel, above: UpperBlocks | ForcedDecoder, ends: Tensor) -> Tensor:
    with prompts_end_at(model, ends.tolist()):
        hidden = above.outputs()
    each = torch.arange(len(ends), device=ends.device)
    return wide(model.anatomy.unembed(hidden[each, ends])).log_softmax(-1)
