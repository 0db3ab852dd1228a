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
from editing.added_parameters.side_branch import mlp_module, wide
from editing.request import EditRequest
from editing.scoring.asking import prompts_end_at
from tracer.anatomy.hidden import by_token
from tracer.model import LanguageModel
from tracer.model.tokens import encode_with_target
from tracer.sweep.recording import record
from tracer.sweep.replay import Recording


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
        seen: what enters the MLP at all tokens but the first, an outlier in most models, [token, d_model].
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
        found = self.model.anatomy.unembed(self._leaving(increment))
        return wide(found)

    def with_patches(self, patches: Sequence[Patch]) -> LastLayer:
        """The same request once these are attached."""
        if not patches:
            return self
        increment = torch.stack([patch.increment(self.entering) for patch in patches]).sum(0)
        given = self.given + increment.to(self.given)
        return dataclasses.replace(self, given=given, leaving=self._leaving(increment))

    def wrong(self) -> list[int]:
        """Which answer tokens the model does not say, those before them given."""
        with torch.no_grad():
            said = self.logits(torch.zeros_like(self.given)).argmax(-1)
        return (said != self.target).nonzero()[:, 0].tolist()

    def _leaving(self, increment: Tensor) -> Tensor:
        before, after = self._normed(self.given), self._normed(self.given + increment.to(self.given))
        return self.leaving + self.factor * (after - before)

    def _normed(self, given: Tensor) -> Tensor:
        """f: what the MLP's site makes of the matrix's output."""
        anatomy = self.model.anatomy
        inside = f"{anatomy.names.value_matrix}.".startswith(f"{anatomy.names.mlp_site}.")
        return given if inside else anatomy.site_module("mlp", self.model.n_layers - 1)(given)


def last_layer(model: LanguageModel, request: EditRequest) -> LastLayer:
    """Reads one request with the model as it is now, whatever is attached.

    Raises:
        AnatomyError: the MLP is no module of its own.
    """
    last, encoding = model.n_layers - 1, encode_with_target(model.tokenizer, request.prompt, request.new)
    ids = torch.tensor([encoding.ids[:-1]], device=model.device)
    model.check_length(ids.shape[1])
    ends, kept = encoding.n_prompt - 1, {}

    def keep(_matrix: nn.Module, _inputs: object, output: Tensor) -> None:
        kept["given"] = by_token(output, 1)[0].detach().clone()

    with torch.no_grad(), ExitStack() as stack:
        entering = Noted(mlp_module(model, last), lambda hidden: by_token(hidden, 1)[0].detach())
        stack.callback(entering.remove)
        stack.callback(model.anatomy.value_matrix(last).register_forward_hook(keep).remove)
        stack.enter_context(prompts_end_at(model, [ends]))
        run = record(model, ids)
    return LastLayer(
        model,
        entering=wide(entering.value[ends:]),
        given=kept["given"][ends:],
        leaving=run.outputs[last][0, ends:],
        factor=_factor(run, last),
        target=torch.tensor(encoding.target_ids, device=model.device),
        seen=wide(entering.value[1:]),
    )


def _factor(run: Recording, layer: int) -> float:
    """The factor c in h[l] = h[l-1] + c (a[l] + m[l]), by least squares; 1 in almost every family."""
    moved = (run.outputs[layer] - run.inputs[layer]).double()
    added = run.added["attn"][layer].double() + run.added["mlp"][layer].double()
    found = float((moved * added).sum() / added.square().sum())
    return 1.0 if abs(found - 1) < 0.01 else found
