"""Training of one value: what a matrix should give where the prompt ends, so that the model says the answer.

    loss(v) = -(1/T) sum_t log p(y_t | x, y_<t)      with the matrix's output replaced by v
The weights never change, so what enters the block is recorded once. Replacing the last token alone leaves
the tokens before it as they are: their keys and values come from the recording, in every block above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from editing.added_parameters.codebook_branch import Replace
from editing.errors import EditFailedError, RequestError
from editing.request import EditRequest
from editing.scoring.asking import prompts_end_at
from tracer.anatomy import is_stored_transposed
from tracer.anatomy.hidden import by_token
from tracer.model import LanguageModel
from tracer.model.tokens import encode_with_target
from tracer.sweep.hooks import output_changed
from tracer.sweep.recording import record
from tracer.sweep.upper_blocks import UpperBlocks, upper_blocks


@dataclass(frozen=True, eq=False)
class Trial:
    """One request, ready to be tried with any value.

    Attributes:
        model: the model.
        matrix: whose output is replaced.
        above: the blocks from the matrix's own up, on the tokens that the value can change.
        end: where the prompt ends, among those tokens.
        replace: "last": there alone; "prompt": up to there.
        query: what enters the matrix there, [n_in].
        label: token ids of the answer.
    """

    model: LanguageModel
    matrix: nn.Module
    above: UpperBlocks
    end: int
    replace: Replace
    query: Tensor
    label: tuple[int, ...]

    @property
    def present(self) -> Tensor:
        """What the matrix itself gives for the query, [n_out]."""
        weight, bias = self.matrix.get_parameter("weight"), getattr(self.matrix, "bias", None)
        weight = weight.T if is_stored_transposed(self.matrix) else weight
        return nn.functional.linear(self.query, weight, bias).detach()

    def nll(self, value: Tensor) -> Tensor:
        """-(1/T) sum_t log p(y_t) with the matrix giving `value` [n_out]."""
        first = self.end if self.replace == "last" else 0

        def replaced(output: Tensor) -> Tensor:
            filled = value.to(output.dtype).expand(1, self.end + 1 - first, -1)
            return torch.cat((output[:, :first], filled, output[:, self.end + 1 :]), dim=1)

        # Codebooks of other layers ask where the prompt ends too.
        with prompts_end_at(self.model, [self.end]), output_changed(self.matrix, replaced):
            hidden = self.above.outputs()[0, self.end :]
        logits = self.model.anatomy.unembed(hidden)
        target = torch.tensor(self.label, device=logits.device)
        return nn.functional.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), target)


def trial_of(model: LanguageModel, layer: int, request: EditRequest, replace: Replace) -> Trial:
    """Records what a value at `layer` leaves as it is.

    Raises:
        RequestError: a prompt of one token.
    """
    encoding = encode_with_target(model.tokenizer, request.prompt, request.new)
    end, matrix = encoding.n_prompt - 1, model.anatomy.value_matrix(layer)
    if end < 1:
        raise RequestError(f"{request.prompt!r} is one token, which a codebook never changes. Write a longer prompt.")
    # The last target token is predicted, never read.
    ids = torch.tensor([encoding.ids[:-1]], device=model.device)
    model.check_length(ids.shape[1])
    with torch.no_grad(), prompts_end_at(model, [end]):
        run = record(model, ids, matrices=[matrix])
    # One token before the prompt's end as well: a codebook asks nothing in a pass that begins there.
    first = end - 1 if replace == "last" else 0
    above = upper_blocks(run, layer, first=first, stop=ids.shape[1])
    query = by_token(run.matrix_inputs[0], 1)[0, end].detach()
    return Trial(model, matrix, above, end - first, replace, query, encoding.target_ids)


@dataclass(frozen=True, eq=False)
class TrainedValue:
    """The best value seen, and the losses on the way.

    Attributes:
        value: [n_out].
        losses: of each value tried, the first one's first.
    """

    value: Tensor
    losses: tuple[float, ...]


def trained_value(
    trial: Trial, start: Tensor, *, rate: float, steps: int, stop_below: float, each_step: Callable[[], object]
) -> TrainedValue:
    """Adam from `start` [n_out], at most `steps` steps; ends early below a loss of `stop_below`.

    Raises:
        EditFailedError: the loss became NaN or infinite.
    """
    value = start.detach().clone().requires_grad_()
    best, losses = start, []
    optimiser = torch.optim.Adam([value], lr=rate)
    for turn in range(steps + 1):
        loss = trial.nll(value)
        if not torch.isfinite(loss):
            raise EditFailedError(f"The loss became {loss.item()} after {turn} steps. Use a smaller rate than {rate}.")
        losses.append(loss.item())
        if losses[-1] <= min(losses):
            best = value.detach().clone()
        if turn == steps or losses[-1] < stop_below:
            break
        (value.grad,) = torch.autograd.grad(loss, [value])
        optimiser.step()
        each_step()
    return TrainedValue(best, tuple(losses))
