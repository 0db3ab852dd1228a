"""MeLLo: the loop driven by a model that says what the test writes, and what the memory gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from remembering import MADRID, ROME, reading_model, retriever, same_states, states
from transformers import PreTrainedTokenizerFast

import tracer
from editing import EditFailedError, MeLLo, RequestError
from editing.memory.mello import AGREES, ANSWER, FACT, NEXT_EXAMPLE, Reasoned, reasoned
from editing.memory.mello_examples import EXAMPLES
from editing.memory.memory import Memory
from editing.memory.record import MemoryRecord
from editing.scoring.asking import routes
from editing.scoring.generation import complete
from editing.scoring.last_read import LastRead
from editing.scoring.scores import target_scores
from editing.scoring.texts_together import written_until
from tracer.model.tokens import encode

HOP = "Subquestion: What is the capital of France?\nGenerated answer: The capital of France is Paris."
CONTRADICTS = "Retrieved fact contradicts to generated answer, so the intermediate answer is:"
SECOND = "Subquestion: In which country is {}?\nGenerated answer: {} is in {}."


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    return reading_model(tokenizer)


class Scripted:
    """Writes these continuations of one question, one after the other, and keeps what it read."""

    def __init__(self, *lines: str) -> None:
        self.lines, self.read = list(lines), []

    def __call__(self, texts: dict[int, str]) -> dict[int, str | None]:
        self.read.append(texts[0])
        return {0: self.lines.pop(0)}


def run(*lines: str, facts: Sequence[str] = (), max_rounds: int = 4) -> tuple[Reasoned, Scripted, list[str]]:
    writer, asked = Scripted(*lines), []

    def retrieve(subquestion: str) -> str | None:
        asked.append(subquestion)
        return facts[len(asked) - 1] if facts else None

    (found,) = reasoned(["Q?"], writer, retrieve, examples="Examples", max_rounds=max_rounds)
    return found, writer, asked


def test_two_hops_one_of_them_contradicted() -> None:
    second = SECOND.format("Rome", "Rome", "Italy")
    facts = ["The capital of France is Rome", "The capital of Japan is Madrid"]
    found, writer, asked = run(
        HOP, f"{CONTRADICTS} Rome\n{second}", f"{AGREES} Italy\nFinal answer: Italy", facts=facts
    )
    assert found.answer == "Italy" and found.rounds == 3 and found.fault == ""
    assert asked == ["What is the capital of France?", "In which country is Rome?"] and list(found.facts) == facts
    assert writer.read[0] == "Examples\n\nQuestion: Q?"
    assert writer.read[1] == f"{writer.read[0]}\n{HOP}\n{FACT} {facts[0]}."
    assert found.transcript == f"{writer.read[2]}\n{AGREES} Italy\nFinal answer: Italy"
    assert found.up_to_answer == found.transcript.removesuffix(" Italy")


def test_a_final_answer_at_once_needs_no_retrieval() -> None:
    found, _, asked = run("Final answer:  Rome ")
    assert (found.answer, found.rounds, asked) == ("Rome", 1, [])


@pytest.mark.parametrize("said", ["", "Paris", "Subquestion: what?", "Generated answer: x", f"{HOP}\nmore"])
def test_lines_out_of_form_are_no_answer(said: str) -> None:
    found, _, asked = run(said)
    assert found.answer is None and found.fault == "no subquestion" and not asked
    assert found.up_to_answer.endswith("\nFinal answer:")


def test_rounds_without_a_final_answer_are_no_answer() -> None:
    found, writer, asked = run(*[HOP] * 4, facts=["f"] * 4)
    assert found.answer is None and found.fault == "no final answer" and found.rounds == len(asked) == 4
    assert found.up_to_answer.endswith("f.\nFinal answer:") and not writer.lines


def test_questions_side_by_side_end_in_their_own_rounds() -> None:
    scripts = [[HOP, "Final answer: Rome"], ["Final answer: Oslo"], [HOP, HOP, "Final answer: Bern"]]
    rounds: list[list[int]] = []

    def write(texts: dict[int, str]) -> dict[int, str | None]:
        rounds.append(list(texts))
        assert all(f"Question: Q{number}" in text for number, text in texts.items())
        return {number: scripts[number].pop(0) for number in texts}

    found = reasoned(["Q0", "Q1", "Q2"], write, lambda _: None, examples="", max_rounds=4)
    assert [one.answer for one in found] == ["Rome", "Oslo", "Bern"] and [one.rounds for one in found] == [2, 1, 3]
    assert rounds == [[0, 1, 2], [0, 2], [2]]


def test_an_empty_memory_lets_the_generated_answer_stand() -> None:
    found, writer, _ = run(HOP, "Final answer: Paris")
    assert found.answer == "Paris" and found.facts == ()
    assert writer.read[1].endswith(f"{HOP}\n{AGREES} The capital of France is Paris.")


def test_the_subquestion_finds_the_fact_whatever_the_order_of_adding() -> None:
    records = [MemoryRecord.of(ROME), MemoryRecord.of(MADRID)]
    vectors = {records[0].text: (1, 0), records[1].text: (0, 1), "about France": (0.9, 0.1), "about Japan": (0.1, 0.9)}
    with retriever(vectors) as name:
        for order in (records, records[::-1]):
            memory = Memory(MeLLo(retriever=name))
            memory.records = order
            found = [record.text for record, _ in memory.nearest(["about Japan", "about France"])]
            assert found == [records[1].text, records[0].text]


def written(model: tracer.LanguageModel, prompt: str, *stops: str, new: int = 12, last: Sequence[LastRead] = ()) -> str:
    return written_until(model, [prompt], stops, new_tokens=[new], last=last)[0]


def test_a_stop_is_found_in_the_text_whatever_its_tokens(model: tracer.LanguageModel) -> None:
    """Stops at any piece of what the model writes by itself, also within and across tokens."""
    prompt = "The capital of France is"
    whole = complete(model, [prompt], new_tokens=12)[0].lstrip()
    assert model.tokenizer is not None and len(whole) > 8
    for begin in range(1, len(whole) - 3):
        stop = whole[begin : begin + 3]
        assert written(model, prompt, stop, "never written") == whole[: whole.index(stop)]
    assert written(model, prompt, "never written") == whole


def test_what_two_texts_share_is_read_once_and_nothing_else_changes(model: tracer.LanguageModel, monkeypatch) -> None:
    """Longer, shorter and other texts, one after the other, also where reading one of them was interrupted."""
    last, read, forward = LastRead(), [], model.torch.forward

    def counted(*args: Any, **options: Any) -> Any:
        read.append(options["input_ids"].shape[1])
        return forward(*args, **options)

    monkeypatch.setattr(model.torch, "forward", counted)
    start = "The capital of France is"
    texts = [start, f"{start} Paris and", start, "Lisbon is the capital of", start]
    for number, text in enumerate(texts):
        read.clear()
        found = written(model, text, "never written", new=6, last=[last])
        first = read[0]
        assert found == written(model, text, "never written", new=6)
        tokens = len(encode(model.tokenizer, text).ids)
        assert (first < tokens) == (number in (1, 2)) and first >= 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "check_finite", interrupted)
        written(model, "Lisbon is the capital of", "never written", new=6, last=[last])
    assert written(model, start, "never written", new=6, last=[last]) == found


def interrupted(_logits: Any) -> None:
    raise KeyboardInterrupt


def test_a_model_is_asked_its_hops_and_then_the_answer(model: tracer.LanguageModel, monkeypatch) -> None:
    """The model's own words are written by the test; scores and texts go on from where its answer follows."""
    said = iter([HOP, f"{CONTRADICTS} Rome\nFinal answer: Rome"] * 2)
    monkeypatch.setattr("editing.memory.hop_writer.written_until", lambda *_, **__: [next(said)])
    weights = states(model)
    with MeLLo().apply(model, [ROME]):
        (route,) = routes(model, ["What is the capital of France?"])
        assert route.prompt.startswith(f"{EXAMPLES}{NEXT_EXAMPLE}Question: What is the capital of France?\n{HOP}\n")
        assert route.prompt.endswith(f"{FACT} The capital of France is Rome.\n{CONTRADICTS} Rome\nFinal answer:")
        (found,) = MeLLo().reason(model, ["What is the capital of France?"])
        assert found.answer == "Rome" and found.facts == ("The capital of France is Rome",)
    assert same_states(model, weights) and not model.readers


