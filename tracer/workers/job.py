"""What workers do: a job in units, each of which has an answer of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from tracer.model import LanguageModel

Unit = TypeVar("Unit", contravariant=True)
Answer = TypeVar("Answer", covariant=True)


class Job(Protocol[Unit, Answer]):
    """Work that falls into units. It travels to every worker, as units and answers do, so it holds no model.

    An answer must not depend on who does the unit, nor on what was done there before.
    """

    def begun(self, model: LanguageModel, number: int) -> Callable[[Unit], Answer]:
        """What does a unit with this model; asked for once in each worker.

        Args:
            model: the worker's own, unedited.
            number: the worker's, from 0 on; of those at work no other has it.
        """
        ...

    def given_up(self, unit: Unit, reason: str) -> Answer:
        """The answer for a unit on which one worker after the other died, or an error that ends the work."""
        ...
