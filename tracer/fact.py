"""A fact as a prompt to complete: its subject, its answer, and the tokens they become.

`Fact` holds text only. `Fact.preflight(model)` shows what a model will see: tokens, subject span,
BOS, answer token. Nothing is run before that is settled.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from tracer.errors import FactError, TracerWarning
from tracer.model import LanguageModel
from tracer.model.inputs import prompt_encoding, target_encoding
from tracer.model.tokens import token_span, visible

ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


@dataclass(frozen=True)
class Fact:
    """A factual prompt, e.g. Fact("The Space Needle is in the city of", subject="The Space Needle").

    Attributes:
        prompt: the text up to, and without, the answer. Of an encoder-decoder it is what the encoder reads;
            <extra_id_0> in it stands where a T5 is to fill the answer in.
        subject: a piece of the prompt, letter by letter.
        answer: the continuation to trace, with or without its leading blank; None: what the model predicts.
        relation: a label to group facts by.
        subject_at: the character where the subject begins; None takes its last occurrence.
        other: an alternative answer, which metric="logit_difference" compares the answer with.

    Raises:
        FactError: an empty prompt or subject, or a subject that is not in the prompt.
    """

    prompt: str
    subject: str
    answer: str | None = None
    relation: str | None = None
    subject_at: int | None = None
    other: str | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise FactError('The prompt is empty. Write e.g. Fact("The capital of France is", subject="France").')
        if not self.subject.strip():
            raise FactError("The subject is empty. Name the words of the prompt that the fact is about.")
        if self.answer is not None and not self.answer.strip():
            raise FactError("The answer is blank. Write the word that should follow, or answer=None.")
        if self.other is not None and not self.other.strip():
            raise FactError("The alternative answer is blank. Write a word, or other=None.")
        if self.subject_at is None and self.subject not in self.prompt:
            raise FactError(f"The subject {self.subject!r} is not in the prompt {self.prompt!r}.{self._suggestion()}")
        if self.subject_at is not None and not self._has_subject_at(self.subject_at):
            raise FactError(
                f"The prompt has no {self.subject!r} at character {self.subject_at}; it occurs at "
                f"{', '.join(map(str, self.occurrences())) or 'no character'}."
            )

    def _has_subject_at(self, place: int) -> bool:
        return place >= 0 and self.prompt.startswith(self.subject, place)  # -1 would count from the end

    def occurrences(self) -> list[int]:
        """The characters where the subject begins in the prompt."""
        found, at = [], self.prompt.find(self.subject)
        while at >= 0:
            found.append(at)
            at = self.prompt.find(self.subject, at + 1)
        return found

    @property
    def character_span(self) -> tuple[int, int]:
        """Where the subject's words stand in the prompt, [begin, end)."""
        begin = self.prompt.rfind(self.subject) if self.subject_at is None else self.subject_at
        # White space around the subject belongs to its neighbours' tokens.
        words = self.subject.strip()
        begin += self.subject.index(words)
        return begin, begin + len(words)

    def preflight(self, model: LanguageModel, *, warn: bool = True, whole_answer: bool = False) -> TokenizedFact:
        """What `model` will see of this fact; prints as a table. Runs no forward pass.

        Args:
            model: from `tracer.load`.
            warn: of notes, e.g. which of two subjects is meant.
            whole_answer: all tokens of the answer will be traced, so there is nothing to note about that.

        Raises:
            FactError: the prompt is longer than the model's context, or the answer has no tokens.
        """
        encoding = prompt_encoding(model, self.prompt)
        model.check_length(len(encoding.ids))
        answer_ids, other_ids = self._target_ids(model, self.answer), self._target_ids(model, self.other)
        tokenized = TokenizedFact(
            token_ids=encoding.ids,
            tokens=visible(model.tokenizer, encoding.ids),
            subject_span=token_span(encoding.offsets, *self.character_span),
            answer_ids=answer_ids,
            answer_tokens=visible(model.tokenizer, answer_ids),
            other_ids=other_ids,
            special=tuple(n for n, (start, end) in enumerate(encoding.offsets) if start == end),
            fact=self,
            n_encoder=encoding.n_encoder,
            notes=self._notes(model, answer_ids[:1] if whole_answer else answer_ids),
        )
        if warn:
            for note in tokenized.notes:
                warnings.warn(note, TracerWarning, stacklevel=2)
        return tokenized

    def _target_ids(self, model: LanguageModel, target: str | None) -> tuple[int, ...]:
        if target is None:
            return ()
        return target_encoding(model, self.prompt, target).target_ids

    def _notes(self, model: LanguageModel, answer_ids: tuple[int, ...]) -> tuple[str, ...]:
        notes = []
        places = self.occurrences()
        if len(places) > 1 and self.subject_at is None:
            notes.append(
                f"The subject {self.subject!r} occurs {len(places)} times; the last one (character {places[-1]}) "
                f"is taken. For another write subject_at={places[0]}."
            )
        if self.prompt != self.prompt.rstrip():
            notes.append("The prompt ends in white space, which most tokenizers put into the next word. Drop it.")
        if len(answer_ids) > 1:
            pieces = visible(model.tokenizer, answer_ids)
            notes.append(
                f"The answer {self.answer!r} has {len(pieces)} tokens; the first, {pieces[0]!r}, is traced, unless you "
                f"write whole_answer=True."
            )
        return tuple(notes)

    def _suggestion(self) -> str:
        at = self.prompt.lower().find(self.subject.strip().lower())
        if at < 0:
            return " Copy the subject from the prompt, letter by letter."
        return f" Did you mean {self.prompt[at : at + len(self.subject.strip())]!r}?"


