"""MQuAKE: does an edit reach questions that take several hops?

(Zhong et al. 2023, arXiv:2305.14795)

edit-wise       share of a case's edits that the edited model says on their own prompts (tf_exact)
instance-wise   1 if every hop of the case, asked by itself, is answered as the edits have it
multi-hop       1 if any of its phrasings (three) is answered with the new answer or an alias
All edits of a group of cases live together; a case is asked while its whole group is written. An answer that
cannot be read counts as wrong, and `unanswered` says how often that was so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editing.editors import Editor
from editing.errors import EvaluationError, RequestError
from editing.evaluation.making import left_as_it_was
from editing.evaluation.matches import first_statement, gen_exact
from editing.evaluation.slices import chosen_numbers
from editing.memory.mello import MeLLo
from editing.memory.memory import MemoryEditor
from editing.request import EditRequest, FactName
from editing.scoring.generation import answers
from editing.scoring.scores import target_scores
from tracer.facts.readers import read_records
from tracer.model import LanguageModel
from tracer.progress import bar

FEW_SHOT = (
    "Q: In which country was the painter of Guernica born? A: Spain\n"
    "Q: What is the capital of the country where sushi comes from? A: Tokyo\n"
    "Q: Who wrote the novel that the film Blade Runner is based on? A: Philip K. Dick\n"
    "Q: {} A:"
)
Answers = Callable[[Sequence[str]], list[str | None]]


@dataclass(frozen=True)
class Question:
    """One question in one or more phrasings, with every answer that is right."""

    phrasings: tuple[str, ...]
    right: tuple[str, ...]


@dataclass(frozen=True)
class MultiHop:
    """One case.

    Attributes:
        requests: its edits.
        question: with its answer once they are made.
        hops: of that answer, each by itself; empty where the file has none.
        before: the question with its answer without edits, if the file has it.
    """

    id: str
    requests: tuple[EditRequest, ...]
    question: Question
    hops: tuple[Question, ...] = ()
    before: Question | None = None


@dataclass(frozen=True)
class MultiHopScores:
    """Scores of one case in [0, 1]; NaN where the file has nothing to ask.

    Attributes:
        multi_hop: with answers compared without case, articles and punctuation.
        multi_hop_exact: letter by letter.
        unanswered: share of the questions asked that got no answer at all.
        base: multi_hop of the unedited model, on the answer that was right before.
    """

    case_id: str
    edit_wise: float
    instance_wise: float
    multi_hop: float
    multi_hop_exact: float
    unanswered: float
    base: float


def read_mquake(path: str | Path, *, n: int | None = None, evenly: bool = False) -> tuple[MultiHop, ...]:
    """The cases of an MQuAKE file, also gzipped; of its reduced form too, which has edits and questions alone.

    Raises:
        FileFormatError: missing, or not JSON.
        EvaluationError: a record without a field it needs, with something else in it, or with the id of another
            one; or no record.
    """
    records, cases = read_records(path), []
    for number in chosen_numbers(len(records), n, evenly=evenly):
        record = records[number]
        try:
            cases.append(_whole(record) if "requested_rewrite" in record else _reduced(record))
        except KeyError as error:
            raise EvaluationError(f"{path}, record {number}: no {error} for MQuAKE.") from error
        except (TypeError, AttributeError, RequestError) as error:
            raise EvaluationError(f"{path}, record {number}, is no case of MQuAKE: {error}") from error
    if not cases:
        raise EvaluationError(f"{path} holds no case.")
    twice = [name for name, times in Counter(case.id for case in cases).items() if times > 1]
    if twice:
        raise EvaluationError(f"{path} has several cases with case_id {twice[0]}: one would get the other's scores.")
    return tuple(cases)


def multi_hop_scores(
    model: LanguageModel,
    editor: Editor,
    cases: Sequence[MultiHop],
    *,
    group: int = 1,
    seed: int = 0,
    progress: bool | None = None,
) -> Iterator[MultiHopScores]:
    """Writes the edits of one group of cases after the other, and asks its cases.

    Of edits of one fact in a group the first is written; the other case then asks for what is not there.

    Args:
        model: unedited.
        editor: MeLLo takes questions apart; other editors with a memory read them as they are; the model of any
            other editor reads them after three answered ones.
        cases: in the order in which they are grouped.
        group: cases whose edits live together.
        seed: of the edits.
        progress: show a bar.

    Raises:
        EvaluationError: no case a group, or something left on the model.
    """
    check_group(group, "group")
    with bar(len(cases), "multi-hop questions", show=progress, unit="case") as steps, left_as_it_was(model):
        for begin in range(0, len(cases), group):
            together = cases[begin : begin + group]
            ask, base = answering(model, editor), multi_hop_before(model, editor, together)
            with editor.apply(model, without_repeats(together), seed=seed, progress=False):
                found = _scores(model, together, ask, base)
            yield from found
            steps.update(len(found))


def multi_hop_before(model: LanguageModel, editor: Editor, cases: Sequence[MultiHop]) -> list[float]:
    """Whether the unedited model, asked as this editor asks, gives the answer that was right then; NaN: not known."""
    asked = iter(_asked([case.before for case in cases if case.before is not None], answering(model, editor)))
    return [math.nan if case.before is None else float(next(asked).lenient) for case in cases]


def check_group(size: int, name: str) -> None:
    """Raises EvaluationError where groups of so many cases cannot be made; `name` is the argument's."""
    if not isinstance(size, int) or size < 1:
        raise EvaluationError(f"Groups of {size!r} cases hold none. Write {name}=1.")


