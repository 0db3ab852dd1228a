"""Gradient descent on one value matrix y = W k + b, every other weight as it is.

Two losses over the requests of a batch, with x a prompt and y_1 .. y_T its new answer:
    target_new   -(1/T) sum_t log p(y_t | x, y_<t)
    prompt_last  -(1/T) sum_t log p(y_t | x)       every target token read after the prompt alone
With a radius eps each step ends in the ball |W - W0| <= eps, entry by entry (Zhu et al. 2020).

What enters the block comes from one recorded pass; only the blocks above it run in each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from editing.errors import EditFailedError
from editing.fine_tuning.trained_matrix import TrainedMatrix
from editing.request import EditRequest
from editing.scoring.forced_decoder import ForcedDecoder
from tracer.model import LanguageModel
from tracer.model.inputs import target_encoding
from tracer.model.tokens import right_padded
from tracer.precision import wide
from tracer.sweep.recording import record
from tracer.sweep.upper_blocks import UpperBlocks, upper_blocks

Loss = Literal["target_new", "prompt_last"]
STOP_BELOW = 0.01


@dataclass(frozen=True, eq=False)
class Batch:
    """Requests that share their gradient steps.

    Attributes:
        model: the model.
        above: the blocks that the trained matrix can change, on all tokens of these requests; of an
            encoder-decoder a whole stack or both.
        rows, places, targets: for each target token its row, the position that predicts it (among the
            decoder's), and its id.
        lengths: target tokens of each row, [row].
    """

    model: LanguageModel
    above: UpperBlocks | ForcedDecoder
    rows: Tensor
    places: Tensor
    targets: Tensor
    lengths: Tensor

    def nll(self) -> Tensor:
        """-(1/T) sum_t log p(y_t) of each request, [row]."""
        logits = self.model.anatomy.unembed(self.above.outputs()[self.rows, self.places])
        logits = wide(logits)
        each = nn.functional.cross_entropy(logits, self.targets, reduction="none") / self.lengths[self.rows]
        return torch.zeros_like(self.lengths, dtype=each.dtype).index_add(0, self.rows, each)


def batch_of(model: LanguageModel, layer: int, requests: Sequence[EditRequest], loss: Loss) -> Batch:
    """Tokenises the requests and records what enters block `layer`."""
    encodings = [target_encoding(model, request.prompt, request.new) for request in requests]
    alone = loss == "prompt_last"
    # The last target token is predicted, never read.
    sequences = [encoding.ids[: encoding.n_prompt] if alone else encoding.ids[:-1] for encoding in encodings]
    model.check_length(max(map(len, sequences)))
    flat = [
        (row, encoding.n_prompt - encoding.n_encoder - 1 + (0 if alone else t), token)
        for row, encoding in enumerate(encodings)
        for t, token in enumerate(encoding.target_ids)
    ]
    rows, places, targets = torch.tensor(flat, device=model.device).T
    if model.is_encoder_decoder:
        above = ForcedDecoder.of(model, sequences, [encoding.n_encoder for encoding in encodings])
        above = above.fixed_below(layer)
    else:
        ids, mask = right_padded(sequences, device=model.device)
        with torch.no_grad():
            run = record(model, ids, attention_mask=mask)
        above = upper_blocks(run, layer, first=0, stop=ids.shape[1], lengths=mask.sum(1))
    return Batch(model, above, rows, places, targets, rows.bincount())


@dataclass(frozen=True, eq=False)
class Descent:
    """What the descent found.

    Attributes:
        values: the trained weight and, where there is one, bias, by parameter name, in the model's own dtype.
        lost_by_rounding: ||cast(W) - W|| / ||W - W0|| of the weight, trained in float32 or wider.
        nll: of each request, when it was first seen and after the last step.
        steps: gradient steps taken.
        clamped: entries that were put back into the ball, as a share of all, a mean over the steps.
        seconds: that it took; of several side by side its share.
    """

    values: dict[str, Tensor]
    lost_by_rounding: float
    nll: tuple[list[float], list[float]]
    steps: int
    clamped: float
    seconds: float = 0.0


def descend(
    model: LanguageModel,
    layer: int,
    batches: Sequence[Batch],
    *,
    rate: float,
    steps: int,
    radius: float | None,
    each_step: Callable[[], object] = lambda: None,
) -> Descent:
    """Adam over the batches in turn, at most `steps` times each.

    A batch whose loss is below STOP_BELOW takes no step; the descent ends when the mean of a round is.

    Raises:
        EditFailedError: the loss became NaN or infinite.
    """
    trained = TrainedMatrix(model, layer, rate=rate, radius=radius)
    first, last, taken, clamped = [], [], 0, 0.0
    with trained.in_use():
        for turn in range(steps):
            seen: list[float] = []
            for batch in batches:
                nll = batch.nll()
                seen += finite(nll, taken)
                each_step()
                if nll.mean() < STOP_BELOW:
                    continue
                trained.step(nll.mean())
                taken += 1
                clamped += float(trained.put_back())
            first = seen if turn == 0 else first
            if sum(seen) / len(seen) < STOP_BELOW:
                break
        with torch.no_grad():
            for batch in batches:
                last += finite(batch.nll(), taken)
    values, lost = trained.rounded()
    return Descent(values, lost, (first, last), taken, clamped / max(taken, 1))


def finite(losses: Tensor, taken: int) -> list[float]:
    """The losses after so many steps.

    Raises:
        EditFailedError: one is NaN or infinite.
    """
    if not torch.isfinite(losses).all():
        raise EditFailedError(f"The loss became {losses.mean().item()} after {taken} steps. Nothing was written.")
    return losses.tolist()
