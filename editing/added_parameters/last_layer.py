"""The answer as a function of what is added in the last MLP, without another pass through the model.

The last MLP feeds no attention, so an increment at a token changes that token's logits alone:
    h' = h + c (f(y + increment) - f(y))      logits = unembed(h')
with y what the value matrix gives, h what leaves the block, f the norm after the MLP where the family has
one, and c the factor (Granite) on what is added to the residual stream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from editing.added_parameters.passing import Noted
from editing.added_parameters.patch import Patch
from editing.request import EditRequest
from editing.scoring.forced_decoder import ForcedDecoder
from tracer.anatomy.hidden import by_token
from tracer.errors import AnatomyError
from tracer.model import LanguageModel
from tracer.model.inputs import target_encoding
from tracer.model.prompt_ends import prompts_end_at
from tracer.model.tokens import TargetEncoding
from tracer.precision import wide
from tracer.sweep.recording import record
from tracer.sweep.replay import Recording

SUM = 0.05  # share of what a block adds that its two sites may leave unexplained: rounding in 16 bits


@dataclass(frozen=True, eq=False)
class LastLayer:
    """One request at the last MLP, at the T tokens that predict its answer.

    Attributes:
        model: the model.
        entering: the MLP, [T, d_model].
        given: by its value matrix, [T, d_model].
        leaving: the block, [T, d_model].
        factor: c.
        target: token ids of the answer, [T].
        seen: what enters the MLP at all tokens but the first, an outlier in most models, [token, d_model]; of a
            decoder that reads a start token from the one on that predicts the answer.
    """

    model: LanguageModel
    entering: Tensor
    given: Tensor
    leaving: Tensor
    factor: float
    target: Tensor
    seen: Tensor

    def logits(self, increment: Tensor) -> Tensor:
        """Logits [T, vocab] with `increment` [T, d_model] added to what the value matrix gives."""
        return logits_of([self], [increment])[0]

    def with_patches(self, patches: Sequence[Patch]) -> LastLayer:
        """The same request once these are attached."""
        if not patches:
            return self
        increment = torch.stack([patch.increment(self.entering) for patch in patches]).sum(0)
        given = self.given + increment.to(self.given)
        return dataclasses.replace(self, given=given, leaving=self.left_with(increment))

    def wrong(self) -> list[int]:
        """Which answer tokens the model does not say, those before them given."""
        with torch.no_grad():
            said = self.logits(torch.zeros_like(self.given)).argmax(-1)
        return (said != self.target).nonzero()[:, 0].tolist()

    def left_with(self, increment: Tensor) -> Tensor:
        """What leaves the block with `increment` added, [T, d_model]."""
        before, after = self._normed(self.given), self._normed(self.given + increment.to(self.given))
        return self.leaving + self.factor * (after - before)

    def _normed(self, given: Tensor) -> Tensor:
        """f: what the MLP's site makes of the matrix's output."""
        anatomy = self.model.anatomy
        inside = f"{anatomy.names.value_matrix}.".startswith(f"{anatomy.names.mlp_site}.")
        return given if inside else anatomy.site_module("mlp", self.model.n_layers - 1)(given)


def logits_of(states: Sequence[LastLayer], increments: Sequence[Tensor]) -> Sequence[Tensor]:
    """The logits of requests of one model, each with its increment, by one product with the head."""
    leaving = [state.left_with(increment) for state, increment in zip(states, increments, strict=True)]
    found = wide(states[0].model.anatomy.unembed(torch.cat(leaving)))
    return found.split([len(rows) for rows in leaving])


def last_layer(model: LanguageModel, request: EditRequest) -> LastLayer:
    """Reads one request with the model as it is now, whatever is attached.

    Raises:
        AnatomyError: it is not known where the MLP begins, or a norm follows the sum that ends the block.
    """
    last, encoding = model.n_layers - 1, target_encoding(model, request.prompt, request.new)
    model.check_length(len(encoding.ids) - 1)
    ends, kept = encoding.n_prompt - encoding.n_encoder - 1, {}  # among the last block's tokens

    def keep(_matrix: nn.Module, _inputs: object, output: Tensor) -> None:
        kept["given"] = by_token(output, 1)[0].detach().clone()

    with torch.no_grad(), ExitStack() as stack:
        entering = Noted(model.anatomy.mlp_entrance(last), lambda hidden: by_token(hidden, 1)[0].detach())
        stack.callback(entering.remove)
        stack.callback(model.anatomy.value_matrix(last).register_forward_hook(keep).remove)
        stack.enter_context(prompts_end_at(model, [ends]))
        leaving, factor = _passed(model, encoding)
    return LastLayer(
        model,
        entering=wide(entering.value[ends:]),
        given=kept["given"][ends:],
        leaving=leaving[ends:],
        factor=factor,
        target=torch.tensor(encoding.target_ids, device=model.device),
        seen=wide(entering.value[first_seen(encoding) :]),
    )


def first_seen(encoding: TargetEncoding) -> int:
    """The first token, among the last block's, whose state is like those that predict answers."""
    return encoding.n_prompt - encoding.n_encoder - 1 if encoding.n_encoder else 1


def _passed(model: LanguageModel, encoding: TargetEncoding) -> tuple[Tensor, float]:
    """What leaves the last block, [token, d_model], and c."""
    ids = encoding.ids[:-1]  # the last target token is predicted, never read
    if model.is_encoder_decoder:
        return ForcedDecoder.of(model, [ids], [encoding.n_encoder]).outputs()[0], 1.0
    run = record(model, torch.tensor([ids], device=model.device))
    return run.outputs[-1][0], _factor(run, model.n_layers - 1)


def _factor(run: Recording, layer: int) -> float:
    """The factor c in h[l] = h[l-1] + c (a[l] + m[l]), by least squares; 1 in almost every family."""
    moved = (run.outputs[layer] - run.inputs[layer]).double()
    added = run.added["attn"][layer].double() + run.added["mlp"][layer].double()
    found = float((moved * added).sum() / added.square().sum())
    if (moved - found * added).norm() > SUM * moved.norm():
        raise AnatomyError(
            f"{run.model.name} does something to the sum that ends its last block (OPT-350m: a norm), which a neuron's "
            f"cached training leaves out. CaliNet works with this model."
        )
    return 1.0 if abs(found - 1) < 0.01 else found
