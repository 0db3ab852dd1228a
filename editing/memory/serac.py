"""SERAC: an explicit memory of edits, a scope classifier and a counterfactual model.

(Mitchell et al. 2022, arXiv:2206.06520)

i* = argmax_i s(x_i, x)
s(x_i*, x) > 1/2      the counterfactual model reads "x_i* y_i*. x"
otherwise             the base model reads x: its own answer, exactly
The choice is hard and made on the prompt alone. The counterfactual model is the base model itself unless
another is given (the paper's variant with the counterfactual model frozen): it needs no second network
of the family, and only the classifier is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from editing.errors import EditFailedError, RequestError
from editing.memory.memory import Memory, MemoryEditor, memory_of
from editing.memory.record import MemoryRecord
from editing.memory.retrievers import DEFAULT
from editing.memory.room import check_room
from editing.memory.scope import Scope
from editing.memory.scope_training import ScopeTraining, train_scope
from editing.memory.scoped import ScopedFacts, bundled_facts
from editing.request import EditRequest
from editing.scoring.asking import Route
from editing.setting_checks import is_number
from tracer.model import LanguageModel

CONTEXT = "New fact: {edit}.\n{edit}.\n{edit}.\n{query}"  # small models copy what they were told three times


@dataclass(frozen=True, kw_only=True)
class SERAC(MemoryEditor, method="serac"):
    """The method of this module.

    Attributes:
        scope: the trained classifier; `fit` trains one.
        threshold: a query is in scope above it, not at it.
        context: what the counterfactual model reads; {edit} is the fact as a sentence, {query} the prompt. Published:
            "{edit} {query}", to a model trained on that.
        counterfactual: reads queries in scope; None: the base model. Its vocabulary must be the base model's.
    """

    scope: Scope | None = None
    threshold: float = 0.5
    context: str = CONTEXT
    counterfactual: LanguageModel | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.threshold) and 0 <= self.threshold < 1):
            raise RequestError(
                f"threshold={self.threshold!r}: similarities lie in (0, 1], and a query is in scope above the "
                f"threshold. Write threshold=0.5."
            )
        if not isinstance(self.counterfactual, LanguageModel | None):
            raise RequestError(
                f"counterfactual={self.counterfactual!r} is no opened model. Write "
                f"counterfactual=tracer.load({str(self.counterfactual)!r})."
            )
        if not isinstance(self.context, str) or "{edit}" not in self.context or not self.context.endswith("{query}"):
            raise RequestError(f"The context {self.context!r} must name the edit and end in the query: {CONTEXT!r}.")
        if isinstance(self.scope, Scope) and self.scope.encoder != self.retriever:
            if self.retriever != DEFAULT:
                raise RequestError(
                    f"The scope classifier was trained on vectors of {self.scope.encoder!r}, and retriever is "
                    f"{self.retriever!r}. Leave the retriever out, or train another classifier."
                )
            object.__setattr__(self, "retriever", self.scope.encoder)
        if not isinstance(self.scope, Scope | None):
            raise RequestError(
                f"scope={self.scope!r} is no classifier. Write scope=load_scope({str(self.scope)!r}), on the command "
                f"line --set checkpoint={self.scope}."
            )

    def fit(
        self,
        model: LanguageModel | None,
        facts: ScopedFacts | None = None,
        *,
        training: ScopeTraining | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        progress: bool | None = None,
    ) -> SERAC:
        """The same with a scope classifier trained on these facts.

        Args:
            model: unused, may be None: the classifier shares nothing with it.
            facts: with prompts inside and outside; None: the bundled ones. Keep those of an evaluation out
                (`ScopedFacts.without`).
            training: its settings.
            seed: of the head's first values and of the batches.
            folder: for checkpoints: a run that was stopped goes on there, to the same result.
            progress: show a bar.
        """
        data, plan = bundled_facts() if facts is None else facts, training or ScopeTraining()
        scope = train_scope(self.retriever, data, plan, seed=seed, folder=folder, progress=progress)
        return dataclasses.replace(self, scope=scope)

    def finder(self) -> Scope:
        """The classifier.

        Raises:
            EditFailedError: there is none yet.
        """
        if self.scope is None:
            raise EditFailedError(
                "This SERAC has no scope classifier. Train one: SERAC().fit(model, read_scoped_facts(path)), or load "
                "one: SERAC(scope=load_scope(path)). On the command line: `editing train --editor serac --data FILE "
                "--out FOLDER`, then --set checkpoint=FOLDER."
            )
        return self.scope

    def settings(self) -> dict[str, Any]:
        """The classifier by its encoder, a counterfactual model by its weights."""
        other = self.counterfactual
        return {
            "retriever": self.retriever,
            "threshold": self.threshold,
            "context": self.context,
            "encoder": self.finder().encoder,
            "counterfactual": None if other is None else f"{other.name} {other.fingerprint()}",
        }

    def tensors(self) -> dict[str, Tensor]:
        """The scope classifier's tensors by name, for a file."""
        return {"scale": self.finder().scale, "mix": self.finder().mix}

    def check_file(self) -> None:
        """Raises EditFailedError where a counterfactual model of its own reads the queries."""
        if self.counterfactual is not None:
            raise EditFailedError(
                f"No file holds {self.counterfactual.name}, which reads this edit's queries. Keep the requests, and "
                f"apply SERAC(counterfactual=...) to them again."
            )

    @classmethod
    def restored(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """From what `settings` and `tensors` gave."""
        scope = Scope(settings["encoder"], tensors["scale"], tensors["mix"])
        return cls(
            retriever=settings["retriever"],
            threshold=settings["threshold"],
            context=settings["context"],
            scope=scope,
        )

    def remembered(
        self, model: LanguageModel, requests: Sequence[EditRequest], seed: int
    ) -> list[tuple[MemoryRecord, dict[str, Any]]]:
        """Each record, with what it replaces and which remembered facts it may contradict."""
        memory = memory_of(model, self)
        return [(record, self._meets(memory, record)) for record in map(MemoryRecord.of, requests)]

    def _meets(self, memory: Memory | None, record: MemoryRecord) -> dict[str, Any]:
        replaced, contradicted = None, []
        for other, score in zip(memory.records, memory.scores([record.prompt])[0], strict=True) if memory else ():
            if other.names & record.names:
                replaced = other.text
            elif score > self.threshold and other.new != record.new:
                contradicted.append(other.text)
        return {"replaces": replaced, "contradicts": contradicted}

    def check_fits(self, model: LanguageModel, record: MemoryRecord) -> None:
        """Raises EditFailedError where what answers in scope cannot read the edit with its own prompt."""
        what, instead = "The fact in its context and a question", 'A shorter one: SERAC(context="{edit}. {query}").'
        check_room(self.counterfactual or model, self.read(record, record.prompt), least=1, what=what, instead=instead)

    def check(self, model: LanguageModel, records: Sequence[MemoryRecord]) -> None:
        """Raises EditFailedError where the counterfactual model's answers cannot be compared with the base model's."""
        other = self.counterfactual
        if other is not None and _vocabulary(other) != _vocabulary(model):
            raise EditFailedError(
                f"{other.name} does not have the vocabulary of {model.name}, so their scores cannot be compared. "
                f"Give a model of the same family, or none: then {model.name} reads the edit itself."
            )

    def routes(self, model: LanguageModel, memory: Memory, prompts: Sequence[str]) -> list[Route | None]:
        """In scope: the edit before the query, to the counterfactual model."""
        answering = self.counterfactual or model
        return [
            Route(self.read(record, prompt), answering) if score > self.threshold else None
            for prompt, (record, score) in zip(prompts, memory.nearest(prompts), strict=True)
        ]

    def read(self, record: MemoryRecord, query: str) -> str:
        """What the counterfactual model reads for a query under this edit."""
        return self.context.removesuffix("{query}").replace("{edit}", record.text) + query


def _vocabulary(model: LanguageModel) -> tuple[dict[str, int], int]:
    assert model.tokenizer is not None
    return model.tokenizer.get_vocab(), int(model.torch.config.get_text_config().vocab_size)