def names_no_subject(case: MultiHop) -> bool:
    """Whether its file has edits without subjects, for which their whole prompts stand."""
    return any(request.subject == request.prompt for request in case.requests)


def without_repeats(cases: Sequence[MultiHop]) -> list[EditRequest]:
    """The edits of these cases, the first of each fact."""
    known: set[FactName] = set()
    first = []
    for request in (request for case in cases for request in case.requests):
        if known.isdisjoint(request.fact_names):
            first.append(request)
            known.update(request.fact_names)
    return first


def answering(model: LanguageModel, editor: Editor) -> Answers:
    """How this editor's model is asked a question."""
    if isinstance(editor, MeLLo):
        return lambda questions: [found.answer for found in editor.reason(model, questions)]
    form = "{}" if isinstance(editor, MemoryEditor) else FEW_SHOT

    def ask(questions: Sequence[str]) -> list[str | None]:
        return [text or None for text in answers(model, [form.replace("{}", question) for question in questions])]

    return ask


@dataclass(frozen=True)
class _Asked:
    lenient: bool = False
    exact: bool = False
    asked: int = 0
    unanswered: int = 0

    def after(self, said: str | None, right: Sequence[str]) -> _Asked:
        """With one phrasing more."""
        text = said or ""
        exact = any(first_statement(text, one).strip() == one for one in right)
        lenient = self.lenient or exact or any(gen_exact(text, one) for one in right)
        return _Asked(lenient, exact, self.asked + 1, self.unanswered + (said is None))


def _asked(questions: Sequence[Question], ask: Answers) -> list[_Asked]:
    """Asks each question phrasing by phrasing until one is answered exactly, all that are open together."""
    found = [_Asked() for _ in questions]
    for turn in range(max((len(question.phrasings) for question in questions), default=0)):
        still = [n for n, one in enumerate(found) if not one.exact and turn < len(questions[n].phrasings)]
        said = ask([questions[n].phrasings[turn] for n in still]) if still else []
        for number, text in zip(still, said, strict=True):
            found[number] = found[number].after(text, questions[number].right)
    return found


def _scores(
    model: LanguageModel, cases: Sequence[MultiHop], ask: Answers, base: Sequence[float]
) -> list[MultiHopScores]:
    """Of cases whose edits are written."""
    asked = iter(_asked([question for case in cases for question in (case.question, *case.hops)], ask))
    return [
        _case_scores(model, case, next(asked), [next(asked) for _ in case.hops], before)
        for case, before in zip(cases, base, strict=True)
    ]


def _case_scores(
    model: LanguageModel, case: MultiHop, whole: _Asked, hops: Sequence[_Asked], before: float
) -> MultiHopScores:
    said = target_scores(model, [(request.prompt, request.new) for request in case.requests])
    both = [whole, *hops]
    return MultiHopScores(
        case_id=case.id,
        edit_wise=sum(score.tf_exact for score in said) / len(said),
        instance_wise=float(all(hop.lenient for hop in hops)) if hops else math.nan,
        multi_hop=float(whole.lenient),
        multi_hop_exact=float(whole.exact),
        unanswered=sum(one.unanswered for one in both) / sum(one.asked for one in both),
        base=before,
    )


def _listed(record: Mapping[str, Any], field: str, *, least: int = 0) -> list[Any]:
    """A field that is a list; TypeError where it is not, or shorter than this."""
    found = record[field]
    if not isinstance(found, list) or len(found) < least:
        raise TypeError(f"{field!r} is {found!r}, not a list" + (f" of {least} or more." if least else "."))
    return found


def _whole(record: Mapping[str, Any]) -> MultiHop:
    requests = tuple(
        EditRequest(
            one["prompt"], one["subject"], one["target_new"]["str"], one["target_true"]["str"], None, one["relation_id"]
        )
        for one in _listed(record, "requested_rewrite", least=1)
    )
    phrasings = tuple(_listed(record, "questions", least=1))
    hops = tuple(
        Question((hop["question"],), (hop["answer"], *_listed(hop, "answer_alias")))
        for hop in _listed(record, "new_single_hops")
    )
    right = (record["new_answer"], *_listed(record, "new_answer_alias"))
    before = Question(phrasings, (record["answer"], *_listed(record, "answer_alias")))
    return MultiHop(str(record["case_id"]), requests, Question(phrasings, right), hops, before)


def _reduced(record: Mapping[str, Any]) -> MultiHop:
    """Its edits name no subject: the whole prompt stands for it, which is enough for editors that need none."""
    edits = _listed(record, "edits", least=1)
    requests = tuple(EditRequest(one["prompt"], one["prompt"], one["target_new"]) for one in edits)
    right = (record["new_answer"], *_listed(record, "new_answer_alias"))
    return MultiHop(str(record["case_id"]), requests, Question(tuple(_listed(record, "questions", least=1)), right))
