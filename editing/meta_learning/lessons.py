"""Records as a network meets them in training: the edit, the same in other words, and what must stay.

The network sees the edit alone. Its changes are judged on the other two (Mitchell et al. 2022, sec. 3.3):
    edit loss   nll of the new answer after a rephrase       drift   KL at every token of the locality text
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from editing.meta_learning.hypernetwork import Asked, Hypernetwork, Said
from editing.meta_learning.matrices import lowest_layer
from editing.meta_learning.records import TrainingRecord
from editing.meta_learning.side_terms import edited
from editing.meta_learning.states import Read
from editing.meta_learning.texts import Pair, Texts, texts_of_each
from tracer.model import LanguageModel


@dataclass(frozen=True, eq=False)
class Lesson:
    """Some records, one a row.

    Attributes:
        edits, others, localities: prompts with the new answer, what success is measured on, and what must stay.
        asked: the edits in words.
    """

    edits: Texts
    others: Texts
    localities: Texts
    asked: Sequence[Asked]


@dataclass(frozen=True, eq=False)
class Losses:
    """Of each row.

    Attributes:
        edit: nll of the new answer on `others`.
        drift: of the localities.
        taken: whether the whole new answer is the most probable one on `others`.
    """

    edit: Tensor
    drift: Tensor
    taken: Tensor


def lesson_of(
    model: LanguageModel,
    network: Hypernetwork,
    records: Sequence[TrainingRecord],
    others: Sequence[str],
    *,
    read: Read | None = None,
    said: Said | None = None,
) -> Lesson:
    """Tokenises and records the texts.

    Args:
        model: that reads them.
        network: that will edit it.
        records: one a row.
        others: the prompts on which success is measured, one a record.
        read: of a `Shelf`, which may know what enters the lowest edited block.
        said: of a `Shelf`, which may know what the model answers now.
    """
    layer, pairs = lowest_layer(model, tuple(network.sizes)), pairs_of(records, others)
    edits, rephrased, localities = texts_of_each(model, layer, pairs, read=read)
    return Lesson(edits, rephrased, localities.kept(), network.asked(model, pairs[0], said=said))


def pairs_of(records: Sequence[TrainingRecord], others: Sequence[str]) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Prompts with targets: the edits, the same in other words, what must stay."""
    return (
        [(record.prompt, record.new) for record in records],
        [(other, record.new) for other, record in zip(others, records, strict=True)],
        [(record.locality, record.locality_answer) for record in records],
    )


def losses(network: Hypernetwork, lesson: Lesson) -> Losses:
    """Both losses of each edit, with gradients towards the network where those are on."""
    terms = network.proposed(lesson.edits, lesson.asked)
    with edited(network.matrices(lesson.edits.model), terms):
        edit, taken = lesson.others.scores()
        return Losses(edit, lesson.localities.drift(), taken)


@torch.no_grad()
def edits_take(network: Hypernetwork, lesson: Lesson) -> Tensor:
    """Whether the new answer is said after the edited prompt itself, bool [row]."""
    with edited(network.matrices(lesson.edits.model), network.proposed(lesson.edits, lesson.asked)):
        return lesson.edits.scores()[1]


def numbers_of_step(step: int, *, n: int, batch: int, seed: int) -> list[tuple[int, int]]:
    """The records of one step, and how often each was seen before: in each round all, in an order of its own.

    It depends on its arguments alone, so that a training that goes on draws what an uninterrupted one would.
    """
    places = range(step * batch, (step + 1) * batch)
    orders = {turn: np.random.default_rng((seed, turn)).permutation(n) for turn in {place // n for place in places}}
    return [(int(orders[place // n][place % n]), place // n) for place in places]


def other_words(record: TrainingRecord, own: float, *, seed: int, number: int, turn: int) -> str:
    """The prompt that success is measured on: the record's own with probability `own`, else one of its rephrases."""
    draw = np.random.default_rng((seed, number, turn, 1))
    if draw.random() < own:
        return record.prompt
    return record.rephrases[int(draw.integers(len(record.rephrases)))]