def test_many_questions_are_taken_apart_as_each_alone(model: tracer.LanguageModel, monkeypatch) -> None:
    """More than are written at once, in several rounds: what the model writes is taken for a hop, whatever it is."""
    monkeypatch.setattr("editing.memory.mello.SUBQUESTION", "")
    monkeypatch.setattr("editing.memory.mello.TENTATIVE", "")
    editor = MeLLo(max_rounds=3, new_tokens=7, examples="The capital of Japan is Tokyo. " * 20)
    questions = [f"Who was {'born in ' * (number % 5)}{number}?" for number in range(20)]
    read, forward = [], model.torch.forward

    def counted(*args: Any, **options: Any) -> Any:
        read.append(tuple(options["input_ids"].shape))
        return forward(*args, **options)

    with editor.apply(model, [ROME]):
        alone = [editor.reason(model, [question])[0] for question in questions]
        monkeypatch.setattr(model.torch, "forward", counted)
        assert editor.reason(model, questions) == alone
    n_examples = len(encode(model.tokenizer, editor.examples).ids)
    assert all(one.rounds == 3 for one in alone) and len({one.transcript for one in alone}) == 20
    assert sum(n_tokens >= n_examples for _, n_tokens in read) == 1  # the examples, once
    assert max(n_rows for n_rows, _ in read) == 16


