"""The prompts of some requests as a batch of token ids, padded on the right.

Each context (a random prefix) gives a row: context + prompt + target. One more row a request, "{subject}
is a", keeps what the subject is (its essence) while the value is optimised. All requests have as many
rows, one request after the other, so [row] unflattens to [request, context + 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.padding import call_tokens, least_padding
from editing.request import EditRequest
from tracer.errors import FactError
from tracer.model import LanguageModel
from tracer.model.tokens import encode, encode_with_target, right_padded, token_span


@dataclass(frozen=True)
class Rows:
    """Token ids and where to look in them.

    Attributes:
        n_requests: whose rows follow each other; the bare prompt is a request's first row, the essence its last.
        ids, attention_mask: [row, token]; padding is on the right and masked.
        lookup: the subject's last token in each row, [row].
        target_rows, target_places, target_ids: for each target token of each row, the row, the
            position that predicts it, and its id.
        target_lengths: target tokens of each row, [row]; 0 for an essence row.
    """

    n_requests: int
    ids: Tensor
    attention_mask: Tensor
    lookup: Tensor
    target_rows: Tensor
    target_places: Tensor
    target_ids: Tensor
    target_lengths: Tensor

    @property
    def each(self) -> int:
        """Rows of one request."""
        return len(self.ids) // self.n_requests

    @property
    def essence(self) -> Tensor:
        """The last row of each request, [request]."""
        return torch.arange(self.each - 1, len(self.ids), self.each, device=self.ids.device)

    @property
    def context_rows(self) -> Tensor:
        """All other rows, [request * context]."""
        return torch.arange(len(self.ids), device=self.ids.device).unflatten(0, (-1, self.each))[:, :-1].flatten()

    def numbers(self, contexts: Sequence[int]) -> Tensor:
        """The rows of some contexts, by number, and the essence rows, of all requests; rising."""
        chosen = torch.tensor([*contexts, self.each - 1], device=self.ids.device)
        return (torch.arange(self.n_requests, device=self.ids.device)[:, None] * self.each + chosen).flatten()

    def of_some(self, contexts: Sequence[int]) -> Rows:
        """The rows of some contexts alone, those of `numbers`."""
        kept = self.numbers(contexts)
        place = torch.full((len(self.ids),), -1, device=self.ids.device)
        place[kept] = torch.arange(len(kept), device=self.ids.device)
        targets = place[self.target_rows] >= 0
        width = int(self.attention_mask[kept].sum(1).max())
        return Rows(
            self.n_requests,
            self.ids[kept, :width],
            self.attention_mask[kept, :width],
            self.lookup[kept],
            place[self.target_rows[targets]],
            self.target_places[targets],
            self.target_ids[targets],
            self.target_lengths[kept],
        )

    def in_turns(self, most: int | None) -> list[list[int]]:
        """The contexts in groups of at most `most` random prefixes, the bare prompt in each; None: all together."""
        prefixes = range(1, self.each - 1)
        n_groups = 1 if most is None or most >= len(prefixes) else -(-len(prefixes) // most)
        return [[0, *prefixes[first::n_groups]] for first in range(n_groups)]

    def of_contexts(self, of_rows: Tensor) -> Tensor:
        """What belongs to the contexts, the bare prompt's first: [row, ...] to [request, context, ...]."""
        return of_rows.unflatten(0, (self.n_requests, self.each))[:, :-1]


@dataclass(frozen=True)
class _Tokens:
    """The rows of one request, before padding: ids, lookup, and where the target begins with its ids."""

    rows: tuple[tuple[int, ...], ...]
    lookup: tuple[int, ...]
    targets: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def suffix(self) -> int:
        """The longest row from its lookup on, in tokens: what the optimisation runs."""
        return max(len(row) - at for row, at in zip(self.rows, self.lookup, strict=True))


def request_rows(model: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str]) -> Rows:
    """A row for each context of each request, its essence row last. Contexts go in front as they are."""
    return _stacked(model, [_tokens(model, request, contexts) for request in requests])


def batched_rows(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    *,
    tokens: int,
    contexts_a_step: int | None = None,
) -> Iterator[tuple[list[int], Rows]]:
    """Batches of requests whose rows are about as long, with their numbers.

    Args:
        model: the model.
        requests: at least one.
        contexts: prefixes, the empty one first.
        tokens: run in one batch, from the lookups on; a request with more is a batch by itself.
        contexts_a_step: of them that are run together; None: all.
    """
    found = [_tokens(model, request, contexts) for request in requests]
    together = min(contexts_a_step or len(contexts), len(contexts))
    overhead = call_tokens(model.device) / together
    most = tokens // (len(contexts) + 1)
    for batch in least_padding([one.suffix for one in found], most=most, overhead=overhead):
        yield batch, _stacked(model, [found[one] for one in batch])


def _tokens(model: LanguageModel, request: EditRequest, contexts: Sequence[str]) -> _Tokens:
    rows, lookup, targets = [], [], []
    begin, stop = request.fact.character_span
    for context in contexts:
        encoding = encode_with_target(model.tokenizer, context + request.prompt, request.new)
        _, end = token_span(encoding.offsets, begin + len(context), stop + len(context))
        # The last target token is predicted, never read; a merged first token ends the prompt before it.
        rows.append(encoding.ids[:-1])
        lookup.append(min(end, encoding.n_prompt) - 1)
        targets.append((encoding.n_prompt, encoding.target_ids))
    subject = request.subject.strip()  # as its span in the prompt has it
    essence = encode(model.tokenizer, f"{subject} is a")
    rows.append(essence.ids)
    lookup.append(token_span(essence.offsets, 0, len(subject))[1] - 1)
    _check_length(model, request, rows)
    return _Tokens(tuple(rows), tuple(lookup), tuple(targets))


def _check_length(model: LanguageModel, request: EditRequest, rows: Sequence[Sequence[int]]) -> None:
    """Raises FactError where a row is longer than the model's context, the bare prompt's or one with a prefix."""
    bare, longest, most = len(rows[0]), max(map(len, rows)), model.context_length
    if most is not None and bare <= most < longest:
        raise FactError(
            f"{request.prompt!r} has {bare} tokens with its answer, and {longest} with the longest of the texts that "
            f"are put in front of it; {model.name} takes {most}. Write context_plan=(), or a shorter prompt."
        )
    model.check_length(longest)


def _stacked(model: LanguageModel, requests: Sequence[_Tokens]) -> Rows:
    device = model.device
    ids, mask = right_padded([row for tokens in requests for row in tokens.rows], device=device)
    lookup = torch.tensor([at for tokens in requests for at in tokens.lookup], device=device)
    targets = [of_row for tokens in requests for of_row in (*tokens.targets, (0, ()))]
    flat = [
        (row, begin - 1 + t, token) for row, (begin, target) in enumerate(targets) for t, token in enumerate(target)
    ]
    rows, places, tokens = torch.tensor(flat, device=device).T
    lengths = torch.tensor([len(target) for _, target in targets], device=device)
    return Rows(len(requests), ids, mask, lookup, rows, places, tokens, lengths)
