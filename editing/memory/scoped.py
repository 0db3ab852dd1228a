"""Facts with prompts that fall under them and prompts that do not: what IKE shows and scopes are learned from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from editing.errors import RequestError
from editing.published import counterfact, flat, zsre
from tracer.errors import FileFormatError
from tracer.facts import bundled, paraphrases, spread_over_relations
from tracer.facts.readers import read_records

SENTENCE_END = re.compile(r"[.!?\n]\s+")
MOST_OUTSIDE = 5  # neighbours of a bundled fact


@dataclass(frozen=True)
class ScopedFact:
    """A fact with a new answer.

    Attributes:
        inside: other prompts that ask for it.
        outside: prompts that do not, each with its own true answer.
    """

    prompt: str
    subject: str
    new: str
    inside: tuple[str, ...]
    outside: tuple[tuple[str, str], ...]
    relation: str | None = None

    def shows(self, subject: str) -> bool:
        """Whether one of its prompts or answers names this subject."""
        texts = (self.prompt, self.new, *self.inside, *(text for pair in self.outside for text in pair))
        return any(subject.casefold().strip() in text.casefold() for text in texts)


@dataclass(frozen=True)
class ScopedFacts:
    """Facts from one source, each with prompts inside and outside its scope.

    Attributes:
        source: what they were read from.
        left_out: records without such prompts.
    """

    source: str
    facts: tuple[ScopedFact, ...]
    left_out: int = 0

    def __str__(self) -> str:
        digest = hashlib.sha256(json.dumps([asdict(fact) for fact in self.facts]).encode()).hexdigest()
        return f"{self.source} (n={len(self.facts)}, sha256 {digest[:12]})"

    def without(self, subjects: Iterable[str]) -> ScopedFacts:
        """Those that have nothing to do with these subjects, e.g. those of an evaluation."""
        names = list(subjects)
        kept = tuple(fact for fact in self.facts if not any(map(fact.shows, names)))
        return ScopedFacts(self.source, kept, self.left_out)

    def in_two(self, share: float) -> tuple[ScopedFacts, ScopedFacts]:
        """About this share of the subjects with all their facts, and the rest; which, their names decide."""
        cut = int(share * 2**32)
        first = [fact for fact in self.facts if _number(fact.subject) < cut]
        rest = [fact for fact in self.facts if _number(fact.subject) >= cut]
        return ScopedFacts(self.source, tuple(first)), ScopedFacts(self.source, tuple(rest))


def together(parts: Sequence[ScopedFacts]) -> ScopedFacts:
    """The facts of several sources as those of one."""
    facts = tuple(fact for part in parts for fact in part.facts)
    return ScopedFacts(" + ".join(part.source for part in parts), facts, sum(part.left_out for part in parts))


def check_facts(facts: object) -> None:
    """Raises RequestError where these are no facts with their scopes, or none at all."""
    if not isinstance(facts, ScopedFacts):
        raise RequestError(f"{facts!r} is no ScopedFacts. Write editing.memory.read_scoped_facts(path).")
    if not facts.facts:
        raise RequestError(f"{facts.source} holds no fact. Give some that no evaluation asks about.")


def bundled_facts() -> ScopedFacts:
    """The facts that come with the package: other templates are inside, other subjects of the relation outside."""
    found, facts = [], spread_over_relations(bundled())
    for number, fact in enumerate(facts):
        others = [other for other in bundled(fact.relation) if other.subject != fact.subject and other.answer]
        answers = sorted({other.answer for other in others if other.answer and other.answer != fact.answer})
        inside = tuple(paraphrases(fact.prompt, fact.subject))
        if not (others and answers and inside):
            continue
        turned = others[number % len(others) :] + others[: number % len(others)]
        outside = tuple((other.prompt, other.answer or "") for other in turned[:MOST_OUTSIDE])
        new = answers[number % len(answers)]
        found.append(ScopedFact(fact.prompt, fact.subject, new, inside, outside, fact.relation))
    return ScopedFacts("bundled facts", tuple(found), len(facts) - len(found))


def read_scoped_facts(path: str | Path) -> ScopedFacts:
    """The facts of a CounterFact, flat CounterFact or zsRE file, also gzipped.

    Raises:
        FileFormatError: missing, not JSON, or of another format.
        RequestError: no record has prompts inside and outside its scope.
    """
    return scoped_facts(read_records(path), source=Path(path).name)


def scoped_facts(records: Sequence[Mapping[str, Any]], *, source: str = "records") -> ScopedFacts:
    """The same, of records that are read already."""
    try:
        made = [_fact(record) for record in records]
    except (LookupError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{source} holds a record of no known format: {error}.") from error
    facts = tuple(fact for fact in made if fact is not None)
    if not facts:
        raise RequestError(f"{source} holds no fact with a paraphrase, a neighbour and an answer to write.")
    return ScopedFacts(source, facts, len(made) - len(facts))


def _fact(record: Mapping[str, Any]) -> ScopedFact | None:
    """None where something that is needed is empty."""
    whole = "requested_rewrite" in record
    in_sentences = whole or "locality_prompt" in record
    if whole:
        read = counterfact(record)
    else:
        read = flat(record) if in_sentences else zsre(record, record["alt"] or record["answers"][0])
    texts = [bare(text, read.subject) if in_sentences else text for text in read.paraphrases]
    inside = tuple(text for text in texts if text.strip() and text != read.prompt)
    others = [one for one in dict.fromkeys(read.neighbours) if not (whole and read.subject in one[0])]
    outside = tuple((text.removeprefix("nq question: "), answer) for text, answer in others if answer)
    if not (inside and outside and read.new):
        return None
    return ScopedFact(read.prompt, read.subject, read.new, inside, outside, read.relation)


def bare(text: str, subject: str) -> str:
    """A paraphrase without the unrelated sentence that CounterFact puts before it.

    Cut at the last end of a sentence before the subject; a heading ends at a line break.
    """
    before = text[: text.rfind(subject)] if subject in text else ""
    ends = [found.end() for found in SENTENCE_END.finditer(before)]
    return text[ends[-1] if ends else 0 :].strip()


def _number(subject: str) -> int:
    return int.from_bytes(hashlib.blake2b(subject.casefold().encode(), digest_size=4).digest(), "big")
