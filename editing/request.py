"""What to write: a prompt, its subject, and the new continuation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from editing.errors import BaseModelError, RequestError
from editing.published import counterfact
from editing.setting_checks import whole
from tracer.errors import FactError
from tracer.fact import Fact
from tracer.facts.bundled import filled
from tracer.model import LanguageModel

ENCODER_DECODERS_TOO = "FT (FT-L, FT-M), KN, MEND, KE, CaliNet, T-Patcher, IKE and SERAC"


@dataclass(frozen=True)
class EditRequest:
    """One fact to change.

    Attributes:
        prompt: the text that should be continued by `new`; one {} in it stands for the subject.
        subject: a piece of the prompt; its last occurrence is taken unless a template or `subject_at` says.
        new: the continuation to write, with or without its leading blank.
        true: the continuation it replaces, if known.
        id: a label, e.g. CounterFact's case_id.
        relation: a label to group requests by.
        subject_at: the character of the prompt where the subject begins.

    Raises:
        RequestError: an empty field or one that is no text, or a subject that is not in the prompt.
    """

    prompt: str
    subject: str
    new: str
    true: str | None = None
    id: str | None = None
    relation: str | None = None
    subject_at: int | None = None

    def __post_init__(self) -> None:
        self._check_types()
        if not self.new.strip():
            raise RequestError(
                'The new answer is empty. Write e.g. EditRequest(prompt, subject=subject, new=" Paris").'
            )
        if self.subject_at is None and self.prompt.count("{}") == 1 and "{}" not in self.subject:
            object.__setattr__(self, "subject_at", self.prompt.index("{}"))
            object.__setattr__(self, "prompt", filled(self.prompt, self.subject))
        try:
            _ = self.fact
        except FactError as error:
            raise RequestError(str(error)) from error

    def _check_types(self) -> None:
        for name in ("prompt", "subject", "new", "true"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "true" and value is None):
                raise RequestError(
                    f'{name}={value!r} is no text. Write e.g. EditRequest(prompt, subject="The Louvre", new=" Paris").'
                )
        if self.true is not None and not self.true.strip():
            raise RequestError("The old answer is blank. Write what the new one replaces, or true=None.")
        if self.subject_at is not None:
            object.__setattr__(self, "subject_at", whole("subject_at", self.subject_at, 0))

    @property
    def fact(self) -> Fact:
        """The prompt as a fact whose answer is the new one."""
        return Fact(self.prompt, self.subject, self.new, self.relation, self.subject_at)

    @property
    def fact_names(self) -> tuple[FactName, ...]:
        """Under which its fact is known."""
        return fact_names(self.prompt, self.subject, self.relation)

    @classmethod
    def from_counterfact(cls, record: dict[str, Any]) -> EditRequest:
        """The request of a CounterFact record.

        Raises:
            RequestError: it is none.
        """
        try:
            read, name = counterfact(record), str(record["case_id"])
        except (KeyError, TypeError, AttributeError, RequestError) as error:
            raise RequestError(
                f"This is no CounterFact record ({error}). One has a case_id, and a requested_rewrite with prompt "
                f"(holding {{}}), subject, target_new and target_true."
            ) from error
        return cls(read.prompt, read.subject, read.new, read.true, name, read.relation, read.subject_at)


def listed(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The requests as a list, also of what can be gone through only once; RequestError where one is given alone."""
    if isinstance(requests, EditRequest) or not isinstance(requests, Iterable):
        raise RequestError("Editors take a list of requests. Write apply(model, [request]).")
    return list(requests)


FactName = tuple[str, str, str]


def fact_names(prompt: str, subject: str, relation: str | None) -> tuple[FactName, ...]:
    """Under which a fact is known, two that share one being the same: subject with prompt, or with a named relation.

    CounterFact asks about several relations in the same words ("{} is located in").
    """
    by_prompt = ("prompt", prompt, subject)
    return (by_prompt, ("relation", relation, subject)) if relation else (by_prompt,)


def check_model(model: LanguageModel) -> None:
    """Raises BaseModelError for a model that tracer did not open."""
    if not isinstance(model, LanguageModel):
        raise BaseModelError(f"{type(model).__name__} is no model of tracer's. Write model = tracer.load(model) first.")


def check_decoder_only(model: LanguageModel, method: str) -> None:
    """Raises AnatomyError for an encoder-decoder, which this method cannot edit."""
    model.check_decoder_only(method, instead=f"the editors {ENCODER_DECODERS_TOO}")


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises RequestError for one text in place of a sequence: its letters would be taken for prompts."""
    if isinstance(prompts, str):
        raise RequestError(f"{prompts!r} is one text, not a sequence of prompts. Write [{prompts!r}].")


def check_requests(model: LanguageModel, requests: Sequence[EditRequest]) -> None:
    """Tokenises every request and refuses two different answers to one fact, before anything is written.

    Raises:
        BaseModelError: a model that tracer did not open.
        RequestError: something else than a request, or requests that contradict each other.
        FactError: a prompt that the tokenizer or the model cannot take.
    """
    check_model(model)
    if isinstance(requests, Iterator):  # whoever writes them would find none left
        raise RequestError("These requests can be read only once. Write apply(model, list(requests)).")
    seen: dict[FactName, EditRequest] = {}
    for request in listed(requests):
        if not isinstance(request, EditRequest):
            raise RequestError(f"{request!r} is no EditRequest. Write EditRequest(prompt, subject=..., new=...).")
        for name in request.fact_names:
            _check_agrees(request, seen.setdefault(name, request))
        request.fact.preflight(model, warn=False)


def _check_agrees(request: EditRequest, other: EditRequest) -> None:
    """Raises RequestError where an earlier request gives the same fact another answer."""
    old, new = other.new.strip(), request.new.strip()
    if old == new:
        return
    if request.prompt == other.prompt:
        raise RequestError(f"{request.prompt!r} is asked to become both {old!r} and {new!r}. Keep one of them.")
    raise RequestError(
        f"{other.prompt!r} is to become {old!r} and {request.prompt!r}, the same relation of {request.subject}, "
        f"{new!r}. Keep one of them, or give the later one in another call."
    )
