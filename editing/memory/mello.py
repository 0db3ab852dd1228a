"""MeLLo: multi-hop questions, hop by hop, each answer checked against a memory of edits.

(Zhong et al. 2023, arXiv:2305.14795)

Repeated, at most `max_rounds` times, after worked examples and "Question: {q}":
    the model writes      Subquestion: s
                          Generated answer: a
    the memory adds       Retrieved fact: f.            f the remembered fact most like s
    the model goes on     Retrieved fact contradicts to generated answer, so the intermediate answer is: z
                     or   Retrieved fact does not contradict to generated answer, so the intermediate answer is: a
until it writes           Final answer: z
Nothing else is trained or changed: the model reads its own words, the memory only looks facts up. Questions are
taken apart side by side, which changes no answer but by rounding (in 16 bits another token may win).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from editing.errors import RequestError
from editing.memory.hop_writer import HopWriter
from editing.memory.mello_examples import EXAMPLES
from editing.memory.memory import Memory, MemoryEditor, memory_of
from editing.memory.record import MemoryRecord
from editing.memory.room import check_room
from editing.request import check_decoder_only
from editing.scoring.asking import Route
from editing.setting_checks import check_whole
from tracer.model import LanguageModel

SUBQUESTION, TENTATIVE = "Subquestion:", "Generated answer:"
FACT, FINAL = "Retrieved fact:", "Final answer:"
AGREES = "Retrieved fact does not contradict to generated answer, so the intermediate answer is:"
NEXT_EXAMPLE = "\n\n"  # a blank line: the model has begun a question of its own

ANSWER = 64  # tokens of the context kept free for the final answer
QUESTIONS_TOGETHER = 16  # taken apart at once, each with keys and values of all that it read, about twice

Write = Callable[[dict[int, str]], dict[int, str | None]]
Retrieve = Callable[[str], str | None]
Fault = Literal["", "no subquestion", "no final answer", "no room"]


@dataclass(frozen=True)
class Reasoned:
    """A question, taken apart.

    Attributes:
        answer: the final one; None where the model wrote none.
        transcript: all that was read and written, the examples included.
        facts: those that were retrieved, in order.
        rounds: how often the model wrote.
        fault: why there is no answer.
    """

    answer: str | None
    transcript: str
    facts: tuple[str, ...]
    rounds: int
    fault: Fault = ""

    @property
    def up_to_answer(self) -> str:
        """The transcript up to where the final answer follows."""
        if self.fault:
            return f"{self.transcript.rstrip()}\n{FINAL}"
        return self.transcript[: self.transcript.rindex(FINAL) + len(FINAL)]


def reasoned(
    questions: Sequence[str], write: Write, retrieve: Retrieve, *, examples: str, max_rounds: int
) -> list[Reasoned]:
    """Each question through the loop of this module, all of them a round at a time.

    Args:
        questions: to answer.
        write: given texts by the number of their question, what a model writes after each, up to `FACT` or a blank
            line; None: the text leaves it no room.
        retrieve: the fact most like a subquestion; None: the memory is empty, and the generated answer stands.
        examples: worked questions.
        max_rounds: the model may write so often.
    """
    open_ones = {n: _reasoning(question, retrieve, examples, max_rounds) for n, question in enumerate(questions)}
    texts = {number: next(steps) for number, steps in open_ones.items()}
    found: dict[int, Reasoned] = {}
    while texts:
        written = write(texts)
        for number in list(texts):
            try:
                texts[number] = open_ones[number].send(written[number])
            except StopIteration as done:
                found[number] = done.value
                del texts[number]
    return [found[number] for number in range(len(questions))]


def _reasoning(
    question: str, retrieve: Retrieve, examples: str, max_rounds: int
) -> Generator[str, str | None, Reasoned]:
    """One question: gives texts to be gone on with, and takes what was written."""
    text, facts = _begun(examples, question), []
    whole = text  # as far as it fits, and the answer behind it
    for turn in range(1, max_rounds + 1):
        written = yield text
        if written is None:
            return Reasoned(None, whole, tuple(facts), turn - 1, "no room")
        text = whole = text.rstrip() + "\n" + written.strip()
        *_, before, last = ["", "", *(line.strip() for line in text.splitlines() if line.strip())]
        if last.startswith(FINAL):
            return Reasoned(last.removeprefix(FINAL).strip(), text, tuple(facts), turn)
        if not (before.startswith(SUBQUESTION) and last.startswith(TENTATIVE)):
            return Reasoned(None, text, tuple(facts), turn, "no subquestion")
        fact = retrieve(before.removeprefix(SUBQUESTION).strip())
        facts += [] if fact is None else [fact]
        text += f"\n{AGREES} {last.removeprefix(TENTATIVE).strip()}" if fact is None else f"\n{FACT} {fact}."
    return Reasoned(None, text, tuple(facts), max_rounds, "no final answer")


@dataclass(frozen=True, kw_only=True)
class MeLLo(MemoryEditor, method="mello"):
    """The method of this module. `reason` answers questions; prompts asked of the model go the same way.

    Attributes:
        max_rounds: as published; a question of n hops needs n + 1.
        new_tokens: written in one round, at most.
        examples: worked questions that show the model what to do.
    """

    max_rounds: int = 4
    new_tokens: int = 256
    examples: str = EXAMPLES

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, {"max_rounds": 4, "new_tokens": 256})
        if not isinstance(self.examples, str):
            raise RequestError(f"examples={self.examples!r} is no text. Write worked questions, or leave it out.")

    def check_fits(self, model: LanguageModel, record: MemoryRecord) -> None:
        """Raises EditFailedError where the model's context does not hold the worked examples and a question."""
        begun = _begun(self.examples, record.prompt)
        what, instead = "The worked examples and a question", "Give fewer: MeLLo(examples=...)."
        check_room(model, begun, least=ANSWER + 1, what=what, instead=instead)

    def check(self, model: LanguageModel, records: Sequence[MemoryRecord]) -> None:
        """Raises AnatomyError for an encoder-decoder: its reasoning is a text that the model continues."""
        check_decoder_only(model, "MeLLo")

    def key(self, record: MemoryRecord) -> str:
        """The whole fact: a subquestion may be like its answer too."""
        return record.text

    def reason(self, model: LanguageModel, questions: Sequence[str]) -> list[Reasoned]:
        """Each question taken apart, with what edits of these settings have put into the model's memory."""
        return self._reasoned(model, memory_of(model, self), questions)

    def routes(self, model: LanguageModel, memory: Memory, prompts: Sequence[str]) -> list[Route | None]:
        """Each prompt as a question, its hops written out up to where the final answer follows."""
        return [Route(found.up_to_answer, model) for found in self._reasoned(model, memory, prompts)]

    def _reasoned(self, model: LanguageModel, memory: Memory | None, questions: Sequence[str]) -> list[Reasoned]:
        def retrieve(subquestion: str) -> str | None:
            return memory.nearest([subquestion])[0][0].text if memory else None

        check_decoder_only(model, "MeLLo")
        options, found = {"examples": self.examples, "max_rounds": self.max_rounds}, list[Reasoned]()
        writer = HopWriter(model, self.examples, (FACT, NEXT_EXAMPLE), new_tokens=self.new_tokens, spare=ANSWER)
        for begin in range(0, len(questions), QUESTIONS_TOGETHER):
            found += reasoned(questions[begin : begin + QUESTIONS_TOGETHER], writer.write, retrieve, **options)
            writer.forget()
        return found


def _begun(examples: str, question: str) -> str:
    """What the model reads first."""
    return f"{examples}{NEXT_EXAMPLE}Question: {question}"
