"""Training of values: what a matrix should give where a prompt ends, so that the model says the answer.

    loss(v) = -(1/T) sum_t log p(y_t | x, y_<t)      with the matrix's output replaced by v
The weights never change, so what enters the block is recorded once. Replacing the last token alone leaves
the tokens before it as they are: their keys and values come from the recording, in every block above.
Requests are trained side by side, each with its own value: their rows meet nowhere. Once half of them have ended,
the others go on without them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from editing.added_parameters.calibration import queries_at_ends
from editing.added_parameters.codebook_branch import Replace, replaced_tokens
from editing.errors import EditFailedError, RequestError
from editing.request import EditRequest
from tracer.anatomy import is_stored_transposed
from tracer.model import LanguageModel
from tracer.model.prompt_ends import prompts_end_at
from tracer.model.tokens import TargetEncoding, encode_with_target, right_padded
from tracer.precision import wide, wide_dtype
from tracer.sweep.hooks import output_changed
from tracer.sweep.recording import record
from tracer.sweep.upper_blocks import UpperBlocks, upper_blocks


@dataclass(frozen=True, eq=False)
class Trials:
    """Some requests, ready to be tried with any values.

    Attributes:
        model: the model.
        layer: whose value matrix gives the values.
        requests: one a row.
        above: the blocks from the matrix's own up, on the tokens that the values can change.
        ends: where each prompt ends, among those tokens, [row].
        replace: "last": values stand there alone; "prompt": up to there.
        queries: what enters the matrix at each prompt's end, in float32 or wider, [row, n_in].
        labels: token ids of each answer.
    """

    model: LanguageModel
    layer: int
    requests: tuple[EditRequest, ...]
    above: UpperBlocks
    ends: Tensor
    replace: Replace
    queries: Tensor
    labels: tuple[tuple[int, ...], ...]

    @property
    def matrix(self) -> nn.Module:
        """Whose output is replaced."""
        return self.model.anatomy.value_matrix(self.layer)

    def of_rows(self, rows: Sequence[int]) -> Trials:
        """These requests alone."""
        requests = [self.requests[row] for row in rows]
        return trials_of(self.model, self.layer, requests, self.replace, queries=self.queries[list(rows)])

    @cached_property
    def present(self) -> Tensor:
        """What the matrix itself gives for the queries, [row, n_out]."""
        weight, bias = self.matrix.get_parameter("weight"), getattr(self.matrix, "bias", None)
        weight = weight.T if is_stored_transposed(self.matrix) else weight
        return nn.functional.linear(self.queries.to(weight), weight, bias).detach().to(self.queries)

    def nll(self, values: Tensor) -> Tensor:
        """-(1/T) sum_t log p(y_t) of each row, [row], with the matrix giving `values` [row, n_out]."""
        chosen = replaced_tokens(self.ends, self.above.hidden.shape[1], self.replace)[..., None]

        def replaced(output: Tensor) -> Tensor:
            return torch.where(chosen, values[:, None].to(output.dtype), output)

        # Codebooks of other layers ask where the prompts end too.
        with prompts_end_at(self.model, self.ends.tolist()), output_changed(self.matrix, replaced):
            hidden = self.above.outputs()
        answers = zip(hidden, self.ends.tolist(), self.labels, strict=True)
        logits = self.model.anatomy.unembed(torch.cat([row[end : end + len(label)] for row, end, label in answers]))
        target = torch.tensor([token for label in self.labels for token in label], device=logits.device)
        tokens = nn.functional.cross_entropy(wide(logits), target, reduction="none")
        return torch.stack([row.mean() for row in tokens.split([len(label) for label in self.labels])])


def trials_of(
    model: LanguageModel,
    layer: int,
    requests: Sequence[EditRequest],
    replace: Replace,
    *,
    queries: Tensor | None = None,
) -> Trials:
    """Records what values at `layer` leave as it is.

    Args:
        model: the model.
        layer: whose value matrix gives the values.
        requests: one a row.
        replace: where the values stand.
        queries: `query_of` each request, if they are known, [row, n_in].

    Raises:
        RequestError: a prompt of one token.
        FactError: one is longer than the model's context.
    """
    encodings = encodings_of(model, requests)
    if queries is None:
        queries = torch.stack([query_of(model, layer, encoding) for encoding in encodings])
    # The last target token is predicted, never read.
    ids, mask = right_padded([encoding.ids[:-1] for encoding in encodings], device=model.device)
    ends = [encoding.n_prompt - 1 for encoding in encodings]
    with torch.no_grad(), prompts_end_at(model, ends):
        run = record(model, ids, attention_mask=mask)
    # One token before the prompts' ends as well: a codebook asks nothing in a pass that begins there.
    first = min(ends) - 1 if replace == "last" else 0
    above = upper_blocks(run, layer, first=first, stop=ids.shape[1], lengths=mask.sum(1))
    last = torch.tensor(ends, device=model.device)
    labels = tuple(one.target_ids for one in encodings)
    return Trials(model, layer, tuple(requests), above, last - first, replace, queries, labels)


def query_of(model: LanguageModel, layer: int, encoding: TargetEncoding) -> Tensor:
    """What enters the value matrix at the prompt's end, in float32 or wider, [n_in].

    Each prompt by itself: it is to give the same query, to the bit, in whatever company it is asked for.
    """
    (query,) = queries_at_ends(model, layer, [encoding.ids[: encoding.n_prompt]]).to(wide_dtype(model.dtype))
    return query


def encodings_of(model: LanguageModel, requests: Sequence[EditRequest]) -> list[TargetEncoding]:
    """Prompts with their answers, as the model can read them.

    Raises:
        RequestError: a prompt of one token.
        FactError: one is longer than the model's context.
    """
    encodings = [encode_with_target(model.tokenizer, request.prompt, request.new) for request in requests]
    for request, encoding in zip(requests, encodings, strict=True):
        if encoding.n_prompt < 2:
            raise RequestError(
                f"{request.prompt!r} is one token, which a codebook never changes. Write a longer prompt."
            )
        model.check_length(len(encoding.ids) - 1)
    return encodings


@dataclass(frozen=True, eq=False)
class TrainedValue:
    """The best value seen, and the losses on the way.

    Attributes:
        value: [n_out].
        losses: of each value tried, the first one's first.
    """

    value: Tensor
    losses: tuple[float, ...]


def trained_values(trials: Trials, starts: Tensor, *, rate: float, steps: int, stop_below: float) -> list[TrainedValue]:
    """Adam from `starts` [row, n_out], at most `steps` steps; a row ends early below a loss of `stop_below`.

    Adam goes entry by entry, so that each row finds what it finds alone, to rounding.

    Raises:
        EditFailedError: a loss became NaN or infinite.
    """
    values = [start.clone().requires_grad_() for start in starts.detach()]
    best, losses = list(starts.detach()), [[] for _ in values]
    optimiser = torch.optim.Adam(values, lr=rate)
    tried = going = list(range(len(values)))  # rows of the trials, and those that have not ended
    for turn in range(steps + 1):
        found = dict(zip(tried, trials.nll(torch.stack([values[row] for row in tried])), strict=True))
        for row in going:
            losses[row].append(found[row].item())
            if not math.isfinite(losses[row][-1]):
                raise EditFailedError(
                    f"The loss became {losses[row][-1]} after {turn} steps. Use a smaller rate than {rate}."
                )
            if losses[row][-1] <= min(losses[row]):
                best[row] = values[row].detach().clone()
        going = [row for row in going if turn < steps and losses[row][-1] >= stop_below]
        if not going:
            break
        optimiser.zero_grad()  # rows that have ended stay where they are
        loss = torch.stack([found[row] for row in going]).sum()
        for row, gradient in zip(going, torch.autograd.grad(loss, [values[row] for row in going]), strict=True):
            values[row].grad = gradient
        optimiser.step()
        if 2 * len(going) <= len(tried):
            trials, tried = trials.of_rows([tried.index(row) for row in going]), going
    return [TrainedValue(value, tuple(seen)) for value, seen in zip(best, losses, strict=True)]
