"""T-Patcher: cached steps by whole passes, the losses by hand, neurons that add up and come off one edit at a time."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from conftest import LAYERS, WIDTH, assert_same_weights, make_tokenizer, weights
from families import FAMILIES
from test_edit import OTHER, REQUEST
from test_families import DENSE, POST_NORM
from test_grace import LONG, PROMPTS, SHORT, next_tokens

import tracer
from editing import EditFailedError, EditRequest, RequestError, TPatcher, load_edit
from editing.added_parameters.last_layer import LastLayer, last_layer
from editing.added_parameters.patch import Patch
from editing.added_parameters.patch_training import (
    Neurons,
    Schedule,
    TrainedPatch,
    Training,
    loss_of,
    mean_of_largest,
    memory_loss,
    trained_patches,
)
from editing.added_parameters.silent_rows import LEAST_ROWS, silent_rows
from editing.edit import undo_all
from editing.editors import editor_named
from editing.scoring.generation import continued
from editing.scoring.scores import target_scores
from tracer.anatomy.names import FAMILIES as FAMILIES_NAMES
from tracer.errors import AnatomyError
from tracer.facts import bundled
from tracer.model.prompt_ends import prompts_end_at
from tracer.model.tokens import encode, encode_with_target

PATCHED = [name for name in DENSE if name != POST_NORM]
QUICK = TPatcher(memory=40, steps=6, first_check=4, every=2)
LAST = LAYERS - 1
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")


def whole_pass(model: tracer.LanguageModel, request: EditRequest, increment) -> torch.Tensor:
    """Logits at the answer's tokens by a whole pass, with increment(x) added to what the last value matrix gives."""
    encoding, kept = encode_with_target(model.tokenizer, request.prompt, request.new), []
    mlp = model.anatomy.mlp_entrance(model.n_layers - 1)
    hooks = [
        mlp.register_forward_pre_hook(lambda _m, inputs: kept.append(inputs[0])),
        model.anatomy.value_matrix(model.n_layers - 1).register_forward_hook(
            lambda _m, _i, output: output + increment(kept[-1]).reshape(output.shape)
        ),
    ]
    logits = model.torch(input_ids=torch.tensor([encoding.ids[:-1]])).logits[0, encoding.n_prompt - 1 :]
    for hook in hooks:
        hook.remove()
    return logits


def loss(neurons: Neurons, state: LastLayer, memory: torch.Tensor, schedule: Schedule):
    return loss_of(neurons, state.logits(neurons.increment(state.entering)), state.target, memory, schedule)


def new_neurons(model: tracer.LanguageModel, request: EditRequest, n: int, act: str = "relu") -> Neurons:
    return Neurons(last_layer(model, request).entering[:n], act, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PATCHED)
