"""The fields of published records, read in one place: CounterFact, its flat edition, zsRE and KnowEdit.

Blanks round subjects and answers are taken off, a subject is spelled as its prompt spells it, and lists of
aliases become one list. Everything else is as it was published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tracer.facts.bundled import filled

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """What records of every format have.

    Attributes:
        new: the answer to write.
        true: the answer it replaces, where the format says so.
        paraphrases: the prompt in other words.
        neighbours: prompts that the edit should leave alone, with their answers.
        subject_at: the character of the prompt where the subject begins, where the format says so.
    """

    prompt: str
    subject: str
    new: str
    true: str | None
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]
    relation: str | None = None
    subject_at: int | None = None


def counterfact(record: Record) -> Published:
    """A record of CounterFact (Meng et al. 2022)."""
    rewrite = record["requested_rewrite"]
    subject, true = rewrite["subject"], rewrite["target_true"]["str"].strip()
    return Published(
        prompt=filled(rewrite["prompt"], subject),
        subject=subject,
        new=rewrite["target_new"]["str"].strip(),
        true=true,
        paraphrases=tuple(record.get("paraphrase_prompts", ())),
        neighbours=tuple((prompt, true) for prompt in record.get("neighborhood_prompts", ())),
        relation=rewrite.get("relation_id"),
        subject_at=rewrite["prompt"].index("{}"),
    )


def flat(record: Record) -> Published:
    """A record of CounterFact's flat edition (Yao et al. 2023)."""
    return Published(
        prompt=record["prompt"],
        subject=record["subject"],
        new=record["target_new"].strip(),
        true=record.get("ground_truth", "").strip() or None,
        paraphrases=(record["rephrase_prompt"],),
        neighbours=((record["locality_prompt"], record["locality_ground_truth"].strip()),),
    )


def zsre(record: Record, new: str) -> Published:
    """A zsRE record that is to answer `new`; files that ask for portability alone have no neighbour."""
    neighbours = ((record["loc"], record["loc_ans"].strip()),) if "loc" in record else ()
    subject = spelled_in(record["src"], record["subject"])
    return Published(record["src"], subject, new.strip(), None, (record["rephrase"],), neighbours)


def knowedit(record: Record) -> Published:
    """A KnowEdit record (Zhang et al. 2024); its neighbours are in groups of their own."""
    subject, answers = spelled_in(record["prompt"], record["subject"]), aliases(record.get("ground_truth") or ())
    new = record["target_new"].strip()
    true = answers[0] if answers and answers[0] != new else None
    paraphrases = tuple(record[name] for name in ("rephrase_prompt",) if name in record)
    return Published(record["prompt"], subject, new, true, paraphrases, ())


def aliases(value: str | Iterable[Any]) -> tuple[str, ...]:
    """The answers in a text, a list of texts or a list of such lists, without empty and repeated ones."""
    found = [value.strip()] if isinstance(value, str) else [text for part in value for text in aliases(part)]
    return tuple(dict.fromkeys(text for text in found if text))


def spelled_in(prompt: str, subject: str) -> str:
    """The subject as the prompt spells it: without outer blanks, in the prompt's case where only that differs."""
    bare = subject.strip()
    at = prompt.casefold().rfind(bare.casefold())
    same_length = len(prompt.casefold()) == len(prompt)  # else places in both do not agree
    return bare if bare in prompt or at < 0 or not same_length else prompt[at : at + len(bare)]
