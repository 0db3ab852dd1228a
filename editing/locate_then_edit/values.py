"""Step 2, the value: what W should put out at the subject's last token so that the new answer follows.

With z0 the output at the bare prompt, delta is optimised by Adam on
    L = mean over contexts of NLL(new) + kl * KL(p_delta || p_0 | "{subject} is a") + decay * |delta| / |z0|^2
and kept in the ball |delta| <= clamp * |z0| (Meng et al. 2022, eq. 4, with the released settings).

Only what delta can change is run: blocks from `layer` up, tokens from the subject's last one on;
the keys and values before them come from one recorded pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.errors import EditFailedError
from editing.locate_then_edit.rows import Rows
from tracer.model import LanguageModel
from tracer.replay import output_changed, record

STOP_BELOW = 0.05


@dataclass(frozen=True, eq=False)
class Value:
    """The result of the optimisation.

    Attributes:
        delta: what is added to z0, [d_model].
        initial: z0, the output of W at the bare prompt, [d_model].
        probability: of the new answer, exp(-NLL), before the first step and at the last.
        loss: its parts at the last step.
        steps: gradient steps taken.
        clamped: how often delta was put back into the ball.
    """

    delta: Tensor
    initial: Tensor
    probability: tuple[float, float]
    loss: dict[str, float]
    steps: int
    clamped: int


def optimise_value(
    model: LanguageModel,
    layer: int,
    rows: Rows,
    initial: Tensor,
    *,
    steps: int,
    rate: float,
    decay: float,
    kl: float,
    clamp: float,
    each_step: Callable[[], object] = lambda: None,
) -> Value:
    """Finds delta for the prompts of one request; at most `steps` - 1 updates, as published.

    Raises:
        EditFailedError: the loss became NaN or infinite.
    """
    logits = _answer_logits(model, layer, rows)
    # In 16 bits Adam's own numbers underflow: delta lives in float32 or wider.
    initial = initial if initial.dtype == torch.float64 else initial.float()
    delta = torch.zeros_like(initial, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=rate)
    size, base, first, taken, clamped = initial.norm(), None, None, 0, 0
    while True:
        targets, essence = logits(delta)
        if base is None:
            base = essence.detach()
        nll = (-targets.gather(-1, rows.target_ids[:, None])[:, 0] / rows.target_lengths[rows.target_rows]).sum()
        nll = nll / (rows.target_lengths > 0).sum()
        drift = kl * (essence.exp() * (essence - base)).sum()
        shrink = decay * delta.norm() / size**2
        loss = nll + drift + shrink
        if not torch.isfinite(loss):
            raise EditFailedError(f"The loss became {loss.item()} after {taken} steps. Nothing was written.")
        first = nll.neg().exp().item() if first is None else first
        each_step()
        if loss.item() < STOP_BELOW or taken >= steps - 1:
            break
        (delta.grad,) = torch.autograd.grad(loss, delta)
        optimiser.step()
        taken += 1
        with torch.no_grad():
            if delta.norm() > clamp * size:
                delta.mul_(clamp * size / delta.norm())
                clamped += 1
    parts = {"nll": nll.item(), "kl": drift.item(), "decay": shrink.item()}
    return Value(delta.detach(), initial, (first, nll.neg().exp().item()), parts, taken, clamped)


def _answer_logits(model: LanguageModel, layer: int, rows: Rows) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function of delta: log-probabilities [target, vocab] at the targets and [vocab] at the essence prompt."""
    with torch.no_grad():
        run = record(model, rows.ids, attention_mask=rows.attention_mask)
    positions, prefix, allowed = _suffix(rows, run.visible)
    each = torch.arange(len(rows.ids), device=rows.ids.device)[:, None]
    below = run.inputs[layer][each, positions]
    keys = [store[:, :, :prefix] for store in run.keys]
    values = [store[:, :, :prefix] for store in run.values]
    n_rows = len(rows.ids)
    key_positions = torch.cat((torch.arange(prefix, device=positions.device).expand(n_rows, -1), positions), dim=1)
    masks = [run.attention_mask(at, seen, positions, key_positions) for at, seen in enumerate(allowed)]
    # Essence first: it is read where the subject ends, the targets where each is predicted.
    read_rows = torch.cat((torch.tensor([len(rows.ids) - 1], device=rows.ids.device), rows.target_rows))
    read_at = torch.cat((rows.lookup[-1:], rows.target_places)) - rows.lookup[read_rows]
    value_matrix = model.anatomy.value_matrix(layer)

    def logits(delta: Tensor) -> tuple[Tensor, Tensor]:
        def add(output: Tensor) -> Tensor:
            output = output.clone()
            output[:, 0] = output[:, 0] + delta.to(output.dtype)
            return output

        hidden = below
        for at in range(layer, model.n_layers):
            with output_changed(value_matrix, add if at == layer else lambda output: output):
                hidden = run.run_block(
                    at,
                    hidden,
                    positions=positions,
                    key_positions=key_positions,
                    mask=masks[at],
                    keys=keys[at],
                    values=values[at],
                )
        found = model.anatomy.unembed(hidden[read_rows, read_at])
        found = (found if found.dtype == torch.float64 else found.float()).log_softmax(-1)
        return found[1:], found[0]

    return logits


def _suffix(rows: Rows, visible: list[Tensor]) -> tuple[Tensor, int, list[Tensor]]:
    """The tokens from each row's lookup on.

    Returns:
        their positions [row, query]; the length of the prefix that is read from the recording; and
        for each layer who sees whom, [row, query, prefix + query].
    """
    n_tokens = rows.ids.shape[1]
    lengths = rows.attention_mask.sum(1)
    n_query = int((lengths - rows.lookup).max())
    # Queries past a row's end are padding: they read the last token's place, and nothing reads them.
    positions = (rows.lookup[:, None] + torch.arange(n_query, device=rows.ids.device)).clamp(max=n_tokens - 1)
    prefix = int(rows.lookup.max())
    each = torch.arange(len(rows.ids), device=rows.ids.device)[:, None, None]
    before = torch.arange(prefix, device=rows.ids.device) < rows.lookup[:, None, None]
    causal = torch.ones(n_query, n_query, dtype=torch.bool, device=rows.ids.device).tril()
    own = torch.eye(n_query, dtype=torch.bool, device=rows.ids.device)
    allowed = []
    for seen in visible:
        seen = seen.expand(len(rows.ids), -1, -1)[each[..., 0], positions]  # [row, query, token]
        among = seen.gather(2, positions[:, None, :].expand(-1, n_query, -1))
        allowed.append(torch.cat((seen[:, :, :prefix] & before, (among & causal) | own), dim=2))
    return positions, prefix, allowed
