"""MemPrompt: a memory of corrections, put beside the questions that they answer (Madaan et al. 2022, arXiv:2201.06009).

    key = the edit's prompt        value = "{prompt} {new answer}"
    hit     {task prompt}{BREAK}{x} | clarification: {value} ->
    miss    x, as it was asked: the base model's own answer, exactly
The paper corrects how GPT-3 reads a task; for facts the value is the corrected fact as a sentence. The task
prompt is fixed: half of its questions have no clarification, half of the clarifications are about
something else, so that the model must see whether one answers the question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from editing.errors import RequestError
from editing.memory.memory import Memory, MemoryEditor
from editing.memory.record import MemoryRecord
from editing.memory.retrievers import check_threshold, least_similarity
from editing.memory.room import check_room
from editing.memory.scoped import ScopedFacts
from editing.memory.threshold import best_threshold
from editing.request import check_decoder_only
from editing.scoring.asking import Route
from tracer.model import LanguageModel

Miss = Literal["base", "task prompt"]
BREAK = "\n\n###\n\n"
ARROW = " ->"
EXAMPLES = (
    ("The capital of Norway is", None, "Oslo"),
    ("The author of Hamlet is", "The author of Hamlet is Jane Austen", "Jane Austen"),
    ("The Great Wall can be visited in the country of", None, "China"),
    ("A salmon is a kind of", "The currency of Brazil is the yen", "fish"),
)


@dataclass(frozen=True, kw_only=True)
class MemPrompt(MemoryEditor, method="memprompt"):
    """The method of this module.

    Attributes:
        threshold: the least similarity of a query to a key that brings the key's correction; None: the
            retriever's own, `fit` finds it on other facts.
        miss: what a query reads that no key is like: itself ("base"), or the task prompt too, as published.
    """

    threshold: float | None = None
    miss: Miss = "base"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        if self.miss not in get_args(Miss):
            raise RequestError(f'There is no miss={self.miss!r}. Write miss="base" or miss="task prompt".')

    def fit(
        self, model: LanguageModel, facts: ScopedFacts, *, folder: Any = None, progress: bool | None = None
    ) -> MemPrompt:
        """The same with the threshold that tells paraphrases from neighbours best on these facts; nothing is trained.

        Args:
            model: unused: the threshold is the retriever's.
            facts: that no evaluation asks about.
            folder: unused; it takes a moment.
            progress: unused.
        """
        return dataclasses.replace(self, threshold=best_threshold(self.finder(), facts).value)

    def check_fits(self, model: LanguageModel, record: MemoryRecord) -> None:
        """Raises EditFailedError where the model's context does not hold the task prompt and a correction."""
        what, instead = "The task prompt, a correction and its question", "IKE(count=0) puts the new fact alone there."
        check_room(model, with_task(record.prompt, record.text), least=1, what=what, instead=instead)

    def check(self, model: LanguageModel, records: Sequence[MemoryRecord]) -> None:
        """Raises AnatomyError for an encoder-decoder: the task prompt is a text to be continued."""
        check_decoder_only(model, "MemPrompt")

    def routes(self, model: LanguageModel, memory: Memory, prompts: Sequence[str]) -> list[Route | None]:
        """The correction of the nearest key beside each query that is like it."""
        least = least_similarity(self.retriever, self.threshold)
        missed = [None if self.miss == "base" else Route(with_task(prompt), model) for prompt in prompts]
        return [
            Route(with_task(prompt, record.text), model) if score >= least else miss
            for prompt, miss, (record, score) in zip(prompts, missed, memory.nearest(prompts), strict=True)
        ]


def with_task(query: str, clarification: str | None = None) -> str:
    """The task prompt and the query, with or without a clarification, up to where the answer follows."""
    shots = [f"{asked(question, told)} {answer}" for question, told, answer in EXAMPLES]
    return BREAK.join((*shots, asked(query, clarification)))


def asked(query: str, clarification: str | None) -> str:
    """A question as the task prompt and the queries write it."""
    told = "" if clarification is None else f" | clarification: {clarification}"
    return f"{query}{told}{ARROW}"
