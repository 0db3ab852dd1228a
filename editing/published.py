"""The fields of published records, read in one place: CounterFact, its flat edition, zsRE and KnowEdit.

Blanks round subjects and answers are taken off, a subject is spelled as its prompt spells it, and lists of
aliases become one list. Everything else is as it was published. Readers raise KeyError where a field is missing, and
RequestError where it is no text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from editing.errors import RequestError
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


def text(record: Record, *path: str) -> str:
    """The text in a field, or in a field of a field."""
    value: Any = record
    for name in path:
        if not isinstance(value, Mapping):
            raise RequestError(f"{path[0]} is {record[path[0]]!r}, which has no {'.'.join(path[1:])}")
        value = value[name]
    if not isinstance(value, str):
        raise RequestError(f"{'.'.join(path)} is {value!r}, no text")
    return value


def texts(record: Record, name: str) -> tuple[str, ...]:
    """The texts in a field, none where it is missing."""
    value = record.get(name, ())
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
        raise RequestError(f"{name} is {value!r}, no list of texts")
    return tuple(value)


def counterfact(record: Record) -> Published:
    """A record of CounterFact (Meng et al. 2022)."""
    rewrite = "requested_rewrite"
    template, subject = text(record, rewrite, "prompt"), text(record, rewrite, "subject")
    if "{}" not in template:
        raise RequestError(f"{rewrite}.prompt is {template!r}, without {{}} for the subject")
    true = text(record, rewrite, "target_true", "str").strip()
    return Published(
        prompt=filled(template, subject),
        subject=subject,
        new=text(record, rewrite, "target_new", "str").strip(),
        true=true,
        paraphrases=texts(record, "paraphrase_prompts"),
        neighbours=tuple((prompt, true) for prompt in texts(record, "neighborhood_prompts")),
        relation=record[rewrite].get("relation_id"),
        subject_at=template.index("{}"),
    )


def flat(record: Record) -> Published:
    """A record of CounterFact's flat edition (Yao et al. 2023)."""
    return Published(
        prompt=text(record, "prompt"),
        subject=text(record, "subject"),
        new=text(record, "target_new").strip(),
        true=text({"ground_truth": "", **record}, "ground_truth").strip() or None,
        paraphrases=(text(record, "rephrase_prompt"),),
        neighbours=((text(record, "locality_prompt"), text(record, "locality_ground_truth").strip()),),
    )


def zsre(record: Record, new: str) -> Published:
    """A zsRE record that is to answer `new`; files that ask for portability alone have no neighbour."""
    neighbours = ((text(record, "loc"), text(record, "loc_ans").strip()),) if "loc" in record else ()
    prompt, rephrase = text(record, "src"), text(record, "rephrase")
    return Published(prompt, spelled_in(prompt, text(record, "subject")), new.strip(), None, (rephrase,), neighbours)


def knowedit(record: Record) -> Published:
    """A KnowEdit record (Zhang et al. 2024); its neighbours are in groups of their own."""
    prompt, new = text(record, "prompt"), text(record, "target_new").strip()
    subject, answers = spelled_in(prompt, text(record, "subject")), aliases(record.get("ground_truth") or ())
    true = answers[0] if answers and answers[0] != new else None
    paraphrases = tuple(text(record, name) for name in ("rephrase_prompt",) if name in record)
    return Published(prompt, subject, new, true, paraphrases, ())


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
