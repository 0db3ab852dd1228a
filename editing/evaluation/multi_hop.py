"""Does an edit reach questions that take several hops?

(Zhong et al. 2023, arXiv:2305.14795)

edit-wise       share of a case's edits that the edited model says on their own prompts (tf_exact)
instance-wise   1 if every hop of the case, asked by itself, is answered as the edits have it
multi-hop       1 if any of its phrasings (three) is answered with the new answer or an alias
All edits of a group of cases live together; a case is asked while its whole group is written. An answer that
cannot be read counts as wrong, and `unanswered` says how often that was so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from editing.datasets.mquake import MultiHop, Question, without_repeats
from editing.editors import Editor
from editing.errors import EvaluationError
from editing.evaluation.making import left_as_it_was
from editing.memory.mello import MeLLo
from editing.memory.memory import MemoryEditor
from editing.metrics.matches import first_statement, gen_exact
from editing.scoring.generation import answers
from editing.scoring.scores import target_scores
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