def test_an_encoder_decoder_is_refused(knowing: tracer.LanguageModel) -> None:
    with pytest.raises(tracer.AnatomyError, match="MeLLo"):
        MeLLo().reason(knowing, ["What is the capital of France?"])


def test_without_edits_it_reasons_without_facts(model: tracer.LanguageModel, monkeypatch) -> None:
    said = iter([HOP, "Final answer: Paris"])
    monkeypatch.setattr("editing.memory.hop_writer.written_until", lambda *_, **__: [next(said)])
    (found,) = MeLLo().reason(model, ["What is the capital of France?"])
    assert found.answer == "Paris" and found.facts == ()


def test_the_worked_examples_keep_the_form() -> None:
    for example in EXAMPLES.split(NEXT_EXAMPLE):
        question, *lines = example.splitlines()
        hops = (len(lines) - 1) // 4
        said = ["\n".join(lines[:2])] + ["\n".join(lines[4 * n - 1 : 4 * n + 2]) for n in range(1, hops + 1)]
        writer = Scripted(*said)
        facts = iter(line.removeprefix(f"{FACT} ").removesuffix(".") for line in lines if line.startswith(FACT))
        (found,) = reasoned([question], writer, lambda _, facts=facts: next(facts), examples="", max_rounds=hops + 1)
        assert found.answer == lines[-1].removeprefix("Final answer: ") and len(found.facts) == hops
        assert 2 <= hops <= 4


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong, said in (
        ({"max_rounds": 0}, "max_rounds=0 is below 1. Write max_rounds=4"),
        ({"new_tokens": "many"}, "Write new_tokens=256"),
        ({"examples": None}, "examples=None is no text"),
    ):
        with pytest.raises(RequestError, match=said):
            MeLLo(**wrong)


def test_a_transcript_that_fills_the_context_is_no_answer_and_still_asked(tokenizer, monkeypatch) -> None:
    """The second round has no room: what fits is asked for the answer, as after any other fault."""
    examples = "word " * 5
    begun = len(encode(tokenizer, f"{examples}{NEXT_EXAMPLE}Question: {ROME.prompt}\n{HOP}").ids)
    model = reading_model(tokenizer, context=begun + ANSWER + 4)
    asked = []

    def said(_model, texts, _stops, *, new_tokens: Sequence[int], last: Sequence[LastRead]) -> list[str]:
        asked.extend(new_tokens)
        return [HOP] * len(texts)

    monkeypatch.setattr("editing.memory.hop_writer.written_until", said)
    with MeLLo(examples=examples).apply(model, [ROME]):
        (found,) = MeLLo(examples=examples).reason(model, [ROME.prompt])
        assert (found.answer, found.fault, found.rounds) == (None, "no room", 1)
        assert found.up_to_answer.endswith(f"{HOP}\nFinal answer:") and asked[0] < 256
        assert 0 < target_scores(model, [(ROME.prompt, ROME.new)])[0].prob < 1
    (found,) = MeLLo().reason(reading_model(tokenizer, context=48), ["What is the capital of France?"])
    assert (found.answer, found.fault, found.rounds) == (None, "no room", 0)
    with pytest.raises(EditFailedError, match=r"worked examples and a question take \d+ tokens, .* MeLLo\(examples="):
        MeLLo().apply(model, [ROME])
    assert not model.edits and not model.readers
