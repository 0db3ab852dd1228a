"""Training of a request's neurons: say the answer, fire on the queries, stay silent on the memory.

    L = l_e + w_a l_a + w_m l_m
    l_e   label-smoothed NLL of the answer's tokens
    l_a   S(-(k_i.q_i + b_i); 5)                                                 its own query fires a neuron
    l_m   S(k.m + b - beta; 1000) + S(k.m + b - (k.q + b) + gamma; 1000)         other rows m do not
    S(u; n) = mean of the n largest exp(u)                                       beta = -3, gamma = 3
(Huang et al. 2023, arXiv:2301.09785, eq. 6-9.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from editing.added_parameters.last_layer import LastLayer, logits_of
from editing.added_parameters.patch import Patch, fired
from editing.added_parameters.silent_rows import SilentRows
from editing.errors import EditFailedError

OWN_LARGEST, MEMORY_LARGEST = 5, 1000
BETA, GAMMA = -3.0, 3.0
SMOOTHING = 0.1
SCALE = 10.0  # of new values
WEIGHT_DECAY, CLIP = 0.01, 5.0
IMPROVED = 1e-3  # of the validation memory loss
PATIENCE = 1  # checks without improvement
SETTLED = 1e-2  # of the first rate: after so many plateaus nothing moves any more


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


def loss_of(
    neurons: Neurons, logits: Tensor, target: Tensor, memory: Tensor, schedule: Schedule
) -> tuple[Tensor, Tensor]:
    """L, and l_e alone; `logits` [T, vocab] are those with the neurons."""
    edit = nn.functional.cross_entropy(logits, target, label_smoothing=SMOOTHING)
    own = mean_of_largest(-neurons.own(), OWN_LARGEST)
    return edit + schedule.activation_weight * own + schedule.memory_weight * memory_loss(neurons, memory), edit


@dataclass(frozen=True, eq=False)
class Training:
    """The neurons of one request, the state they change, and what they should not fire on."""

    neurons: Neurons
    state: LastLayer
    memory: SilentRows


def trained_patches(trainings: Sequence[Training], schedule: Schedule) -> list[TrainedPatch]:
    """Adam with a rate that halves on plateaus; a request ends once its answer is said and validation gains no more.

    One whose answer is not said, as where more tokens are wrong than there are neurons, ends once its rate is spent.
    Requests meet nowhere but in the product with the head, which takes hardly longer for several: what is found is
    what each finds alone, to rounding.

    Raises:
        EditFailedError: a loss became NaN or infinite.
    """
    runs = [_Run(training, schedule) for training in trainings]
    for step in range(1, schedule.steps + 1):
        going = [run for run in runs if not run.ended]
        if not going:
            break
        losses = [run.loss(logits) for run, logits in zip(going, _logits(going), strict=True)]
        _step(going, losses, step)
        if step < schedule.first_check or (step - schedule.first_check) % schedule.every:
            continue
        with torch.no_grad():
            for run, loss, logits in zip(going, losses, _logits(going), strict=True):
                run.plateau.step(loss.item())
                run.weigh(run.looked_at(logits, step))
    with torch.no_grad():
        return [run.best or run.looked_at(_logits([run])[0], run.taken) for run in runs]


class _Run:
    """One request's training, and how far it is."""

    def __init__(self, training: Training, schedule: Schedule) -> None:
        self.neurons, self.state, self.memory = training.neurons, training.state, training.memory
        self.schedule, self.parameters = schedule, training.neurons.parameters
        self.optimiser = torch.optim.Adam(self.parameters, lr=schedule.rate, weight_decay=WEIGHT_DECAY)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimiser, factor=0.5, patience=PATIENCE)
        self.best: TrainedPatch | None = None
        self.worse, self.taken, self.edit_loss = 0, 0, math.nan

    @property
    def ended(self) -> bool:
        """The answer is said and validation gains no more, or the rate is spent."""
        return self.worse >= PATIENCE or self.optimiser.param_groups[0]["lr"] < SETTLED * self.schedule.rate

    def loss(self, logits: Tensor) -> Tensor:
        """The whole loss, a scalar: the edit's and the memory's terms; the edit's alone is kept in `edit_loss`."""
        loss, edit = loss_of(self.neurons, logits, self.state.target, self.memory.trained, self.schedule)
        self.edit_loss = float(edit.detach())
        return loss

    def looked_at(self, logits: Tensor, step: int) -> TrainedPatch:
        """The patch as it is now."""
        said = bool((logits.argmax(-1) == self.state.target).all())
        patch = self.neurons.patch(self.state.model.n_layers - 1, self.state.seen)
        return TrainedPatch(patch, step, self.edit_loss, float(memory_loss(self.neurons, self.memory.validation)), said)

    def weigh(self, found: TrainedPatch) -> None:
        """Keeps it where the answer is said and the memory suffers less."""
        if not found.said:
            return
        if self.best is None or found.memory_loss < self.best.memory_loss - IMPROVED:
            self.best, self.worse = found, 0
        else:
            self.worse += 1


def _logits(runs: Sequence[_Run]) -> Sequence[Tensor]:
    """Of each request with its neurons, [T, vocab]."""
    states = [run.state for run in runs]
    return logits_of(states, [run.neurons.increment(run.state.entering) for run in runs])


def _step(runs: Sequence[_Run], losses: Sequence[Tensor], step: int) -> None:
    """Each loss depends on its own neurons alone, so that the gradient of their sum is each one's."""
    for loss in losses:
        if not torch.isfinite(loss):
            raise EditFailedError(f"The loss became {loss.item()} after {step - 1} steps. Use a smaller rate.")
    parameters = [parameter for run in runs for parameter in run.parameters]
    gradients = torch.autograd.grad(torch.stack(list(losses)).sum(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for run in runs:
        nn.utils.clip_grad_norm_(run.parameters, CLIP)
        run.optimiser.step()
        run.taken += 1
