"""What a network that edits is trained on: one fact to change, other words for it, and one that must stay."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from editing.errors import RequestError


@dataclass(frozen=True)
class TrainingRecord:
    """One example.

    Attributes:
        prompt: the text of the edit.
        subject: what it is about; training and validation share none.
        new: the continuation to write.
        rephrases: the prompt in other words, at least one.
        locality: a prompt of something else.
        locality_answer: its continuation; what the model thinks of each of its tokens must stay.

    Raises:
        RequestError: an empty field, or no rephrase.
    """

    prompt: str
    subject: str
    new: str
    rephrases: tuple[str, ...]
    locality: str
    locality_answer: str

    def __post_init__(self) -> None:
        said = (self.prompt, self.subject, self.new, *self.rephrases, self.locality, self.locality_answer)
        if not self.rephrases or not all(text.strip() for text in said):
            raise RequestError(f"{self} lacks something. A training record needs each of its fields, also a rephrase.")


def split_by_subject(
    records: Sequence[TrainingRecord], held_out: int, seed: int = 0
) -> tuple[list[TrainingRecord], list[TrainingRecord]]:
    """Records for training and about `held_out` others for validation, which share no subject.

    Raises:
        RequestError: nothing is left for one of them.
    """
    subjects = sorted({_name(record) for record in records})
    random.Random(seed).shuffle(subjects)
    groups: dict[str, list[TrainingRecord]] = {subject: [] for subject in subjects}
    for record in records:
        groups[_name(record)].append(record)
    kept, others = [], []
    for group in groups.values():
        (others if len(others) < held_out else kept).extend(group)
    if not kept or not others:
        raise RequestError(
            f"{len(records)} records about {len(subjects)} subjects cannot be split: {len(kept)} to train on, "
            f"{len(others)} to validate on. Give more records, or another number to hold out."
        )
    return kept, others


def check_disjoint(records: Sequence[TrainingRecord], held_out: Sequence[TrainingRecord]) -> None:
    """Raises RequestError where records to train and to validate on share a subject, or there are none of one kind."""
    if not records or not held_out:
        raise RequestError(f"{len(records)} records to train on and {len(held_out)} to validate on: give some of both.")
    shared = sorted({_name(record) for record in records} & {_name(record) for record in held_out})
    if shared:
        raise RequestError(
            f"{len(shared)} subjects are both trained and validated on, e.g. {', '.join(shared[:3])}. Leave held_out "
            f"out: then records are split by subject."
        )


def digest(records: Sequence[TrainingRecord]) -> str:
    """sha256 of the records in their order."""
    return hashlib.sha256(repr([astuple(record) for record in records]).encode()).hexdigest()


def _name(record: TrainingRecord) -> str:
    return " ".join(record.subject.casefold().split())