def test_a_cached_step_equals_a_whole_pass(name: str) -> None:
    """Loss and gradients, with a memory, in every family whose blocks end in a sum."""
    model = tracer.load(FAMILIES[name].build(), tokenizer=make_tokenizer(bos=False), check=False)
    cached, neurons = last_layer(model, LONG), new_neurons(model, LONG, 2, "gelu_new")
    memory = torch.randn(30, cached.entering.shape[1], dtype=torch.float64)
    found, _ = loss(neurons, cached, memory, QUICK.schedule)
    logits = whole_pass(model, LONG, neurons.increment)
    edit = torch.nn.functional.cross_entropy(logits, cached.target, label_smoothing=0.1)
    own = torch.stack([(neurons.keys[n] @ neurons.queries[n] + neurons.biases[n]) for n in range(2)])
    slow = edit + (-own).exp().mean() + 10 * memory_loss(neurons, memory)
    torch.testing.assert_close(found, slow, atol=1e-6, rtol=0)
    fast, expected = (torch.autograd.grad(loss, neurons.parameters) for loss in (found, slow))
    assert all(gradient.norm() > 1e-6 for gradient in expected)
    for one, other in zip(fast, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_new_neurons_fire_with_one_on_their_own_queries(family_model: tracer.LanguageModel) -> None:
    neurons = new_neurons(family_model, LONG, 3)
    torch.testing.assert_close(neurons.own().detach(), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert neurons.biases.count_nonzero() == 0 and (neurons.scales == 10).all()


def test_the_losses_by_hand() -> None:
    """exp of the largest: of 0, 1, 2 the two largest; of three rows and a bound of 1000 all of them."""
    assert mean_of_largest(torch.tensor([0.0, 2.0, 1.0]), 2).item() == pytest.approx((math.e**2 + math.e) / 2)
    assert mean_of_largest(torch.tensor([0.0, 1.0]), 1000).item() == pytest.approx((1 + math.e) / 2)
    neurons = Neurons(torch.tensor([[2.0, 0.0]]), "relu", torch.Generator().manual_seed(0))  # k = (0.5, 0): k.q = 1
    memory = torch.tensor([[-6.0, 5.0], [2.0, 5.0]])  # k.m = -3 and 1
    silent = (math.exp(0) + math.exp(4)) / 2
    below = (math.exp(-3 - 1 + 3) + math.exp(1 - 1 + 3)) / 2
    assert memory_loss(neurons, memory).item() == pytest.approx(silent + below, rel=1e-6)


def test_the_loss_weighs_the_five_neurons_that_their_own_queries_fire_least(toy_model) -> None:
    """Pre-activations 0, 1 .. 6 at their own queries: the mean of exp(-0) .. exp(-4), three times."""
    cached, neurons = last_layer(toy_model, LONG), new_neurons(toy_model, LONG, 7)
    assert len(neurons.queries) == 7
    with torch.no_grad():
        neurons.biases += torch.arange(7) - 1.0
    memory = cached.seen[:3]
    schedule = dataclasses.replace(QUICK, activation_weight=3.0, memory_weight=0.5).schedule
    total, edit = loss(neurons, cached, memory, schedule)
    own = sum(math.exp(-n) for n in range(5)) / 5
    assert (total - edit).item() == pytest.approx(3 * own + 0.5 * memory_loss(neurons, memory).item(), rel=1e-9)


def test_training_is_adam_with_weight_decay_clipped_and_its_rate_halved_on_plateaus(toy_model) -> None:
    """Written out step by step; so large a rate makes the loss go up, and the answer is not said."""
    cached, memory = last_layer(toy_model, LONG), silent_rows(toy_model, 40, seed=0)
    schedule = dataclasses.replace(QUICK, rate=4.0, steps=14, first_check=2, every=1, memory_weight=1e-3).schedule
    (found,) = trained_patches([Training(new_neurons(toy_model, LONG, 5), cached, memory)], schedule)
    slow = new_neurons(toy_model, LONG, 5)
    first, second = ([torch.zeros_like(one) for one in slow.parameters] for _ in range(2))
    rate, best, worse, halved = 4.0, math.inf, 0, 0
    for step in range(1, 15):
        total, _ = loss(slow, cached, memory.trained, schedule)
        gradients = torch.autograd.grad(total, slow.parameters)
        norm = math.sqrt(sum(float(one.square().sum()) for one in gradients))
        with torch.no_grad():
            for n, (one, gradient) in enumerate(zip(slow.parameters, gradients, strict=True)):
                pull = gradient * min(1.0, 5 / (norm + 1e-6)) + 0.01 * one
                first[n] = 0.9 * first[n] + 0.1 * pull
                second[n] = 0.999 * second[n] + 0.001 * pull.square()
                size = (second[n] / (1 - 0.999**step)).sqrt() + 1e-8
                one -= rate * first[n] / (1 - 0.9**step) / size
        if step >= 2:
            worse = 0 if total.item() < best * (1 - 1e-4) else worse + 1
            best = min(best, total.item()) if worse == 0 else best
            if worse > 1:
                rate, worse, halved = rate / 2, 0, halved + 1
    assert halved and norm > 5 and not found.said
    torch.testing.assert_close(found.patch.keys, slow.keys.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.patch.values, (slow.directions * slow.scales).detach(), atol=1e-6, rtol=1e-6)


def test_training_ends_once_the_answer_is_said_and_keeps_the_patch_with_the_least_memory_loss(
    toy_model, monkeypatch
) -> None:
    """Looks at steps 4, 6, 8 ...: not said, said, better, no better: it ends there with the third."""
    looks = iter([(0.1, False), (5.0, True), (4.0, True), (3.9995, True), (1.0, True)])

    def looked(run, _logits, step) -> TrainedPatch:
        loss, said = next(looks)
        return TrainedPatch(run.neurons.patch(LAST, run.state.seen), step, run.edit_loss, loss, said)

    monkeypatch.setattr("editing.added_parameters.patch_training._Run.looked_at", looked)
    schedule = dataclasses.replace(QUICK, steps=50).schedule
    state, memory = last_layer(toy_model, LONG), silent_rows(toy_model, 40, seed=0)
    (found,) = trained_patches([Training(new_neurons(toy_model, LONG, 2), state, memory)], schedule)
    assert (found.steps, found.memory_loss) == (8, 4.0) and next(looks) == (1.0, True)


@pytest.mark.parametrize("together", [16, 2])
def test_requests_trained_side_by_side_find_what_each_finds_alone(toy_model, monkeypatch, together: int) -> None:
    """Answers of one and of several tokens, one that is said already, and one that ends before the others."""
    monkeypatch.setattr("editing.added_parameters.t_patcher.AT_ONCE", together)
    editor = TPatcher(memory=40, steps=60, first_check=5, every=5, rate=0.05)
    before, said = weights(toy_model), said_already(toy_model)
    requests = [REQUEST, LONG, said, OTHER, dataclasses.replace(REQUEST, new=" Rome")]
    with editor.apply(toy_model, [OTHER]):  # an edit that stays: its tokens are remembered
        found = editor.each(toy_model, requests, progress=False)
        assert len(toy_model.edits) == 1
        for edit, request in zip(found, requests, strict=True):
            with editor.apply(toy_model, [request]) as alone:
                assert edit.requests == alone.requests and edit.summary == alone.summary
                assert {name: edit.diagnostics[0][name] for name in ("steps", "neurons")} == {
                    name: alone.diagnostics[0][name] for name in ("steps", "neurons")
                }
                written = alone.diagnostics[0]["probability_written"]
                assert edit.diagnostics[0]["probability_written"] == pytest.approx(written, abs=1e-6)
                for one, other in zip(edit.attachments, alone.attachments, strict=True):
                    torch.testing.assert_close(one.keys, other.keys, atol=1e-6, rtol=1e-6)
                    torch.testing.assert_close(one.values, other.values, atol=1e-6, rtol=1e-6)
            with edit.apply(toy_model):
                (score,) = target_scores(toy_model, [(request.prompt, request.new)])
                assert score.prob == pytest.approx(written, abs=1e-6)
    assert len({edit.diagnostics[0]["steps"] for edit in found}) > 2
    assert_same_weights(toy_model, before)


@pytest.mark.parametrize(("act", "together"), [("relu", 16), ("relu", 2), ("model", 16)])
def test_in_turn_gives_the_edits_that_one_call_after_the_other_gives(toy_model, monkeypatch, act, together) -> None:
    monkeypatch.setattr("editing.added_parameters.t_patcher.AT_ONCE", together)
    groups = []
    monkeypatch.setattr("editing.added_parameters.t_patcher.trained_patches", counting(groups))
    editor = TPatcher(memory=40, steps=60, first_check=5, every=5, rate=0.05, act=act)
    before, base = weights(toy_model), next_tokens(toy_model, PROMPTS)
    apart = [EditRequest(f"The capital of {name} is", name, " of") for name in ("Spain", "Japan", "Berlin")]
    requests = [REQUEST, *apart, said_already(toy_model), LONG, OTHER, dataclasses.replace(REQUEST, new=" Rome")]
    found = editor.in_turn(toy_model, requests, seed=5)
    assert toy_model.edits == [] and torch.equal(next_tokens(toy_model, PROMPTS), base)
    sizes = [len(group) for group in groups]
    if act == "model":  # which always fires
        assert sizes == [1, 1, 1, 1, 0, 1, 1, 1]
    else:
        assert max(sizes) == {16: 7, 2: 2}[together] and sum(sizes) >= 7 + (together == 16)  # where one fires, again
    slow = [editor.apply(toy_model, [request], seed=5) for request in requests]
    expected = next_tokens(toy_model, PROMPTS)
    undo_all(slow)
    for one, other in zip(found, slow, strict=True):
        one.apply(toy_model)
        for name, value in other.diagnostics[0].items():
            exact = name == "seconds" or not isinstance(value, float)
            wanted = value if exact else pytest.approx(value, abs=1e-5)
            assert name == "seconds" or one.diagnostics[0][name] == wanted, name
        assert (one.summary, one.editor) == (other.summary, other.editor)
        for mine, theirs in zip(one.attachments, other.attachments, strict=True):
            for part in ("keys", "biases", "values", "seen"):
                torch.testing.assert_close(getattr(mine, part), getattr(theirs, part), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(next_tokens(toy_model, PROMPTS), expected, atol=1e-5, rtol=1e-5)
    undo_all(found)
    assert_same_weights(toy_model, before)


def counting(groups: list):
    def counted(trainings, schedule):
        groups.append(trainings)
        return trained_patches(trainings, schedule)

    return counted


def test_a_request_sees_the_neurons_before_it_and_remembers_what_they_were_trained_on(toy_model, monkeypatch) -> None:
    """The training of each request is given the state under earlier patches, and their tokens as memory."""
    given = []

    def spied(trainings, schedule):
        given.extend((one.state.given, one.memory.trained) for one in trainings)
        return trained_patches(trainings, schedule)

    monkeypatch.setattr("editing.added_parameters.t_patcher.trained_patches", spied)
    seen = {request: last_layer(toy_model, request).seen for request in (REQUEST, OTHER, LONG)}
    alone = last_layer(toy_model, LONG).given
    with QUICK.apply(toy_model, [REQUEST]) as first, QUICK.apply(toy_model, [OTHER, LONG]) as second:
        before = (*first.attachments, second.attachments[0])
    earlier = torch.cat((seen[REQUEST], seen[OTHER]))
    assert len(given[0][1]) == 40 and len(given[2][1]) - len(given[1][1]) == len(seen[OTHER])
    torch.testing.assert_close(given[2][1][-len(earlier) :], earlier, atol=1e-9, rtol=0)
    removers = [patch.attach(toy_model) for patch in before]
    assert len(given) == 4  # a neuron of OTHER's fires on LONG, which was trained beside it in vain
    assert not torch.allclose(given[2][0], given[3][0]) and torch.equal(given[2][1], given[3][1])
    torch.testing.assert_close(given[3][0], last_layer(toy_model, LONG).given, atol=1e-9, rtol=0)
    assert not torch.allclose(given[3][0], alone)
    for remove in removers:
        remove()


def test_one_neuron_is_added_for_each_wrong_token_and_none_for_an_answer_that_is_said(toy_model) -> None:
    encoding = encode_with_target(toy_model.tokenizer, LONG.prompt, LONG.new)
    score = target_scores(toy_model, [(LONG.prompt, LONG.new)])[0]
    wrong = sum(said != wanted for said, wanted in zip(score.predicted, encoding.target_ids, strict=True))
    assert wrong > 5
    with QUICK.apply(toy_model, [LONG]) as edit:
        assert edit.diagnostics[0]["neurons"] == len(edit.attachments[0].keys) == 5
        assert edit.summary == {"neurons": 5, "bytes_added": 4 * 5 * (2 * WIDTH + 1)}
    with dataclasses.replace(QUICK, most=20).apply(toy_model, [LONG]) as edit:
        assert edit.summary["neurons"] == wrong
    with QUICK.apply(toy_model, [said_already(toy_model)]) as edit:
        assert edit.attachments == () and edit.diagnostics[0]["neurons"] == 0


def said_already(model: tracer.LanguageModel) -> EditRequest:
    """A request for what the model says by itself, as one token."""
    for fact in bundled():
        ids = encode(model.tokenizer, fact.prompt).ids
        said = model.tokenizer.decode(continued(model, torch.tensor([ids]), 1)[0, -1:])
        score = target_scores(model, [(fact.prompt, said)])[0] if said.strip() else None
        if score is not None and score.tf_exact:
            return EditRequest(fact.prompt, fact.subject, said)
    raise AssertionError("the model says nothing that a request could ask for")


def test_an_answer_is_learnt_with_no_weight_changed_and_training_predicts_what_is_written(family_model) -> None:
    before, base = weights(family_model), next_tokens(family_model, PROMPTS)
    editor = TPatcher(memory=100, steps=400, memory_weight=0.1)
    with editor.apply(family_model, [SHORT]) as edit:
        record = edit.diagnostics[0]
        assert record["probability_written"] > 3 * record["probability_before"], record
        score = target_scores(family_model, [(SHORT.prompt, SHORT.new)])[0]
        assert record["said"] == (score.predicted == score.target)
        assert_same_weights(family_model, before)
    assert torch.equal(next_tokens(family_model, PROMPTS), base)
    assert all(parameter.grad is None for parameter in family_model.torch.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in family_model.torch.modules())


def test_a_prompt_that_fires_no_neuron_is_answered_exactly_as_before(family_model: tracer.LanguageModel) -> None:
    base = next_tokens(family_model, [REQUEST.prompt])
    cached = last_layer(family_model, REQUEST)
    seen, query = cached.seen, cached.entering[0]
    entering = torch.cat((seen, memory_first(family_model)))
    key = torch.randn(1, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bias = -(entering @ key.T).max() - 1e-6
    patch = Patch(LAST, "relu", key, bias[None], torch.full((1, WIDTH), 9.0), seen)
    remove = patch.attach(family_model)
    assert (next_tokens(family_model, [REQUEST.prompt]) == base).all()
    remove()
    fires = Patch(LAST, "relu", key, 1 - query[None] @ key[0], patch.values, seen)
    remove = fires.attach(family_model)
    assert not torch.equal(next_tokens(family_model, [REQUEST.prompt]), base)
    remove()


def memory_first(model: tracer.LanguageModel) -> torch.Tensor:
    """What enters the last MLP at the first token of the request's prompt."""
    kept = []
    mlp = model.anatomy.mlp_entrance(LAST)
    hook = mlp.register_forward_pre_hook(lambda _m, inputs: kept.append(inputs[0][0, :1].detach()))
    next_tokens(model, [REQUEST.prompt])
    hook.remove()
    return kept[0]


def test_neurons_beside_an_ungated_mlp_equal_neurons_put_into_its_matrices(toy_model: tracer.LanguageModel) -> None:
    with dataclasses.replace(QUICK, act="model").apply(toy_model, [REQUEST]) as edit:
        patch = edit.attachments[0]
        expected = next_tokens(toy_model, PROMPTS)
    mlp = toy_model.anatomy.blocks[-1].mlp
    with torch.no_grad():  # Conv1D: [in, out]
        mlp.c_fc.weight = torch.nn.Parameter(torch.cat((mlp.c_fc.weight, patch.keys.T), dim=1))
        mlp.c_fc.bias = torch.nn.Parameter(torch.cat((mlp.c_fc.bias, patch.biases)))
        mlp.c_fc.nf += len(patch.keys)
        mlp.c_proj.weight = torch.nn.Parameter(torch.cat((mlp.c_proj.weight, patch.values)))
    torch.testing.assert_close(next_tokens(toy_model, PROMPTS), expected, atol=1e-6, rtol=0)


def test_edits_add_up_and_each_comes_off_alone(toy_model: tracer.LanguageModel) -> None:
    base = next_tokens(toy_model, PROMPTS)
    first = QUICK.apply(toy_model, [REQUEST])
    kept, alone = first.attachments[0].tensors(), next_tokens(toy_model, PROMPTS)
    held = {name: tensor.clone() for name, tensor in kept.items()}
    second = QUICK.apply(toy_model, [OTHER], seed=1)
    assert all(torch.equal(held[name], tensor) for name, tensor in first.attachments[0].tensors().items())
    assert not torch.equal(next_tokens(toy_model, PROMPTS), alone)
    second.undo()
    assert torch.equal(next_tokens(toy_model, PROMPTS), alone)
    again = QUICK.apply(toy_model, [OTHER], seed=1)
    first.undo()
    remaining = next_tokens(toy_model, PROMPTS)
    again.undo()
    assert torch.equal(next_tokens(toy_model, PROMPTS), base)
    remove = again.attachments[0].attach(toy_model)
    assert torch.equal(next_tokens(toy_model, PROMPTS), remaining)
    remove()


def test_requests_of_one_call_see_the_neurons_before_them(toy_model: tracer.LanguageModel) -> None:
    """Together and one after the other: the same second patch, for equal draws of values."""
    with QUICK.apply(toy_model, [REQUEST, OTHER]) as together:
        joint = next_tokens(toy_model, PROMPTS)
        states = [last_layer(toy_model, request) for request in (REQUEST, OTHER)]
    cached = [last_layer(toy_model, request).with_patches(together.attachments) for request in (REQUEST, OTHER)]
    for one, other in zip(cached, states, strict=True):
        zero = torch.zeros_like(one.given)
        torch.testing.assert_close(one.given, other.given, atol=1e-9, rtol=0)
        torch.testing.assert_close(one.logits(zero), other.logits(zero), atol=1e-9, rtol=0)
    with together.apply(toy_model):
        assert torch.equal(next_tokens(toy_model, PROMPTS), joint)


def test_greedy_texts_with_a_cache_equal_teacher_forcing(family_model: tracer.LanguageModel) -> None:
    prompt = encode(family_model.tokenizer, LONG.prompt).ids
    with QUICK.apply(family_model, [LONG]), torch.no_grad():
        written = continued(family_model, torch.tensor([prompt]), 6)[0]
        with prompts_end_at(family_model, [len(prompt) - 1]):
            forced = family_model.torch(input_ids=written[None, :-1]).logits[0].argmax(-1)
        assert torch.equal(forced[len(prompt) - 1 :], written[len(prompt) :])


def test_a_memory_is_half_facts_half_text_without_first_tokens_and_without_the_edited_subject(toy_model) -> None:
    memory = silent_rows(toy_model, 80, seed=0)
    assert memory.trained.shape == (80, WIDTH) and memory.validation.shape == (20, WIDTH)
    first = next(iter(tracer.facts.spread_over_relations(tracer.facts.bundled())))
    query = last_layer(toy_model, EditRequest(first.prompt, first.subject, first.answer)).seen[:1]
    held = silent_rows(toy_model, 80, seed=0, without=[first.subject]).trained
    assert (memory.trained - query).norm(dim=-1).min() < 1e-9 < (held - query).norm(dim=-1).min()
    assert torch.equal(silent_rows(toy_model, 80, seed=0).trained, memory.trained)


def test_the_smallest_memory_leaves_rows_to_validate_by(toy_model: tracer.LanguageModel) -> None:
    memory = silent_rows(toy_model, LEAST_ROWS, seed=0)
    assert (len(memory.trained), len(memory.validation)) == (LEAST_ROWS, 2)


def test_a_saved_patch_acts_as_the_first_one_did(toy_model: tracer.LanguageModel, tmp_path) -> None:
    with QUICK.apply(toy_model, [REQUEST]) as edit:
        expected = next_tokens(toy_model, PROMPTS)
        edit.save(tmp_path / "edit.safetensors")
    with load_edit(tmp_path / "edit.safetensors").apply(toy_model):
        assert torch.equal(next_tokens(toy_model, PROMPTS), expected)


def test_what_cannot_be_patched_is_refused_and_leaves_nothing(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    opt = tracer.load(FAMILIES[POST_NORM].build(), tokenizer=make_tokenizer(bos=False), check=False)
    with pytest.raises(AnatomyError, match="to the sum that ends its last block"):
        QUICK.apply(opt, [REQUEST])
    names = dataclasses.replace(FAMILIES_NAMES["opt"], mlp_entrance=None)
    nameless = tracer.load(FAMILIES["OPT"].build(), tokenizer=make_tokenizer(bos=False), names=names, check=False)
    with pytest.raises(AnatomyError, match="where it begins is not known.*mlp_entrance="):
        QUICK.apply(nameless, [REQUEST])
    with pytest.raises(RequestError, match="leave layer=1 out"):
        editor_named("t-patcher", toy_model, 1)
    assert editor_named("t-patcher", toy_model, LAST, most=2) == TPatcher(most=2)
    for wrong, said in (
        ({"act": "gelu"}, "choose from relu, model"),
        ({"memory": 7}, "memory=7 is below 8. Write memory=4000"),
        ({"every": 2.5}, "every=2.5 is no whole number. Write every=25"),
        ({"memory_weight": -1.0}, r"Write memory_weight=10\.0"),
        ({"activation_weight": float("nan")}, r"Write activation_weight=1\.0"),
    ):
        with pytest.raises(RequestError, match=said):
            TPatcher(**wrong)
    monkeypatch.setattr("editing.added_parameters.t_patcher.trained_patches", refuse)
    with pytest.raises(EditFailedError, match="on purpose"):
        QUICK.apply(toy_model, [REQUEST])
    assert toy_model.edits == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in toy_model.torch.modules())


def refuse(*_: object) -> None:
    raise EditFailedError("on purpose")


def test_training_ends_once_the_rate_is_spent_where_the_answer_cannot_be_said(toy_model, monkeypatch) -> None:
    """One neuron for many wrong tokens; so the answer is never said, and plateau follows plateau."""
    looks = []

    def looked(run, logits, step) -> TrainedPatch:
        looks.append((step, run.optimiser.param_groups[0]["lr"]))
        return TrainedPatch(run.neurons.patch(LAST, run.state.seen), step, 1.0, 1.0, False)

    monkeypatch.setattr("editing.added_parameters.patch_training._Run.looked_at", looked)
    editor = TPatcher(memory=40, steps=500, first_check=2, every=2, rate=0.5, most=1)
    with editor.apply(toy_model, [LONG]) as edit:
        assert edit.diagnostics[0]["steps"] == looks[-1][0] < 500 and edit.diagnostics[0]["said"] is False
    rates = [rate for _, rate in looks]
    assert rates[-1] < 5e-3 <= min(rates[:-2])  # the last look is the one at the end
    assert looks[-1][0] == looks[-2][0]


def test_what_is_trained_in_vain_fails_nothing(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    """OTHER diverges beside LONG in one group; alone, as it is made in turn, it does not."""
    sizes = []

    def fails_in_company(trainings, schedule):
        sizes.append(len(trainings))
        if len(trainings) > 1:
            raise EditFailedError("on purpose")
        return trained_patches(trainings, schedule)

    monkeypatch.setattr("editing.added_parameters.t_patcher.trained_patches", fails_in_company)
    with QUICK.apply(toy_model, [REQUEST, OTHER, LONG]) as edit:
        assert sizes == [3, 1, 2, 1, 1] and len(edit.attachments) == 3
    monkeypatch.setattr("editing.added_parameters.t_patcher.trained_patches", refuse)
    with pytest.raises(EditFailedError, match="on purpose"):
        QUICK.in_turn(toy_model, [REQUEST, OTHER])
    assert toy_model.edits == []
