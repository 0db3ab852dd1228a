"""Step 2, the value: what should be put out at the subject's last token so that the new answer follows.

With z0 what is there at the bare prompt, delta is optimised by Adam on
    L = mean over contexts of NLL(new) + kl * KL(p_delta || p_0 | "{subject} is a") + decay * |delta| / |z0|^2
and kept in the ball |delta| <= clamp * |z0| (Meng et al. 2022, eq. 4, with the released settings). PMET
optimises two places of a block together (Li et al. 2023, sec. 4.1).

Requests are optimised together: Adam is elementwise, so each goes its own way as if it were alone.
Where steps take contexts in turns, each sees the bare prompt and some of the others: other values, sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editing.errors import EditFailedError
from editing.locate_then_edit.rows import Rows
from editing.locate_then_edit.suffix import KLPosition, Part, Suffix
from tracer.errors import NumericsError
from tracer.model import LanguageModel
from tracer.precision import wide

STOP_BELOW = 0.05
GREEDY_NLL = 0.1  # weight of the NLL once every target token is the argmax (PMET)
GREEDY_KL = 0.01  # PMET stops there when its KL term is as small


@dataclass(frozen=True, kw_only=True)
class Search:
    """Settings of the optimisation.

    Attributes:
        steps: evaluations of the loss; one less updates, as published.
        rate: of Adam; `relative`: in units of the root mean square of z0.
        decay, kl: weights in the loss.
        clamp: of |delta| / |z0|.
        greedy: once every target token is the argmax, weigh the NLL by 0.1 and stop at a small KL (PMET).
        contexts_a_step: random prefixes that a step sees, others at the next; None: all at every step, as published.
        kl_position: where the essence prompt is read: at the subject's last token ("lookup", as the published code
            does) or at its own last one ("last", as the paper says).
    """

    steps: int = 20
    rate: float = 0.5
    decay: float = 0.5
    kl: float = 0.0625
    clamp: float = 4.0
    greedy: bool = False
    contexts_a_step: int | None = None
    relative: bool = False
    kl_position: KLPosition = "lookup"


@dataclass(frozen=True, eq=False)
class Value:
    """What the optimisation found for one request.

    Attributes:
        delta: what is added to z0.
        initial: z0.
        probability: of the new answer, exp(-NLL), before the first step and at the last.
        loss: its parts at the last step.
        steps: gradient steps taken.
        clamped: in how many of them delta was put back into the ball.
        seconds: its share of the time that it took.
        kept: it was found in an earlier run (`KeptValues`).
    """

    delta: Float[Tensor, "part d_model"]
    initial: Float[Tensor, "part d_model"]
    probability: tuple[float, float]
    loss: dict[str, float]
    steps: int
    clamped: int
    seconds: float = 0.0
    kept: bool = False

    @property
    def wanted(self) -> Float[Tensor, " d_model"]:
        """z0 + delta of the first part, float64 on the CPU."""
        return self.initial[0].double().cpu() + self.delta[0].double().cpu()


def optimise_values(
    model: LanguageModel,
    layer: int,
    rows: Rows,
    search: Search,
    *,
    parts: Sequence[Part] = ("mlp",),
    each_step: Callable[[], object] = lambda: None,
) -> list[Value]:
    """Finds a delta for each request of `rows`; the first of `parts` is what will be written.

    Raises:
        EditFailedError: a loss became NaN or infinite.
        NumericsError: what the layer puts out is so already.
    """
    whole = Suffix(model, layer, rows, parts, essence_at=search.kl_position)
    turns = rows.in_turns(search.contexts_a_step)
    # In 16 bits Adam's own numbers underflow: deltas live in float32 or wider.
    initial = wide(whole.initial)
    if not torch.isfinite(initial).all():
        raise NumericsError(
            f'Layer {layer} of {model.name} puts out NaN or infinity in {model.dtype}. Load it with dtype="float32".'
        )
    paths = [_Path(z0, search) for z0 in initial]
    base: Tensor | None = None
    for step in range(search.steps):
        suffix = whole.of_some(turns[step % len(turns)])
        targets, essence = suffix.logits(torch.stack([path.delta for path in paths]))
        essence = essence.log_softmax(-1)
        base = essence.detach() if base is None else base
        nll, greedy = _on_targets(suffix.rows, targets)
        drift = search.kl * (essence.exp() * (essence - base)).sum(-1)
        losses = [path.loss(*of_request) for path, *of_request in zip(paths, nll, drift, greedy, strict=True)]
        each_step()
        going = [(path, loss) for path, loss in zip(paths, losses, strict=True) if loss is not None]
        if not going:
            break
        gradients = torch.autograd.grad(torch.stack([loss for _, loss in going]).sum(), [p.delta for p, _ in going])
        for (path, _), gradient in zip(going, gradients, strict=True):
            path.step(gradient)
    return [path.value() for path in paths]


def _on_targets(rows: Rows, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each request, the mean NLL over contexts, and whether every target token is the argmax; [request]."""
    of_token = torch.nn.functional.cross_entropy(logits, rows.target_ids, reduction="none")
    of_request = rows.target_rows // rows.each
    shares = of_token / rows.target_lengths[rows.target_rows] / (rows.each - 1)
    nll = shares.new_zeros(rows.n_requests).index_add(0, of_request, shares)
    missed = (logits.argmax(-1) != rows.target_ids).long()
    return nll, missed.new_zeros(rows.n_requests).index_add(0, of_request, missed) == 0


class _Path:
    """The way of one request's delta, at most `steps` - 1 updates long."""

    def __init__(self, initial: Tensor, search: Search) -> None:
        self.initial, self.search = initial, search
        self.delta = torch.zeros_like(initial, requires_grad=True)
        unit = float(initial.square().mean().sqrt()) if search.relative else 1.0
        self.optimiser = torch.optim.Adam([self.delta], lr=search.rate * unit)
        self.size = initial.norm(dim=-1)
        self.losses: list[dict[str, float]] = []
        self.taken = self.clamped = 0
        self.done = False

    def loss(self, nll: Tensor, drift: Tensor, greedy: Tensor) -> Tensor | None:
        """The loss of the present delta, or None where the way ends with it."""
        if self.done:
            return None
        shrink = (self.search.decay * self.delta.norm(dim=-1) / self.size**2).sum()
        settled = self.search.greedy and bool(greedy)
        loss = (GREEDY_NLL if settled else 1) * nll + drift + shrink
        if not torch.isfinite(loss):
            raise EditFailedError(f"The loss became {loss.item()} after {self.taken} steps. Nothing was written.")
        self.losses.append({"nll": nll.item(), "kl": drift.item(), "decay": shrink.item()})
        small = loss.item() < STOP_BELOW or (settled and drift.item() <= GREEDY_KL)
        self.done = small or self.taken >= self.search.steps - 1
        return None if self.done else loss

    def step(self, gradient: Tensor) -> None:
        """One update, and back into the ball."""
        self.delta.grad = gradient
        self.optimiser.step()
        self.taken += 1
        with torch.no_grad():
            most = self.search.clamp * self.size
            over = self.delta.norm(dim=-1) / most
            self.clamped += int((over > 1).any())
            self.delta.div_(over.clamp(min=1)[:, None])

    def value(self) -> Value:
        """The value at which the descent ended, with its losses and how often it was clamped."""
        first, last = (float(torch.tensor(-self.losses[at]["nll"]).exp()) for at in (0, -1))
        return Value(self.delta.detach(), self.initial, (first, last), self.losses[-1], self.taken, self.clamped)
