"""MemPrompt, and what all editors with a memory do: add, replace, forget in any order, save, leave weights alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from planted import RECORD
from remembering import MADRID, PAIRS, PROMPTS, ROME, reading_model, retriever, same_states, states
from transformers import PreTrainedTokenizerFast

import tracer
from editing import IKE, EditFailedError, EditRequest, MemPrompt, RequestError, load_edit
from editing.datasets.benchmarks import counterfact_case
from editing.editors import EDITORS, editor_named
from editing.evaluation import Examination, Questions, single_edits
from editing.memory import MemoryRecord, ScopedFacts, bundled_facts
from editing.memory.memory import MEMORY_EDITORS, memory_of
from editing.memory.memprompt import ARROW, BREAK, EXAMPLES, asked, with_task
from editing.memory.record import living
from editing.memory.scope import untrained_scope
from editing.scoring.asking import routes
from editing.scoring.generation import complete
from editing.scoring.scores import target_scores

BERLIN = EditRequest("The capital of {} is", "France", "Berlin", id="again")


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    return reading_model(tokenizer)


def read(model: tracer.LanguageModel, prompt: str) -> str:
    return routes(model, [prompt])[0].prompt


def test_a_hit_reads_its_correction_once_and_a_miss_is_the_base_models_own(model: tracer.LanguageModel) -> None:
    before, texts, weights = target_scores(model, PAIRS), complete(model, PROMPTS), states(model)
    with MemPrompt().apply(model, [ROME]):
        said = read(model, PROMPTS[0])
        assert said.count("| clarification: The capital of France is Rome") == 1
        assert said.endswith(f"{BREAK}{PROMPTS[0]} | clarification: The capital of France is Rome ->")
        assert target_scores(model, PAIRS)[3:] == before[3:]
        assert all(new.nll != old.nll for new, old in zip(target_scores(model, PAIRS[:3]), before, strict=False))
        assert complete(model, PROMPTS)[1:] == texts[1:]
        assert same_states(model, weights)
    assert target_scores(model, PAIRS) == before and not model.readers and same_states(model, weights)


def test_a_miss_may_read_the_task_prompt_as_published(model: tracer.LanguageModel) -> None:
    with MemPrompt(miss="task prompt").apply(model, [ROME]):
        assert read(model, "Leaves are") == with_task("Leaves are")


def test_questions_are_written_as_the_task_prompt_writes_its_own() -> None:
    shots = with_task("Leaves are", "Leaves are blue").split(BREAK)
    assert shots[-1] == asked("Leaves are", "Leaves are blue") == f"Leaves are | clarification: Leaves are blue{ARROW}"
    assert len(shots) == len(EXAMPLES) + 1 and all(ARROW in shot for shot in shots)
    told = [(clarification, answer) for _, clarification, answer in EXAMPLES if clarification]
    assert 2 * len(told) == len(EXAMPLES) and 2 * sum(answer in said for said, answer in told) == len(told)


def test_an_overwritten_fact_says_the_new_answer_and_undo_brings_the_old_one_back(model) -> None:
    """In any order of undoing: what counts is the last that is still attached."""
    for order in itertools.permutations(range(3)):
        edits = [MemPrompt().apply(model, [request]) for request in (ROME, MADRID, BERLIN)]
        memory = memory_of(model, MemPrompt())
        assert memory is not None and [record.new for record in memory.records] == ["Madrid", "Berlin"]
        assert len(model.readers) == 1
        gone = set()
        for place in order:
            edits[place].undo()
            gone.add(place)
            expected = next((new for at, new in ((2, "Berlin"), (0, "Rome")) if at not in gone), None)
            if expected is None and 1 in gone:
                assert read(model, PROMPTS[0]) == PROMPTS[0]
            elif expected is not None:
                assert f"clarification: {PROMPTS[0]} {expected}" in read(model, PROMPTS[0])
        assert not model.readers


def test_edits_of_other_settings_keep_a_memory_of_their_own(model: tracer.LanguageModel) -> None:
    with MemPrompt().apply(model, [ROME]), MemPrompt(threshold=0.9).apply(model, [MADRID]):
        assert len(model.readers) == 2
        assert "Rome" in read(model, PROMPTS[0]) and "Madrid" in read(model, PROMPTS[1])


def test_answers_do_not_depend_on_the_order_in_which_facts_were_added(model: tracer.LanguageModel) -> None:
    said = []
    for requests in ([ROME, MADRID], [MADRID, ROME]):
        with MemPrompt().apply(model, requests):
            said.append(target_scores(model, PAIRS))
    assert said[0] == said[1]


def test_equally_near_facts_are_told_by_the_order_of_adding(model: tracer.LanguageModel) -> None:
    same = {prompt: (1.0, 0.0) for prompt in PROMPTS}
    with retriever(same) as name:
        for requests, answer in (([ROME, MADRID], "Rome"), ([MADRID, ROME], "Madrid")):
            with MemPrompt(retriever=name).apply(model, requests):
                assert read(model, PROMPTS[2]).endswith(f"{answer} ->")


def test_a_query_as_like_a_key_as_the_threshold_says_is_a_hit(model: tracer.LanguageModel) -> None:
    with retriever({ROME.prompt: (1.0, 0.0), "query": (0.75, 0.0)}) as name:
        for threshold, hit in ((0.75, True), (0.750001, False)):
            for editor in (
                MemPrompt(retriever=name, threshold=threshold),
                IKE(count=0, retriever=name, route="nearest", threshold=threshold),
            ):
                with editor.apply(model, [ROME]):
                    assert (read(model, "query") != "query") == hit


def test_the_choice_is_made_on_the_prompt_whatever_is_asked_beside_it(model: tracer.LanguageModel) -> None:
    with MemPrompt().apply(model, [ROME, MADRID]):
        together = target_scores(model, PAIRS)
        for pair, score in zip(PAIRS, together, strict=True):
            assert target_scores(model, [pair])[0].nll == pytest.approx(score.nll, abs=1e-9)
        assert routes(model, PROMPTS) == [routes(model, [prompt])[0] for prompt in PROMPTS]


def test_facts_of_one_subject_and_relation_replace_each_other() -> None:
    one = MemoryRecord("Ada was born in", "Ada", "Rome", "P19")
    two = MemoryRecord("Ada is a native of", "Ada", "Paris", "P19")
    other = MemoryRecord("Alan was born in", "Alan", "Rome", "P19")
    assert living([one, other, two]) == [other, two] and living([two, one]) == [one]
    no_relation = MemoryRecord("Ada is a native of", "Ada", "Oslo")
    assert living([one, no_relation]) == [one, no_relation] and living([two, no_relation]) == [no_relation]


@pytest.mark.parametrize("name", sorted(MEMORY_EDITORS))
def test_a_saved_edit_reads_prompts_as_the_first_one_did(model: tracer.LanguageModel, tmp_path, name: str) -> None:
    chosen: dict[str, Any] = {"ike": {"count": 1}, "mello": {"max_rounds": 1, "new_tokens": 4}}.get(name, {})
    if name == "serac":
        chosen["checkpoint"] = tmp_path / "scope.safetensors"
        untrained_scope("hashed-words", rank=2, scale=1.0, seed=0).save(chosen["checkpoint"])
    editor = editor_named(name, model, **chosen)
    weights = states(model)
    with editor.apply(model, [ROME]) as edit:
        expected, fingerprint = routes(model, PROMPTS), model.fingerprint()
        edit.save(tmp_path / "edit.safetensors")
        assert expected[0].prompt != PROMPTS[0] and same_states(model, weights)
    base = model.fingerprint()
    assert base == edit.base != fingerprint
    with load_edit(tmp_path / "edit.safetensors").apply(model) as again:
        assert routes(model, PROMPTS) == expected and model.fingerprint() == fingerprint
        assert again.editor == edit.editor and len(model.readers) == 1
    assert routes(model, PROMPTS) != expected


def test_an_edit_of_nothing_changes_nothing(model: tracer.LanguageModel) -> None:
    base = model.fingerprint()
    with MemPrompt().apply(model, []):
        assert model.fingerprint() == base and not model.readers


def test_fitting_finds_a_threshold_for_another_retriever(model: tracer.LanguageModel) -> None:
    facts = bundled_facts().in_two(0.1)[0]
    fitted = MemPrompt(retriever="edit-distance").fit(model, facts)
    assert 0 < fitted.threshold < 1 and fitted.retriever == "edit-distance"


def test_evaluations_make_and_undo_it_like_any_editor(model: tracer.LanguageModel) -> None:
    examination = Examination(model, Questions(free=False))
    for scores in single_edits(examination, MemPrompt(), [counterfact_case(RECORD, "3")], progress=False):
        assert scores.editable and scores.after["reliability_nll"] != scores.before["reliability_nll"]
        assert scores.after["locality_agreement"] == 1
        assert scores.after["locality_kl"] == pytest.approx(0, abs=1e-12)


def test_a_context_that_cannot_hold_the_task_prompt_is_refused_before_a_question_is_asked(tokenizer) -> None:
    short = reading_model(tokenizer, context=100)
    with pytest.raises(EditFailedError, match=r"take \d+ tokens, and .* reads 100"):
        MemPrompt().apply(short, [ROME])
    assert not short.edits and not short.readers


def test_requests_that_can_be_gone_through_once_are_all_remembered(model: tracer.LanguageModel) -> None:
    with MemPrompt().apply(model, iter([ROME, MADRID])) as edit:
        assert edit.requests == (ROME, MADRID) and "Madrid" in read(model, PROMPTS[1])
    for wrong in (ROME, None, 3):
        with pytest.raises(RequestError, match=r"Write apply\(model, \[request\]\)"):
            MemPrompt().apply(model, wrong)


def test_settings_that_make_no_sense_are_refused(model: tracer.LanguageModel) -> None:
    for threshold in (float("nan"), "high"):
        with pytest.raises(RequestError, match="Write threshold=0.5, or None"):
            MemPrompt(threshold=threshold)
    for facts, said in ((ScopedFacts("none", ()), "none holds no fact"), (None, "None is no ScopedFacts")):
        with pytest.raises(RequestError, match=said):
            MemPrompt().fit(model, facts)
    with pytest.raises(RequestError, match='miss="base"'):
        MemPrompt(miss="nothing")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match="no retriever"):
        MemPrompt(retriever="none")
    with pytest.raises(RequestError, match="leave layer=1 out"):
        editor_named("memprompt", model, 1)
    assert set(MEMORY_EDITORS) <= set(EDITORS)


def test_a_trace_says_once_that_it_does_not_see_rewritten_prompts(model: tracer.LanguageModel, recwarn) -> None:
    with MemPrompt().apply(model, [ROME]):
        with pytest.warns(tracer.TracerWarning, match="rewrite prompts before it reads them"):
            tracer.trace(model, ROME.fact, kinds=("state",), samples=1, roles=["last token"], progress=False)
        recwarn.clear()
        tracer.trace(model, ROME.fact, kinds=("state",), samples=1, roles=["last token"], progress=False)
        assert not [one for one in recwarn if "rewrite prompts" in str(one.message)]
