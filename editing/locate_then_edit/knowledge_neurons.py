"""Which neurons express a fact: those that carry its answer, in most ways of asking for it.

coarse    the neurons with Attr > threshold * max, for each prompt
refined   those that are coarse in a share of the prompts, and in at least three
Source: Dai et al. 2022 (arXiv:2104.08696), sec. 3.3 and appendix B.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from editing.locate_then_edit.integrated_gradients import Rule, attributions
from tracer.anatomy.hidden import by_token
from tracer.answer import predicted_id
from tracer.errors import SiteError
from tracer.model import LanguageModel
from tracer.model.inputs import inputs_of, prompt_encoding, target_encoding

Neuron = tuple[int, int]  # layer, place among the inputs of its value matrix
AT_LEAST = 3  # prompts, where there are as many
MOVES, MOVE = 6, 0.05


@dataclass(frozen=True)
class Question:
    """A prompt and the answer asked for, as tokens: what attribution needs.

    Attributes:
        ids: of both.
        n_prompt: how many of them are the prompt.
        n_encoder: how many of these an encoder reads; 0: there is none.
    """

    ids: tuple[int, ...]
    n_prompt: int
    n_encoder: int = 0

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """Ids of the answer."""
        return self.ids[self.n_prompt :]


def questions(model: LanguageModel, prompts: Sequence[str], answer: str | None) -> tuple[Question, ...]:
    """The prompts with their answer; None: the token that the model predicts after the first of them."""
    if answer is not None:
        found = [target_encoding(model, prompt, answer) for prompt in prompts]
        asked = tuple(Question(encoding.ids, encoding.n_prompt, encoding.n_encoder) for encoding in found)
    else:
        encoded = [prompt_encoding(model, prompt) for prompt in prompts]
        predicted = predicted_id(model, encoded[0].ids, n_encoder=encoded[0].n_encoder)
        asked = tuple(Question((*each.ids, predicted), len(each.ids), each.n_encoder) for each in encoded)
    model.check_length(max(len(question.ids) for question in asked) - 1)
    return asked


@dataclass(frozen=True)
class Coarse:
    """The coarse neurons of one fact.

    Attributes:
        neurons: a set for each of its prompts.
        attribution: of each of them, the mean over prompts.
    """

    neurons: tuple[frozenset[Neuron], ...]
    attribution: dict[Neuron, float]


def coarse_neurons(
    model: LanguageModel,
    asked: Sequence[Question],
    *,
    threshold: float,
    nodes: int,
    rule: Rule,
    each_layer: Callable[[], object] = lambda: None,
) -> Coarse:
    """The neurons whose attribution exceeds `threshold` times the largest one of the prompt."""
    sets, total = [], None
    for question in asked:
        about = question.ids, question.n_prompt, question.n_encoder
        found = attributions(model, *about, nodes=nodes, rule=rule, each_layer=each_layer)
        bound = threshold * max(float(layer.max()) for layer in found)
        places = [(layer, place) for layer, each in enumerate(found) for place in _above(each, bound)]
        sets.append(frozenset(places))
        total = found if total is None else [sum_ + each for sum_, each in zip(total, found, strict=True)]
    assert total is not None
    chosen = sorted(frozenset().union(*sets))
    return Coarse(tuple(sets), {(layer, at): float(total[layer][at]) / len(sets) for layer, at in chosen})


def _above(values: Tensor, bound: float) -> list[int]:
    return (values > bound).nonzero()[:, 0].tolist() if bound > 0 else []


def refined(sets: Sequence[Collection[Neuron]], share: float) -> set[Neuron]:
    """The neurons in at least `share` of the prompts and in at least three, or all where there are fewer."""
    counts = Counter(neuron for each in sets for neuron in each)
    # 0.7 * 10 is 7.000000000000001 to a computer
    needed = max(math.ceil(share * len(sets) - 1e-9), min(AT_LEAST, len(sets)))
    return {neuron for neuron, count in counts.items() if count >= needed}


def fitting_share(facts: Sequence[Coarse], share: float, aim: tuple[int, int] | None) -> float:
    """`share`, moved by 0.05 up to six times until a fact keeps a mean of `aim[0]` to `aim[1]` neurons.

    Facts with a single prompt, which no share can sift, do not count.
    """
    several = [fact.neurons for fact in facts if len(fact.neurons) > 1]
    if aim is None or not several:
        return share
    for _ in range(MOVES):
        mean = sum(len(refined(sets, share)) for sets in several) / len(several)
        if aim[0] <= mean <= aim[1]:
            break
        share = min(max(share + (-MOVE if mean < aim[0] else MOVE), MOVE), 1.0)
    return share


def strongest(fact: Coarse, most: int) -> set[Neuron]:
    """The neurons of a fact that its answer is attributed to most."""
    return set(sorted(fact.attribution, key=lambda neuron: -fact.attribution[neuron])[:most])


def of_the_relation(others: Sequence[Collection[Neuron]], share: float) -> set[Neuron]:
    """The neurons that occur in more than `share` of the relation's other facts."""
    counts = Counter(neuron for each in others for neuron in each)
    return {neuron for neuron, count in counts.items() if count > share * len(others)}


def probability(
    model: LanguageModel, question: Question, neurons: Collection[Neuron] = (), *, factor: float = 1.0
) -> float:
    """The answer's probability, a geometric mean over its tokens, the neurons' activations times `factor`.

    With 0 they are suppressed, with 2 enhanced (Dai et al. 2022, sec. 4.3).

    Raises:
        SiteError: a neuron of an encoder, where no token of the answer is predicted.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, place in neurons:
        by_layer.setdefault(layer, []).append(place)
    if min(by_layer, default=model.n_layers) < model.anatomy.n_encoder_layers:
        first, last = model.anatomy.n_encoder_layers, model.n_layers - 1
        raise SiteError(f"Answers are predicted in the decoder: write neurons of layers {first} to {last}.")
    n_answer = len(question.answer_ids)
    ids = torch.tensor([question.ids[:-1]], device=model.device)
    with torch.inference_mode(), ExitStack() as hooks:
        for layer, places in by_layer.items():

            def scale(_module: nn.Module, inputs: tuple[Tensor, ...], places: list[int] = places) -> tuple[Tensor, ...]:
                keys = inputs[0].clone()
                by_token(keys, 1)[:, -n_answer:, places] *= factor
                return (keys, *inputs[1:])

            hooks.callback(model.anatomy.value_matrix(layer).register_forward_pre_hook(scale).remove)
        logits = model.torch(**inputs_of(ids, question.n_encoder), use_cache=False).logits[0, -n_answer:]
    model.check_finite(logits)
    targets = torch.tensor(question.answer_ids, device=logits.device)
    return math.exp(-nn.functional.cross_entropy(logits.double(), targets).item())
