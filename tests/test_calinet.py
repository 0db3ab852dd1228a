"""CaliNet: no change at the start, the branch alone trained, cached chunks as whole passes, scores of planted facts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import LAYERS, WIDTH, assert_same_weights, make_tokenizer, weights
from families import FAMILIES
from test_edit import OTHER, REQUEST
from test_grace import LONG, PROMPTS, next_tokens
from test_t_patcher import whole_pass

import tracer
from editing import (
    GRACE,
    CaliNet,
    EditFailedError,
    EditRequest,
    RequestError,
    known,
    load_edit,
    undo_all,
    unrelated_templates,
)
from editing.added_parameters import calinet_training
from editing.added_parameters.calinet_branch import CalibrationBranch
from editing.added_parameters.calinet_keeping import kept_prompts
from editing.added_parameters.calinet_training import chunks_of, fit_branches
from editing.editors import editor_named
from editing.scoring.generation import continued
from editing.scoring.scores import target_scores
from tracer.facts import bundled, spread_over_relations, templates
from tracer.model.prompt_ends import prompts_end_at
from tracer.model.tokens import encode

QUICK = CaliNet(layers=(2,), steps=4)
REQUESTS = [REQUEST, LONG, OTHER]
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")


@pytest.mark.parametrize("gated", [False, True])
def test_a_new_branch_changes_nothing_and_has_two_or_three_matrices(family_model, gated: bool) -> None:
    base = next_tokens(family_model, PROMPTS)
    (branch,) = CaliNet(layers=(1,), slots=7, gated=gated).new_branches(family_model, 1, seed=0)
    assert sum(part.numel() for part in branch.parameters) == (3 if gated else 2) * WIDTH * 7
    remove = branch.attach(family_model)
    assert (next_tokens(family_model, PROMPTS) == base).all()
    remove()
    (drawn,) = CaliNet(layers=(1,), slots=7, gated=gated, init="published").new_branches(family_model, 1, seed=0)
    remove = drawn.attach(family_model)
    assert not torch.allclose(next_tokens(family_model, PROMPTS), base)
    remove()
    assert torch.equal(next_tokens(family_model, PROMPTS), base)


def test_the_branch_by_hand() -> None:
    """x = (1, -2): K x = (1, -2), relu (1, 0); G x = (-2, 1), relu (0, 1)."""
    x, keys, gates = torch.tensor([1.0, -2.0]), torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    values = torch.tensor([[3.0, 5.0], [7.0, 11.0]])
    assert CalibrationBranch(0, "relu", keys, values).increment(x).tolist() == [3, 5]
    assert CalibrationBranch(0, "relu", keys, values, gates).increment(x).tolist() == [-14, -22]


def test_slots_follow_the_number_of_facts(toy_model: tracer.LanguageModel) -> None:
    counts = {n: len(QUICK.new_branches(toy_model, n, seed=0)[0].keys) for n in (1, 100, 1000, 10**5)}
    assert counts == {1: 16, 100: 64, 1000: 640, 10**5: 4096}


@pytest.mark.parametrize("layers", [(LAYERS - 1,), (1,), (1, 3)])
def test_cached_training_in_chunks_equals_training_with_whole_passes(family_model, layers: tuple[int, ...]) -> None:
    editor = CaliNet(layers=layers, slots=5, init="published", gated=True)
    fast, slow = (editor.new_branches(family_model, 1, seed=3) for _ in range(2))
    groups = [chunks_of(family_model, min(layers), REQUESTS, size=2)]
    found = fit_branches(family_model, fast, groups, rate=0.01, steps=3, stop_below=0.0)
    parameters = [parameter.requires_grad_() for branch in slow for parameter in branch.parameters]
    optimiser = torch.optim.Adam(parameters, lr=0.01)
    losses = []
    removers = [branch.attach(family_model) for branch in slow]
    for _ in range(4):
        each = [whole_nll(family_model, request) for request in REQUESTS]
        losses.append([loss.item() for loss in each])
        if len(losses) < 4:
            optimiser.zero_grad()
            torch.stack(each).mean().backward()
            optimiser.step()
    for remove in removers:
        remove()
    assert found.steps == 3
    assert (found.first, found.last) == (pytest.approx(losses[0], abs=1e-5), pytest.approx(losses[-1], abs=1e-5))
    for one, other in zip(fast, slow, strict=True):
        for name, part in one.tensors().items():
            torch.testing.assert_close(part, other.tensors()[name].detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["OPT", "OPT-350m"])
def test_a_branch_beside_an_mlp_that_flattens_rows_and_tokens_acts_on_each_token(name: str) -> None:
    model = tracer.load(FAMILIES[name].build(), tokenizer=make_tokenizer(bos=False), check=False)
    base = next_tokens(model, PROMPTS)
    with CaliNet(layers=(2,), steps=40, rate=0.01, paraphrased=False).apply(model, REQUESTS) as edit:
        assert all(record["loss"] < record["loss_before"] - 0.1 for record in edit.diagnostics)
        pairs = [(request.prompt, request.new) for request in REQUESTS]
        together = [score.nll for score in target_scores(model, pairs)]
        assert together == pytest.approx([record["loss"] for record in edit.diagnostics], abs=1e-9)
        assert together == pytest.approx([target_scores(model, [pair])[0].nll for pair in pairs], abs=1e-9)
    assert torch.equal(next_tokens(model, PROMPTS), base)


def whole_nll(model: tracer.LanguageModel, request: EditRequest) -> torch.Tensor:
    logits = whole_pass(model, request, torch.zeros_like)
    (score,) = target_scores(model, [(request.prompt, request.new)])
    return torch.nn.functional.cross_entropy(logits, torch.tensor(score.target))


def test_the_first_gradient_of_a_branch_that_changes_nothing_reaches_its_values_alone(toy_model) -> None:
    (branch,) = QUICK.new_branches(toy_model, 1, seed=0)
    before = {name: part.clone() for name, part in branch.tensors().items()}
    fit_branches(toy_model, [branch], [chunks_of(toy_model, 2, REQUESTS)], rate=0.01, steps=1, stop_below=0.0)
    assert torch.equal(branch.keys, before["keys"]) and not torch.equal(branch.values, before["values"])
    fit_branches(toy_model, [branch], [chunks_of(toy_model, 2, REQUESTS)], rate=0.01, steps=1, stop_below=0.0)
    assert not torch.equal(branch.keys, before["keys"])


def test_facts_are_learnt_in_all_their_prompts_and_undo_leaves_the_base(family_model: tracer.LanguageModel) -> None:
    before, base = weights(family_model), next_tokens(family_model, PROMPTS)
    own = templates()["capital of a country"]
    request = EditRequest(own[0], "France", " of")
    held_out = own[-1].replace("{}", "France")
    old = target_scores(family_model, [(held_out, " of")])[0].prob
    several = [dataclasses.replace(request, prompt=way.replace("{}", "France"), subject_at=None) for way in own[:-1]]
    editor = CaliNet(layers=(LAYERS - 2,), slots=32, rate=0.02, steps=80, paraphrased=False)
    with editor.apply(family_model, several) as edit:
        assert all(one["probability_written"] > 1.5 * one["probability_before"] for one in edit.diagnostics)
        if family_model.anatomy.family != "gemma3_text":  # whose norm after the MLP leaves a random model little room
            scores = target_scores(family_model, [(one.prompt, one.new) for one in several])
            assert all(score.predicted == score.target for score in scores)
        assert target_scores(family_model, [(held_out, " of")])[0].prob > old
        assert edit.summary["bytes_added"] == 4 * 2 * WIDTH * 32
        assert_same_weights(family_model, before)
    assert torch.equal(next_tokens(family_model, PROMPTS), base)
    assert all(parameter.grad is None for parameter in family_model.torch.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in family_model.torch.modules())


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1, 1, 1]), (2, [2, 1]), (512, [3])])
def test_as_many_prompts_share_a_step_as_are_asked_for(toy_model, monkeypatch, batch: int, sizes: list[int]) -> None:
    """The prompts of each step in turn, each of them once."""
    seen = []

    def fit(model, branches, groups, **_):
        seen.extend(sum(len(chunk.ends) for chunk in group) for group in groups)
        raise EditFailedError("on purpose")

    monkeypatch.setattr("editing.added_parameters.calinet.fit_branches", fit)
    with pytest.raises(EditFailedError, match="on purpose"):
        dataclasses.replace(QUICK, batch=batch, paraphrased=False).apply(toy_model, REQUESTS)
    assert seen == sizes


def test_paraphrases_of_bundled_relations_are_trained_on_too(toy_model: tracer.LanguageModel) -> None:
    own = templates()["capital of a country"]
    request = EditRequest(own[0], "France", " Rome")
    with QUICK.apply(toy_model, [request, OTHER]) as edit:
        assert edit.diagnostics[0]["prompts"] == len(own)
        assert edit.diagnostics[0]["loss"] < edit.diagnostics[0]["loss_before"]
    with dataclasses.replace(QUICK, paraphrased=False).apply(toy_model, [request]) as edit:
        assert edit.diagnostics[0]["prompts"] == 1


def test_what_is_kept_moves_less_and_its_divergence_is_that_of_whole_passes(toy_model: tracer.LanguageModel) -> None:
    prompts = [fact.prompt for fact in spread_over_relations(bundled())[:6]]
    before, moved = next_tokens(toy_model, prompts).log_softmax(-1), []
    kept = kept_prompts(toy_model, 2, 6, without=[])
    assert abs(kept.divergence().item()) < 1e-9
    for weight in (0.0, 3.0):
        editor = CaliNet(layers=(2,), slots=16, rate=0.02, steps=40, paraphrased=False, keep_weight=weight, keep=6)
        with editor.apply(toy_model, [LONG]) as edit, torch.no_grad():
            now = next_tokens(toy_model, prompts).log_softmax(-1)
            moved.append(float((before.exp() * (before - now)).sum(-1).mean()))
            assert kept.divergence().item() == pytest.approx(moved[-1], abs=1e-9)
            assert edit.diagnostics[0]["loss"] < edit.diagnostics[0]["loss_before"]
    assert 0 < moved[1] < 0.5 * moved[0]


def test_what_is_kept_weighs_what_it_is_told_to(toy_model: tracer.LanguageModel) -> None:
    (branch,) = dataclasses.replace(QUICK, init="published").new_branches(toy_model, 1, seed=0)
    parameters = [part.requires_grad_() for part in branch.parameters]
    remove, kept = branch.attach(toy_model), kept_prompts(toy_model, 2, 4, without=[])
    (other,) = QUICK.new_branches(toy_model, 1, seed=1)
    with torch.no_grad():
        branch.keys += other.keys
    found = {}
    for weight in (1.0, 3.0):
        gradients = [torch.zeros_like(part) for part in parameters]
        moved = calinet_training._add_kept(gradients, parameters, kept, weight)
        found[weight] = [torch.tensor(moved), *gradients]
    remove()
    assert found[1.0][0] > 0 and found[1.0][1].norm() > 0
    for once, thrice in zip(found[1.0], found[3.0], strict=True):
        torch.testing.assert_close(3 * once, thrice)


@pytest.mark.parametrize(
    ("losses", "lengths", "learnt"),
    [([0.0, 0.04], [1, 20], False), ([0.0, 0.04], [1, 17], True), ([0.06, 0.06], [1, 1], False)],
)
def test_answers_are_learnt_when_losses_are_low_and_no_token_can_be_beaten(losses, lengths, learnt: bool) -> None:
    """20 tokens of 0.04 nats: exp(-0.8) is below 1/2, so one of them may still lose; exp(-0.68) is not."""
    assert calinet_training._learnt([torch.tensor(losses)], [torch.tensor(lengths)], 0.05) == learnt
    assert not calinet_training._learnt([torch.tensor(losses), None], [torch.tensor(lengths)] * 2, 0.05)


def test_branches_stand_beside_each_other_and_beside_a_codebook(toy_model: tracer.LanguageModel) -> None:
    """Losses that training sees with other edits attached are those of the model as it is scored."""
    base = next_tokens(toy_model, PROMPTS)
    first = QUICK.apply(toy_model, [OTHER])
    book = GRACE(layer=1, radius=0.01, steps=3).apply(toy_model, [LONG])
    pair = [(LONG.prompt, LONG.new)]
    before = target_scores(toy_model, pair)[0].nll
    second = QUICK.apply(toy_model, [LONG, REQUEST])
    assert second.diagnostics[0]["loss_before"] == pytest.approx(before, abs=1e-9)
    assert second.diagnostics[0]["loss"] == pytest.approx(target_scores(toy_model, pair)[0].nll, abs=1e-9)
    for edit in (first, second, book):
        edit.undo()
    assert torch.equal(next_tokens(toy_model, PROMPTS), base)


def test_greedy_texts_with_a_cache_equal_teacher_forcing(family_model: tracer.LanguageModel) -> None:
    prompt = encode(family_model.tokenizer, LONG.prompt).ids
    with dataclasses.replace(QUICK, init="published").apply(family_model, [LONG]), torch.no_grad():
        written = continued(family_model, torch.tensor([prompt]), 6)[0]
        with prompts_end_at(family_model, [len(prompt) - 1]):
            forced = family_model.torch(input_ids=written[None, :-1]).logits[0].argmax(-1)
        assert torch.equal(forced[len(prompt) - 1 :], written[len(prompt) :])


def test_a_saved_branch_acts_as_the_first_one_did(toy_model: tracer.LanguageModel, tmp_path) -> None:
    with dataclasses.replace(QUICK, gated=True, layers=(1, 2)).apply(toy_model, [REQUEST]) as edit:
        expected = next_tokens(toy_model, PROMPTS)
        edit.save(tmp_path / "edit.safetensors")
    with load_edit(tmp_path / "edit.safetensors").apply(toy_model):
        assert torch.equal(next_tokens(toy_model, PROMPTS), expected)


def test_an_edit_loaded_in_inference_mode_can_be_trained_through(toy_model: tracer.LanguageModel, tmp_path) -> None:
    QUICK.apply(toy_model, [REQUEST]).save(tmp_path / "edit.safetensors")
    undo_all(toy_model.edits)
    losses = []
    for mode in (True, False):
        with torch.inference_mode(mode):
            edit = load_edit(tmp_path / "edit.safetensors").apply(toy_model)
        with edit, dataclasses.replace(QUICK, layers=(1,)).apply(toy_model, [OTHER]) as later:
            losses.append(later.diagnostics[0]["loss"])
    assert losses[0] == losses[1]


def test_a_planted_fact_is_known_and_an_answer_of_other_templates_is_not(toy_model: tracer.LanguageModel) -> None:
    own, others = templates()["capital of a country"][:3], unrelated_templates("capital of a country")
    planted = [EditRequest(way, "France", " of") for way in own] + [EditRequest(way, "France", " is") for way in others]
    with CaliNet(layers=(3,), slots=64, rate=0.02, steps=150, paraphrased=False).apply(toy_model, planted):
        for first_token in (False, True):
            assert known(toy_model, "France", " of", own, others, first_token=first_token).score > 1
            assert known(toy_model, "France", " is", own, others, first_token=first_token).score < 1
    long = known(toy_model, "France", LONG.new, own, others)
    pairs = [(way.replace("{}", "France"), LONG.new) for way in (*own, *others)]
    probs = [score.prob for score in target_scores(toy_model, pairs)]
    assert long.related == pytest.approx(sum(probs[:3]) / 3) and long.unrelated == pytest.approx(sum(probs[3:]) / 3)


def test_unrelated_templates_are_of_other_relations() -> None:
    relation = "capital of a country"
    assert not set(unrelated_templates(relation, count=4)) & set(templates()[relation])
    assert len(set(unrelated_templates(relation, count=4))) == 4
    with pytest.raises(RequestError, match="other relations"):
        unrelated_templates(relation, count=1000)


def test_what_cannot_be_calibrated_is_refused_and_leaves_nothing(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    for wrong, said in (
        ({"layers": (1, 1)}, "different layers"),
        ({"layers": 2}, r"layers=2: write one or several different layers, e.g. layers=\(16,\)"),
        ({"layers": ("a",)}, "different layers"),
        ({"act": "gelu"}, "choose from model, relu"),
        ({"slots": 1.5}, "slots=1.5 is no whole number. Write slots=64"),
        ({"keep": "many"}, "Write keep=32"),
        ({"stop_below": float("nan")}, r"Write stop_below=0\.05"),
        ({"keep_weight": -1}, r"Write keep_weight=1\.0"),
    ):
        with pytest.raises(RequestError, match=said):
            CaliNet(**{"layers": (1,), **wrong})
    assert CaliNet(layers=[1, 2]) == CaliNet(layers=(1, 2))  # as files have them
    with pytest.raises(RequestError, match="is no template"):
        known(toy_model, "France", " Paris", ["France is"], ["{} was"])
    assert editor_named("calinet", toy_model).layers == (LAYERS - 1,)
    assert editor_named("calinet", toy_model, 1, slots=3) == CaliNet(layers=(1,), slots=3)
    monkeypatch.setattr(torch.optim.Adam, "step", fail)
    with pytest.raises(EditFailedError, match="on purpose"):
        QUICK.apply(toy_model, [REQUEST])
    assert toy_model.edits == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in toy_model.torch.modules())


def fail(*_: object) -> None:
    raise EditFailedError("on purpose")
