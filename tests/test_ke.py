"""KnowledgeEditor: its factored gate, its Lagrangian, its training, and what an edit of it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mend import PLAN, REQUESTS, check_goes_on, gradients, small_model, small_records, with_new_network

import tracer
from editing import KE, RequestError, TrainingPlan
from editing.editors import editor_named
from editing.meta_learning.hypernetwork import Asked
from editing.meta_learning.lessons import edits_take, lesson_of, losses
from editing.meta_learning.objective import Constrained
from editing.meta_learning.records import split_by_subject
from editing.scoring.generation import answers
from editing.scoring.scores import target_scores

SMALL: dict[str, Any] = {"blocks": 1, "hidden": 16, "condition": 32, "inner": 16, "answer_tokens": 2}
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")  # so little training says little
QUICK = SMALL | {"rate": 1e-2, "warm_up": 5, "margin": 0.3, "largest": 10.0}


@pytest.fixture(scope="module")
def learned() -> tuple[tracer.LanguageModel, KE]:
    model = small_model()
    return model, KE(**QUICK).fit(model, small_records(), plan=PLAN)


def test_the_factored_change_equals_the_gated_gradient(family_model: tracer.LanguageModel) -> None:
    editor = with_new_network(KE(**SMALL, smoothing=0.1, largest=0.7), family_model)
    network, request = editor.trained.network, REQUESTS[1]
    asked = network.asked(family_model, [(request.prompt, request.new)])
    read = network.condition(family_model, asked)
    (edit,) = editor.each(family_model, [request])
    wanted = gradients(family_model, [request], editor.weights, smoothing=0.1)
    assert [change.weight for change in edit.changes] == list(editor.weights)
    for gate, change, (n, m) in zip(network.gates, edit.changes, network.sizes.values(), strict=True):
        ca, ra, cb, rb, eta = gate(read)[0].split((n, m, n, m, 1))
        gradient = wanted[change.weight]
        gradient = gradient.T if family_model.anatomy.family == "gpt2" else gradient  # Conv1D stores [n, m]
        a, b = torch.outer(ra.softmax(0), ca), torch.outer(rb.softmax(0), cb)
        dense = 0.7 * eta.sigmoid() * (a * gradient + b)
        torch.testing.assert_close(change.out @ change.into.T, dense, rtol=0, atol=1e-12)


def set_gates(editor: KE, *, eta: float) -> None:
    """A = 1 and B = 0, whatever is read."""
    network = editor.trained.network
    for gate, (n, m) in zip(network.gates, network.sizes.values(), strict=True):
        last = gate[2]
        with torch.no_grad():
            last.parametrizations.weight.original0.zero_()  # the norms of its rows
            ca, zeros = torch.full((n,), float(m)), torch.zeros
            last.bias.copy_(torch.cat((ca, zeros(m), zeros(n), zeros(m), torch.tensor([eta]))))


def test_an_open_gate_is_one_gradient_step(toy_model: tracer.LanguageModel) -> None:
    editor = with_new_network(KE(**SMALL, smoothing=0.0, largest=-0.02), toy_model)
    set_gates(editor, eta=0.0)  # s_max sigmoid(0) = -0.01
    wanted = gradients(toy_model, REQUESTS, editor.weights)
    before = {weight: toy_model.torch.get_parameter(weight).detach().clone() for weight in editor.weights}
    with editor.apply(toy_model, REQUESTS):
        for weight, old in before.items():
            torch.testing.assert_close(
                toy_model.torch.get_parameter(weight), old - 0.01 * wanted[weight], rtol=0, atol=1e-11
            )
    for weight, old in before.items():
        assert torch.equal(toy_model.torch.get_parameter(weight), old)


def test_a_closed_gate_leaves_every_logit_as_it_was_and_nothing_drifts(toy_model: tracer.LanguageModel) -> None:
    ids = torch.tensor([[5, 9, 100, 7]])
    before = toy_model.torch(ids).logits
    editor = with_new_network(KE(**SMALL), toy_model)
    set_gates(editor, eta=-1e9)  # its sigmoid is 0
    with editor.apply(toy_model, REQUESTS):
        assert torch.equal(toy_model.torch(ids).logits, before)
    records = small_records(3)
    lesson = lesson_of(toy_model, editor.trained.network, records, [record.prompt for record in records])
    assert losses(editor.trained.network, lesson).drift.abs().max() < 1e-12


def test_padding_changes_nothing_that_is_read(toy_model: tracer.LanguageModel) -> None:
    network = with_new_network(KE(**SMALL), toy_model).trained.network
    asked = [Asked("The Louvre is in", "Rome", "Paris"), Asked("The mother tongue of Angela Merkel is", "a b", "c d e")]
    together = network.condition(toy_model, asked)
    alone = torch.cat([network.condition(toy_model, [one]) for one in asked])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)
    other = network.condition(toy_model, [dataclasses.replace(asked[0], predicted="Berlin")])
    assert (other - alone[0]).abs().max() > 1e-6  # the present answer is read


def test_the_price_follows_the_drift_and_is_never_negative() -> None:
    bound = Constrained(margin=0.2, price=0.05, ascent=0.5)
    assert bound.stepped(0.3).price == pytest.approx(0.05 + 0.5 * 0.1)
    assert bound.stepped(0.15).price == pytest.approx(0.05 - 0.5 * 0.05)
    assert bound.stepped(0.0).price == 0  # 0.05 - 0.1 would be below
    edit, drift = torch.tensor([1.0, 3.0]), torch.tensor([0.4, 0.6])
    assert bound.loss(edit, drift).item() == pytest.approx(2 + 0.05 * (0.5 - 0.2))


def test_the_margin_tightens_only_where_edits_take() -> None:
    bound = Constrained(margin=1e-3, least_margin=7e-4)
    assert bound.validated(0.9).margin == 1e-3
    assert bound.validated(0.91).margin == pytest.approx(8e-4)
    assert bound.validated(0.95).validated(0.95).margin == 7e-4


def test_the_rate_rises_and_falls_in_straight_lines() -> None:
    editor = KE(warm_up=4)
    assert [editor.rate_factor(step, 12) for step in range(12)] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    assert KE(warm_up=1000).rate_factor(4, 10) == 1  # half of a short training


def test_training_makes_held_out_edits_take(learned: tuple[tracer.LanguageModel, KE]) -> None:
    model, editor = learned
    _, held_out = split_by_subject(small_records(), PLAN.held_out)
    taken = []
    for one in (with_new_network(KE(**QUICK), model), editor):
        network = one.trained.network
        lesson = lesson_of(model, network, held_out, [record.rephrases[0] for record in held_out])
        taken.append(edits_take(network, lesson).double().mean().item())
    assert taken[0] < 0.1 and taken[1] > 0.6
    assert editor.trained.result.best["edits_taken"] == pytest.approx(taken[1])
    assert all(one["price"] >= 0 for one in editor.trained.result.curve if "price" in one)


def test_gradients_of_a_steps_passes_add_up_to_that_of_one_pass() -> None:
    """Of passes of 3, 3 and 2 edits: each edit counts the same."""
    plan = TrainingPlan(steps=3, batch=8, together=8, every=3, held_out=4)
    parts = dataclasses.replace(plan, together=3)
    one, other = (KE(**QUICK).fit(small_model(), small_records(28), plan=each).trained for each in (plan, parts))
    for whole, apart in zip(one.result.curve, other.result.curve, strict=True):
        assert {name: apart[name] for name in whole} == pytest.approx(whole, rel=1e-6)


def test_files_hold_the_editor_bit_for_bit(learned: tuple[tracer.LanguageModel, KE], tmp_path: Path) -> None:
    model, editor = learned
    editor.save(tmp_path / "ke.safetensors")
    again = editor_named("ke", model, checkpoint=tmp_path / "ke.safetensors")
    before = model.fingerprint()
    for one, other in zip(editor.each(model, REQUESTS), again.each(model, REQUESTS), strict=True):
        for change, same in zip(one.changes, other.changes, strict=True):
            assert torch.equal(change.out, same.out) and torch.equal(change.into, same.into)
    assert model.fingerprint() == before
    with pytest.raises(RequestError, match="a network of KE, not of MEND"):
        editor_named("mend", model, checkpoint=tmp_path / "ke.safetensors")


def test_a_training_that_was_killed_goes_on_to_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_goes_on(KE(**QUICK), tmp_path, monkeypatch)


def test_the_same_change_is_added_until_the_answer_is_said(learned: tuple[tracer.LanguageModel, KE]) -> None:
    model, trained = learned
    pair = [(REQUESTS[0].prompt, REQUESTS[0].new)]
    (single,) = trained.each(model, REQUESTS[:1])
    small = dataclasses.replace(trained, repeats=4)
    with small.apply(model, REQUESTS[:1]) as edit:
        times = len(edit.changes) // len(single.changes)
        assert 1 <= times <= 4
        assert times == 4 or target_scores(model, pair)[0].tf_exact
        for at, change in enumerate(edit.changes):
            assert torch.equal(change.out, single.changes[at % len(single.changes)].out)
    closed = with_new_network(KE(**SMALL, repeats=3, largest=0.0), model)
    with closed.apply(model, REQUESTS[:1]) as edit:  # never said
        assert len(edit.changes) == 3 * len(single.changes)
    (apart,) = small.each(model, REQUESTS[:1])
    assert apart.model is None and len(apart.changes) == times * len(single.changes)


def test_who_is_not_trained_says_how(toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(RequestError, match=r"editing train --editor ke .* KE\(\)\.fit"):
        KE().apply(toy_model, REQUESTS)
    with pytest.raises(RequestError, match="condition=0 is below 1. Write condition=1024"):
        KE(condition=0)
    for wrong, said in (
        ({"margin": 1e-6}, "Write margin=1e-3, least_margin=1e-5"),
        ({"least_margin": 0.0}, "Write least_margin=1e-05"),
        ({"warm_up": -1}, "Write warm_up=1000"),
    ):
        with pytest.raises(RequestError, match=said):
            KE(**wrong)
    with pytest.raises(RequestError, match="compare no networks"):
        KE(edit_weight=0, drift_weight=0)
    with pytest.raises(RequestError, match="edit_weight='a' is no number of 0 or more"):
        KE(edit_weight="a")  # pyright: ignore[reportArgumentType]


def test_answers_of_the_first_round_are_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(model: tracer.LanguageModel, prompts: list[str], *, new_tokens: int) -> list[str]:
        asked.extend(prompts)
        return answers(model, prompts, new_tokens=new_tokens)

    monkeypatch.setattr("editing.meta_learning.hypernetwork.answers", counted)
    records, plan = small_records(20), dataclasses.replace(PLAN, steps=6, batch=5, every=6, held_out=5)
    KE(**QUICK).fit(small_model(), records, plan=plan)
    assert sorted(asked) == sorted(record.prompt for record in records), "held-out ones too"
