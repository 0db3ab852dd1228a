"""Training of one request's neurons: say the answer, fire on the queries, stay silent on the memory.

    L = l_e + w_a l_a + w_m l_m
    l_e   label-smoothed NLL of the answer's tokens
    l_a   S(-(k_i.q_i + b_i); 5)                                                 its own query fires a neuron
    l_m   S(k.m + b - beta; 1000) + S(k.m + b - (k.q + b) + gamma; 1000)         other rows m do not
    S(u; n) = mean of the n largest exp(u)                                       beta = -3, gamma = 3
(Huang et al. 2023, arXiv:2301.09785, eq. 6-9.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from editing.added_parameters.last_layer import LastLayer
from editing.added_parameters.patch import Patch, fired
from editing.added_parameters.patch_memory import Memory
from editing.errors import EditFailedError

OWN_LARGEST, MEMORY_LARGEST = 5, 1000
BETA, GAMMA = -3.0, 3.0
SMOOTHING = 0.1
SCALE = 10.0  # of new values
WEIGHT_DECAY, CLIP = 0.01, 5.0
IMPROVED = 1e-3  # of the validation memory loss
PATIENCE = 1  # checks without improvement


@dataclass(frozen=True)
class Schedule:
    """How long to train.

    Attributes:
        rate: Adam's.
        steps: at most.
        first_check, every: steps to the first look at the answer, and between two.
        activation_weight, memory_weight: w_a, w_m.
    """

    rate: float
    steps: int
    first_check: int
    every: int
    activation_weight: float
    memory_weight: float


class Neurons:
    """Neurons in training, one for each of the queries.

    Attributes:
        queries: [neuron, d_model].
        keys, biases: k and b, which begin with k.q + b = 1.
        directions, scales: r and s, the value being r s, entry by entry.
    """

    def __init__(self, queries: Tensor, act: str, generator: torch.Generator) -> None:
        self.queries, self.act = queries, act
        self.keys = (queries / queries.square().sum(-1, keepdim=True)).requires_grad_()
        self.biases = queries.new_zeros(len(queries)).requires_grad_()
        drawn = torch.randn(queries.shape, generator=generator)
        self.directions = drawn.to(queries).requires_grad_()
        self.scales = torch.full_like(queries, SCALE).requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained."""
        return [self.keys, self.biases, self.directions, self.scales]

    def increment(self, entering: Tensor) -> Tensor:
        """What they add for `entering` [..., d_model]."""
        return fired(entering, self.keys, self.biases, self.act) @ (self.directions * self.scales)

    def own(self) -> Tensor:
        """k_i.q_i + b_i, [neuron]."""
        return (self.keys * self.queries).sum(-1) + self.biases

    def patch(self, layer: int, seen: Tensor) -> Patch:
        """As they are now, on the CPU."""
        values = self.directions * self.scales
        parts = (self.keys, self.biases, values, seen)
        return Patch(layer, self.act, *(part.detach().cpu().clone() for part in parts))


@dataclass(frozen=True, eq=False)
class TrainedPatch:
    """What training found: the patch, its steps, its last losses, and whether the answer is said."""

    patch: Patch
    steps: int
    edit_loss: float
    memory_loss: float
    said: bool


def mean_of_largest(exponents: Tensor, n: int) -> Tensor:
    """S(u; n): the mean of the n largest exp(u), of all where there are fewer."""
    flat = exponents.flatten()
    return flat.topk(min(n, len(flat))).values.exp().mean()


def memory_loss(neurons: Neurons, memory: Tensor) -> Tensor:
    """l_m for rows [row, d_model]."""
    before = memory @ neurons.keys.T + neurons.biases
    silent = mean_of_largest(before - BETA, MEMORY_LARGEST)
    return silent + mean_of_largest(before - neurons.own() + GAMMA, MEMORY_LARGEST)


def loss_of(neurons: Neurons, state: LastLayer, memory: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """L, and l_e alone."""
    logits = state.logits(neurons.increment(state.entering))
    edit = nn.functional.cross_entropy(logits, state.target, label_smoothing=SMOOTHING)
    own = mean_of_largest(-neurons.own(), OWN_LARGEST)
    return edit + schedule.activation_weight * own + schedule.memory_weight * memory_loss(neurons, memory), edit


def trained_patch(neurons: Neurons, state: LastLayer, memory: Memory, schedule: Schedule) -> TrainedPatch:
    """Adam with a rate that halves on plateaus; ends once the answer is said and validation gains no more.

    Raises:
        EditFailedError: the loss became NaN or infinite.
    """
    layer = state.model.n_layers - 1
    optimiser = torch.optim.Adam(neurons.parameters, lr=schedule.rate, weight_decay=WEIGHT_DECAY)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=PATIENCE)
    best: TrainedPatch | None = None
    worse, edit = 0, torch.tensor(torch.nan)
    for step in range(1, schedule.steps + 1):
        loss, edit = loss_of(neurons, state, memory.trained, schedule)
        if not torch.isfinite(loss):
            raise EditFailedError(f"The loss became {loss.item()} after {step - 1} steps. Use a smaller rate.")
        for parameter, gradient in zip(neurons.parameters, torch.autograd.grad(loss, neurons.parameters), strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(neurons.parameters, CLIP)
        optimiser.step()
        if step < schedule.first_check or (step - schedule.first_check) % schedule.every:
            continue
        plateau.step(loss.item())
        found = _looked_at(neurons, state, memory, layer, step, edit)
        if not found.said:
            continue
        if best is None or found.memory_loss < best.memory_loss - IMPROVED:
            best, worse = found, 0
        else:
            worse += 1
        if worse >= PATIENCE:
            break
    return best or _looked_at(neurons, state, memory, layer, schedule.steps, edit)


@torch.no_grad()
def _looked_at(neurons: Neurons, state: LastLayer, memory: Memory, layer: int, step: int, edit: Tensor) -> TrainedPatch:
    said = bool((state.logits(neurons.increment(state.entering)).argmax(-1) == state.target).all())
    validation = float(memory_loss(neurons, memory.validation))
    return TrainedPatch(neurons.patch(layer, state.seen), step, float(edit), validation, said)
