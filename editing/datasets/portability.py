"""Does an edit reach what follows from it, and what does it touch that it should not? Groups of prompts of a record.

subject replace     the edit's prompt about the subject under another name      -> the new answer
reversed relation   a question about the new answer that asks for the subject   -> the subject
one hop             a question that joins the edited fact with another fact     -> the answer under the edit
other relation      something else about the same subject                       -> as before
distracting         the edited fact in front of a neighbour's prompt            -> as before
(Yao et al. 2023, sec. 5). KnowEdit's kinds have the names that it gives them (Zhang et al. 2024): its
reasoning, aliasing and generalization should follow the edit, its specificity and forgetfulness not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from editing.datasets.case import Ask, Group
from editing.published import Published, aliases, text, texts
from editing.scoring.scores import Pair
from tracer.facts.bundled import filled

Record = Mapping[str, Any]
FOLLOWING = frozenset({"portability", "inverse question", "alternative_subject", "alter_subject_question"})


def portability_groups(record: Record, read: Published) -> Iterator[Group]:
    """The groups of a record of the survey's files that should follow the edit."""
    if "alter_subject_question" in record:
        yield Group("subject_replace", (Ask(text(record, "alter_subject_question"), read.new),))
    elif "alternative_subject" in record:
        prompt = filled(text(record, "requested_rewrite", "prompt"), text(record, "alternative_subject").strip())
        yield Group("subject_replace", (Ask(prompt, read.new, read.true),))
    if "inverse question" in record:
        yield Group("reversed_relation", (Ask(text(record, "inverse question"), read.subject),))
    if "portability" in record:
        names = ("Recalled Relation", "New Question", "New Answer")
        relation, question, answer = (text(record, "portability", name) for name in names)
        yield Group("one_hop", (Ask(question, answer.strip(), hop=recalled(relation, read.new)),))


def side_effect_groups(record: Record, read: Published) -> Iterator[Group]:
    """The groups of a record of the survey's files that should stay as they are."""
    if "unrelated_relation" in record:
        question, answer = (text(record, "unrelated_relation", name) for name in ("question", "object"))
        yield Group("other_relation", (Ask(question, answer.strip()),), stays=True)
    if "distracting_neighborhood_prompts" in record:
        prompts = texts(record, "distracting_neighborhood_prompts")
        asks = tuple(Ask(prompt, read.true or "", read.new) for prompt in prompts)
        yield Group("distracting_neighborhood", asks, stays=True)


def knowedit_groups(record: Record) -> Iterator[Group]:
    """A group for each kind of portability and locality of a KnowEdit record; items without an answer are left out."""
    for field in ("portability", "locality"):
        for kind, items in record[field].items():
            asks = [_ask(item["prompt"], aliases(item["ground_truth"]), field == "portability") for item in items]
            yield Group(kind.lower(), tuple(ask for ask in asks if ask is not None), stays=field == "locality")


def recalled(relation: str, new: str) -> Pair | None:
    """The fact about the new answer that a one-hop question needs, as a prompt with its answer.

    "(Tamil, official language of, Tamil Nadu)" gives "Tamil, official language of" and "Tamil Nadu"; None where
    the text does not have these three parts.
    """
    inside = relation.strip().removeprefix("(").removesuffix(")")
    head = new if inside.startswith(f"{new}, ") else inside.split(", ")[0]  # the new answer may hold commas
    between, comma, tail = inside[len(head) :].removeprefix(", ").partition(", ")
    return (f"{head}, {between}", tail.strip()) if comma and tail.strip() else None


def _ask(prompt: str, answers: tuple[str, ...], with_aliases: bool) -> Ask | None:
    return Ask(prompt, answers[0], aliases=answers[1:] if with_aliases else ()) if answers else None