@dataclass(frozen=True)
class TokenizedFact:
    """A fact as token ids. Build one by hand for a model without a tokenizer.

    Attributes:
        token_ids: of the prompt, special tokens included.
        subject_span: the subject's tokens [begin, end).
        tokens: the same as text, for labels.
        answer_ids: of the answer; the first is traced. Empty: what the model predicts.
        other_ids: of the alternative answer; its first token counts.
        special: positions of special tokens, such as BOS.
        n_encoder: how many of the tokens an encoder reads, the others being its decoder's; 0: there is no encoder.
        notes: what the user should know about this fact.
    """

    token_ids: tuple[int, ...]
    subject_span: tuple[int, int]
    tokens: tuple[str, ...] = ()
    answer_ids: tuple[int, ...] = ()
    answer_tokens: tuple[str, ...] = ()
    other_ids: tuple[int, ...] = ()
    special: tuple[int, ...] = ()
    fact: Fact | None = None
    n_encoder: int = 0
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        begin, end = self.subject_span
        if not 0 <= begin < end <= len(self.token_ids):
            raise FactError(f"The subject span [{begin}, {end}) does not fit a prompt of {len(self.token_ids)} tokens.")
        if self.n_encoder and not end <= self.n_encoder < len(self.token_ids):
            raise FactError(
                f"n_encoder={self.n_encoder} of {len(self.token_ids)} tokens: the encoder reads the subject, and the "
                f"decoder at least its start token."
            )
        if not self.tokens:
            object.__setattr__(self, "tokens", visible(None, self.token_ids))
        if len(self.tokens) != len(self.token_ids):
            raise FactError(
                f"{len(self.tokens)} texts for {len(self.token_ids)} token ids. Give one for each, or none."
            )

    @property
    def answer_id(self) -> int | None:
        """The token that is traced, if an answer was given."""
        return self.answer_ids[0] if self.answer_ids else None

    @property
    def text(self) -> str:
        """The prompt as it was written; of bare token ids, their tokens."""
        if self.fact:
            return self.fact.prompt
        return "".join(token for n, token in enumerate(self.tokens) if n not in self.special).strip()

    def __str__(self) -> str:
        begin, end = self.subject_span
        lines = [f"{'':2}{'token':>5}  {'id':>7}  text"]
        for n, (token, text) in enumerate(zip(self.token_ids, self.tokens, strict=True)):
            mark = "*" if begin <= n < end else " "
            about = "  (decoder)" if 0 < self.n_encoder <= n else "  (special)" if n in self.special else ""
            lines.append(f"{mark} {n:5d}  {token:7d}  {text!r}{about}")
        lines.append(f"* subject: tokens {begin} to {end - 1}")
        answer = " + ".join(map(repr, self.answer_tokens)) or "what the model predicts"
        lines.append(f"  answer:  {answer}{' (the first is traced by default)' if len(self.answer_ids) > 1 else ''}")
        return "\n".join(lines + [f"  note:    {note}" for note in self.notes])

    __repr__ = __str__  # what a notebook shows


def token_roles(n_tokens: int, subject_span: tuple[int, int]) -> list[str | None]:
    """The role of each token in an average, None before the subject (nothing is corrupted there).

    Every token has one role. A subject of one token is its last token; the prompt's last token is
    "last token" whatever else it is: of an encoder-decoder the one after which the decoder answers.

    Source: Meng et al. 2022, fig. 2.
    """
    begin, end = subject_span
    roles: list[str | None] = [None] * n_tokens
    for n in range(begin, n_tokens):
        if n < end - 1:
            roles[n] = "first subject token" if n == begin else "middle subject tokens"
        elif n == end - 1:
            roles[n] = "last subject token"
        else:
            roles[n] = "first subsequent token" if n == end else "further tokens"
    roles[-1] = "last token"
    return roles


def check_roles(roles: Sequence[str]) -> None:
    """Raises FactError for a role that does not exist."""
    if isinstance(roles, str):
        raise FactError(f"roles is a sequence: write roles=({roles!r},).")
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise FactError(f"There is no role {unknown[0]!r}. Choose from: {', '.join(ROLES)}.")
