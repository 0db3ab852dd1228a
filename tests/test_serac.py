"""SERAC: the scope's geometry, hard routing that is exact, and a training that can be stopped and taken up."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from remembering import MADRID, PAIRS, PROMPTS, ROME, reading_model, retriever, same_states, states
from transformers import PreTrainedTokenizerFast

import tracer
from editing import SERAC, EditFailedError, EditRequest, RequestError
from editing.memory import Scope, ScopedFact, ScopedFacts, bundled_facts, load_scope
from editing.memory.scope import untrained_scope
from editing.memory.scope_training import NEAREST, ScopeTraining, train_scope
from editing.scoring.asking import Route, routes
from editing.scoring.generation import complete
from editing.scoring.scores import target_scores
from tracer.errors import FileFormatError

QUICK = ScopeTraining(steps=30, every=10, batch=8, rank=4)
READ = "New fact: The capital of France is Rome.\nThe capital of France is Rome.\nThe capital of France is Rome.\n"
BESIDE = EditRequest("The seat of government of {} is in", "France", "Lyon")


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    return reading_model(tokenizer)


@pytest.fixture
def serac() -> SERAC:
    return SERAC(scope=untrained_scope("hashed-words", rank=4, scale=1.0, seed=0))


def plane(**options: float) -> Scope:
    """A head that leaves vectors of length 2 as they are."""
    return Scope("by-hand", torch.tensor([options.get("scale", 1.0)] * 2), torch.zeros(1, 2))


def test_out_of_scope_is_the_base_models_own_pass(model: tracer.LanguageModel, serac: SERAC) -> None:
    weights, before, texts = states(model), target_scores(model, PAIRS), complete(model, PROMPTS, new_tokens=5)
    rows: dict = {}
    target_scores(model, PAIRS[6:], visit=lambda pair, place, odds: rows.update({(pair, place): odds.clone()}))
    with serac.apply(model, [ROME]):

        def same(pair, place, odds) -> None:
            assert torch.equal(odds, rows[pair, place])

        target_scores(model, PAIRS[6:], visit=same)
        assert routes(model, [PROMPTS[2]]) == [Route(PROMPTS[2], model)]
        assert complete(model, PROMPTS, new_tokens=5)[2] == texts[2] and same_states(model, weights)
    assert target_scores(model, PAIRS) == before and same_states(model, weights)


def test_in_scope_reads_the_edit_and_then_the_query(model: tracer.LanguageModel, serac: SERAC) -> None:
    said = f"{READ}The capital of France is"
    expected = target_scores(model, [(said, " Paris"), (said, " Rome")])
    with serac.apply(model, [ROME]):
        assert target_scores(model, PAIRS[:2]) == expected


def test_the_context_names_the_edit_as_often_as_it_likes(model: tracer.LanguageModel, serac: SERAC) -> None:
    editor = dataclasses.replace(serac, context="{edit}; so {edit}: {query}")
    braces = EditRequest("The {edit} of {} is", "{query}", "Rome")
    with editor.apply(model, [braces]):
        (route,) = routes(model, ["The {edit} of {query} is"])
        assert (
            route.prompt == "The {edit} of {query} is Rome; so The {edit} of {query} is Rome: The {edit} of {query} is"
        )


def test_another_models_answers_are_that_models_own(model: tracer.LanguageModel, serac: SERAC, tokenizer) -> None:
    other = reading_model(tokenizer, seed=1)
    expected = complete(other, [f"{READ}{ROME.prompt}"], new_tokens=5)
    editor = SERAC(scope=serac.scope, counterfactual=other)
    with editor.apply(model, [ROME]) as edit:
        assert complete(model, [ROME.prompt], new_tokens=5) == expected
        assert other.name in edit.editor["counterfactual"]


def test_a_file_does_not_pretend_to_hold_another_model(model: tracer.LanguageModel, serac, tokenizer, tmp_path) -> None:
    editor = SERAC(scope=serac.scope, counterfactual=reading_model(tokenizer, seed=1))
    with (
        editor.apply(model, [ROME]) as edit,
        pytest.raises(EditFailedError, match="No file holds .* Keep the requests"),
    ):
        edit.save(tmp_path / "edit.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_counterfactual_model_of_another_vocabulary_is_refused(model: tracer.LanguageModel, serac: SERAC) -> None:
    stranger = make_tokenizer(bos=False)
    stranger.add_tokens(["another token"])
    other = reading_model(stranger)
    with pytest.raises(EditFailedError, match="does not have the vocabulary"):
        SERAC(scope=serac.scope, counterfactual=other).apply(model, [ROME])
    assert not model.edits and not model.readers


def test_without_a_classifier_it_says_how_to_get_one(model: tracer.LanguageModel) -> None:
    with pytest.raises(EditFailedError, match=r"SERAC\(\).fit\(model, .*--set checkpoint=FOLDER"):
        SERAC().apply(model, [ROME])


def test_the_scope_is_one_for_the_text_itself_symmetric_and_falls_with_distance() -> None:
    texts = ["a", "b", "c"]
    with retriever({"a": (1, 0), "b": (0.8, 0.6), "c": (0, 1)}):
        scores = plane().index(texts).scores(texts)
        wider = plane(scale=2.0).index(texts).scores(texts)
    assert np.array_equal(np.diag(scores), np.ones(3)) and np.array_equal(scores, scores.T)
    assert scores[0, 1] == pytest.approx(math.exp(-0.4)) and scores[0, 2] == pytest.approx(math.exp(-2))
    assert (wider < scores)[np.triu_indices(3, 1)].all()


def test_the_order_of_the_memory_and_the_target_asked_for_decide_nothing(model, serac: SERAC) -> None:
    found = []
    for facts in ([ROME, MADRID, BESIDE], [BESIDE, MADRID, ROME]):
        with serac.apply(model, facts):
            together = target_scores(model, PAIRS)
            assert [target_scores(model, [pair])[0].predicted for pair in PAIRS] == [one.predicted for one in together]
            found.append([one.nll for one in together])
    assert found[0] == pytest.approx(found[1], abs=1e-12)


def test_exactly_at_the_threshold_is_out_of_scope(model: tracer.LanguageModel) -> None:
    with retriever({PROMPTS[0]: (1, 0), "query": (0.8, 0.6)}):
        near = plane().index([PROMPTS[0]]).scores(["query"])[0, 0]
        for threshold, read in ((near, "query"), (near - 1e-6, f"{READ}query")):
            editor = SERAC(retriever="by-hand", scope=plane(), threshold=threshold)
            with editor.apply(model, [ROME]):
                assert routes(model, ["query"])[0].prompt == read


def test_a_decision_is_the_same_alone_and_in_any_batch(model: tracer.LanguageModel, serac: SERAC) -> None:
    prompts = [fact.prompt for fact in bundled_facts().facts[:40]] + PROMPTS
    with serac.apply(model, [ROME, MADRID]):
        together = routes(model, prompts)
        assert together == [routes(model, [prompt])[0] for prompt in prompts]
        assert {route.prompt == prompt for route, prompt in zip(together, prompts, strict=True)} == {True, False}


def test_remembering_says_what_it_replaces_and_what_it_contradicts(model: tracer.LanguageModel, serac: SERAC) -> None:
    wide = SERAC(scope=untrained_scope("hashed-words", rank=1, scale=0.3, seed=0))
    again = EditRequest("The capital of {} is", "France", "Lyon")
    with wide.apply(model, [ROME]) as first, wide.apply(model, [again]) as second, wide.apply(model, [BESIDE]) as third:
        assert first.diagnostics[0]["replaces"] is None
        assert second.diagnostics[0]["replaces"] == f"{ROME.prompt} Rome" and not second.diagnostics[0]["contradicts"]
        assert third.diagnostics[0]["replaces"] is None and not third.diagnostics[0]["contradicts"]  # Lyon twice
        fourth = wide.apply(model, [EditRequest(BESIDE.prompt + " the", "France", "Oslo")])
        assert set(fourth.diagnostics[0]["contradicts"]) == {f"{ROME.prompt} Lyon", f"{BESIDE.prompt} Lyon"}
        fourth.undo()


def test_training_brings_paraphrases_in_and_keeps_neighbours_out() -> None:
    facts = ScopedFacts("some", bundled_facts().facts[:300])
    trained = train_scope("hashed-words", facts, ScopeTraining(steps=100, every=50, rank=8))
    first, *_, last = trained.trained["curve"]
    assert last["inside"] > first["inside"] + 0.2 and last["outside"] > 0.9 and last["loss"] < 0.8 * first["loss"]


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path) -> None:
    facts = ScopedFacts("some", bundled_facts().facts[:150])
    whole = train_scope("hashed-words", facts, QUICK, seed=5)
    folders = tmp_path / "whole", tmp_path / "stopped"
    in_folder = train_scope("hashed-words", facts, QUICK, seed=5, folder=folders[0])
    stopping = _StopsAt(12)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("editing.memory.scope_training._step", stopping)
        train_scope("hashed-words", facts, QUICK, seed=5, folder=folders[1])
    taken_up = train_scope("hashed-words", facts, QUICK, seed=5, folder=folders[1])
    assert whole.digest == in_folder.digest == taken_up.digest
    assert whole.trained["curve"] == taken_up.trained["curve"]
    with pytest.raises(RequestError, match="holds another training"):
        train_scope("hashed-words", facts, QUICK, seed=6, folder=folders[1])


class _StopsAt:
    """Steps of the training, until it is interrupted."""

    def __init__(self, step: int) -> None:
        from editing.memory.scope_training import _step

        self.at, self.step = step, _step

    def __call__(self, run, *others) -> None:
        if run.step == self.at:
            raise KeyboardInterrupt
        self.step(run, *others)


def test_training_is_the_same_where_nothing_else_is_differentiated() -> None:
    facts = ScopedFacts("some", bundled_facts().facts[:150])
    quick = ScopeTraining(steps=2, every=1, batch=4, rank=2)
    with torch.inference_mode():
        inside = train_scope("hashed-words", facts, quick)
    assert inside.digest == train_scope("hashed-words", facts, quick).digest


def test_training_ends_early_where_nothing_is_gained() -> None:
    facts = ScopedFacts("some", bundled_facts().facts[:150])
    idle = ScopeTraining(steps=1000, every=5, patience=10, rate=0.0, rank=2)
    found = train_scope("hashed-words", facts, idle)
    assert found.trained["steps"] == 10 and torch.equal(found.scale, torch.ones(2048))


def test_the_loss_is_that_of_its_equation() -> None:
    """One held-out fact, d = 0.4 inside and 2 outside: 0.4 - log(1 - e^-2)."""
    inside, outside = ("i",), (("o", "x"),)
    facts = [ScopedFact("key", f"subject {n}", "new", inside, outside) for n in range(40)]
    with retriever({"key": (1, 0), "i": (0.8, 0.6), "o": (0, 1)}) as name:
        found = train_scope(name, ScopedFacts("test", tuple(facts)), ScopeTraining(steps=1, rank=1, rate=0.0))
    assert found.trained["curve"][0]["loss"] == pytest.approx(0.4 - math.log(1 - math.exp(-2)), abs=1e-3)


def test_inside_prompts_of_other_facts_count_as_outside() -> None:
    """All facts have one key, and it is asked: d = 0 between any two subjects, taken as the least there may be."""
    facts = [ScopedFact("key", f"subject {n}", "new", ("key",), (("o", "x"),)) for n in range(40)]
    with retriever({"key": (1, 0), "o": (0, 1)}) as name:
        found = train_scope(name, ScopedFacts("test", tuple(facts)), ScopeTraining(steps=1, rank=1, rate=0.0))
    assert found.result is not None
    (step,) = [record for record in found.result.curve if not record.get("validation")]
    rest = step["loss"] - step["inside_loss"] - step["outside_loss"]
    assert rest == pytest.approx(-math.log(-math.expm1(-NEAREST)), rel=1e-4)


def test_another_seed_draws_other_batches_and_the_best_head_is_kept(monkeypatch) -> None:
    first = untrained_scope("hashed-words", rank=2, scale=1.0, seed=0)
    monkeypatch.setattr("editing.memory.scope_training.untrained_scope", lambda *_, **__: copy.deepcopy(first))
    facts = ScopedFacts("some", bundled_facts().facts[:150])
    quick = ScopeTraining(steps=2, every=1, batch=4, rank=2)
    found = [train_scope("hashed-words", facts, quick, seed=seed).result for seed in (0, 0, 1)]
    losses = [[record["loss"] for record in one.curve if not record.get("validation")] for one in found if one]
    assert losses[0] == losses[1] != losses[2]
    wild = train_scope("hashed-words", facts, dataclasses.replace(quick, rate=5.0))
    looks = [record["loss"] for record in wild.trained["curve"]]
    assert looks[0] < min(looks[1:]) and torch.equal(wild.scale, first.scale) and torch.equal(wild.mix, first.mix)


def test_a_saved_classifier_is_the_same_one(tmp_path, serac: SERAC) -> None:
    assert serac.scope is not None
    serac.scope.save(tmp_path / "scope.safetensors")
    again = load_scope(tmp_path / "scope.safetensors")
    assert again.digest == serac.scope.digest and again.name == serac.scope.name
    with pytest.raises(FileFormatError, match="no file"):
        load_scope(tmp_path)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(RequestError, match=r"Write scope=load_scope\('file'\), .* --set checkpoint=file"):
        SERAC(scope="file")
    with pytest.raises(RequestError, match="must name the edit and end in the query"):
        SERAC(context="{query} {edit}")
    for wrong, said in (
        ({"threshold": 1.0}, "Write threshold=0.5"),
        ({"threshold": "x"}, "Write threshold=0.5"),
        ({"context": None}, "must name the edit and end in the query"),
        ({"counterfactual": "gpt2"}, r"counterfactual=tracer.load\('gpt2'\)"),
    ):
        with pytest.raises(RequestError, match=said):
            SERAC(**wrong)
    for wrong, said in (
        ({"batch": 0}, "Write batch=32"),
        ({"every": 0}, "every=50"),
        ({"rate": math.nan}, "rate=0.01"),
    ):
        with pytest.raises(RequestError, match=said):
            ScopeTraining(**wrong)
    with pytest.raises(RequestError, match="is no ScopedFacts. Write editing.memory.read_scoped_facts"):
        SERAC().fit(None, "facts.json")
    with pytest.raises(RequestError, match="learned over vectors"):
        train_scope("bm25", bundled_facts(), QUICK)
    with pytest.raises(RequestError, match="Give a hundred facts"):
        train_scope("hashed-words", ScopedFacts("one", bundled_facts().facts[:1]), QUICK)


def test_a_context_that_cannot_hold_the_fact_is_refused_before_anything_is_attached(tokenizer, serac: SERAC) -> None:
    short = reading_model(tokenizer, context=8)
    with pytest.raises(EditFailedError, match=r'reads 8, .* SERAC\(context="\{edit\}\. \{query\}"\)'):
        serac.apply(short, [ROME])
    assert not short.readers and not short.edits
    other = dataclasses.replace(serac, counterfactual=reading_model(tokenizer))
    other.apply(short, [ROME]).undo()  # whose context counts is that of the model that reads it
