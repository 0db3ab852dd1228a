"""The prompts of one request as a batch of token ids, padded on the right.

Each context (a random prefix) gives a row: context + prompt + target. One more row, "{subject} is
a", keeps what the subject is (its essence) while the value is optimised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.request import EditRequest
from tracer.model import LanguageModel
from tracer.tokens import encode, encode_with_target, right_padded, token_span


@dataclass(frozen=True)
class Rows:
    """Token ids and where to look in them.

    Attributes:
        ids, attention_mask: [row, token]; padding is on the right and masked.
        lookup: the subject's last token in each row, [row].
        target_rows, target_places, target_ids: for each target token of each row, the row, the
            position that predicts it, and its id.
        target_lengths: target tokens of each row, [row]; 0 for the last row, the essence prompt.
    """

    ids: Tensor
    attention_mask: Tensor
    lookup: Tensor
    target_rows: Tensor
    target_places: Tensor
    target_ids: Tensor
    target_lengths: Tensor


def request_rows(model: LanguageModel, request: EditRequest, contexts: Sequence[str]) -> Rows:
    """A row for each context, the essence row last. Contexts go in front as they are."""
    sequences, lookup, places = [], [], []
    for context in contexts:
        sentence = context + request.prompt
        encoding = encode_with_target(model.tokenizer, sentence, request.new)
        _, end = token_span(encoding.offsets, *_subject(request, len(context)))
        # The last target token is predicted, never read; a merged first token ends the prompt before it.
        sequences.append(encoding.ids[:-1])
        lookup.append(min(end, encoding.n_prompt) - 1)
        places.append((encoding.n_prompt, encoding.target_ids))
    essence = encode(model.tokenizer, f"{request.subject} is a")
    sequences.append(essence.ids)
    lookup.append(token_span(essence.offsets, 0, len(request.subject))[1] - 1)
    model.check_length(max(map(len, sequences)))
    ids, mask = right_padded(sequences, device=model.device)
    flat = [
        (row, n_prompt - 1 + t, token)
        for row, (n_prompt, target) in enumerate(places)
        for t, token in enumerate(target)
    ]
    rows, positions, tokens = torch.tensor(flat, device=model.device).T
    lengths = torch.tensor([len(target) for _, target in places] + [0], device=model.device)
    return Rows(ids, mask, torch.tensor(lookup, device=model.device), rows, positions, tokens, lengths)


def _subject(request: EditRequest, shift: int) -> tuple[int, int]:
    begin, end = request.fact.character_span
    return begin + shift, end + shift
