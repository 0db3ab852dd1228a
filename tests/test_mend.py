"""MEND: its network, its gradients, its training, and what an edit of it is."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tokenizer
from families import FAMILIES
from planted import RECORD, Planted, flat_records
from torch.nn import functional
from toys import gpt2
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

import tracer
from editing import (
    MEND,
    EditingWarning,
    EditRequest,
    RequestError,
    TrainingPlan,
    TrainingRecord,
    load_edit,
    plot_training,
)
from editing.cli import app
from editing.editors import editor_named
from editing.meta_learning import training
from editing.meta_learning.factors import Factors
from editing.meta_learning.learned import Learned
from editing.meta_learning.lessons import lesson_of, losses, numbers_of_step, other_words
from editing.meta_learning.matrices import feed_forward_weights, sizes
from editing.meta_learning.mend_network import MendNetwork
from editing.meta_learning.readers import training_records
from editing.meta_learning.records import split_by_subject
from editing.meta_learning.running_moments import RunningMoments
from editing.meta_learning.side_terms import SideTerm, edited
from editing.meta_learning.texts import texts_of
from editing.meta_learning.trained import Trained
from editing.training.checkpoint import EDITOR
from tracer.facts import bundled

REQUESTS = [
    EditRequest("The Louvre is in", subject="The Louvre", new=" Rome"),
    EditRequest("The mother tongue of Angela Merkel is", subject="Angela Merkel", new=" French and Italian"),
]
QUICK: dict[str, Any] = {"blocks": 1, "rank": 64, "rate": 1e-3, "step": 1e-2, "step_rate": 1e-3}
PLAN = TrainingPlan(steps=24, batch=8, together=8, every=12, held_out=24)
ANSWERS = (" France", " Germany", " Italy", " Japan")
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")  # so little training says little


def small_model() -> tracer.LanguageModel:
    """A random float64 GPT-2 of two blocks."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=600, n_positions=96, initializer_range=0.3, **ends)
    return tracer.load(GPT2LMHeadModel(config).double(), tokenizer=make_tokenizer(bos=False), check=False)


def small_records(count: int = 160) -> list[TrainingRecord]:
    """Bundled facts that are to have one of four wrong answers."""
    facts = bundled()
    return [
        TrainingRecord(
            fact.prompt,
            fact.subject,
            ANSWERS[at % 4],
            (f"Now, {fact.prompt}",),
            facts[at + 7].prompt,
            facts[at + 7].answer,
        )
        for at, fact in enumerate(facts[:count])
    ]


def with_new_network(editor: Learned, model: tracer.LanguageModel) -> Any:
    """The editor as it is before any training."""
    weights = feed_forward_weights(model, editor.blocks)
    options: dict[str, Any] = {"embedding_size": model.anatomy.embedding_size, "dtype": torch.float64, "seed": 0}
    network = editor.network(sizes(model, weights), **options).eval()
    return dataclasses.replace(editor, weights=weights, trained=Trained(network, model.fingerprint(), model.name))


def gradients(
    model: tracer.LanguageModel, requests: Sequence[EditRequest], weights: Sequence[str], *, smoothing: float = 0.0
) -> dict[str, Any]:
    """By autograd on the weights themselves: of the sum over requests of the token mean of -log p, as stored."""
    parameters = [model.torch.get_parameter(weight) for weight in weights]
    total = torch.zeros((), dtype=torch.float64)
    for request in requests:
        prompt = model.tokenizer(request.prompt).input_ids
        ids = torch.tensor([model.tokenizer(f"{request.prompt} {request.new.strip()}").input_ids])
        logits = model.torch(ids).logits[0, len(prompt) - 1 : -1]
        total = total + functional.cross_entropy(logits, ids[0, len(prompt) :], label_smoothing=smoothing)
    return dict(zip(weights, torch.autograd.grad(total, parameters), strict=True))


@pytest.fixture(scope="module")
def learned() -> tuple[tracer.LanguageModel, MEND]:
    model = small_model()
    return model, MEND(**QUICK).fit(model, small_records(), plan=PLAN)


# Conv1D; gated MLPs; an MLP that flattens rows and tokens; attention beside the MLP; two matrices in one.
@pytest.mark.parametrize(
    ("family", "matrices"), [("GPT-2", 4), ("Gemma 3", 6), ("OPT", 4), ("Falcon, multi-query", 4), ("Phi-3", 4)]
)
def test_without_norms_an_untrained_edit_is_one_gradient_step(family: str, matrices: int) -> None:
    model = tracer.load(FAMILIES[family].build(), tokenizer=make_tokenizer(bos=True), check=False)
    editor = with_new_network(MEND(blocks=2, rank=4, step=0.01, normalise=False), model)
    assert len(editor.weights) == matrices
    wanted = gradients(model, REQUESTS, editor.weights)
    before = {weight: model.torch.get_parameter(weight).detach().clone() for weight in editor.weights}
    with editor.apply(model, REQUESTS):
        for weight, old in before.items():
            bound = 1e-12 * max(1.0, wanted[weight].abs().max().item())
            torch.testing.assert_close(
                model.torch.get_parameter(weight), old - 0.01 * wanted[weight], rtol=0, atol=bound
            )
    for weight, old in before.items():
        assert torch.equal(model.torch.get_parameter(weight), old), weight


def test_a_mixture_has_no_matrices_to_edit() -> None:
    model = tracer.load(FAMILIES["Mixtral"].build(), tokenizer=make_tokenizer(bos=True), check=False)
    with pytest.raises(tracer.AnatomyError, match="edit a model with dense MLPs"):
        feed_forward_weights(model, 2)


def test_in_16_bits_the_network_works_in_32(toy_model: tracer.LanguageModel) -> None:
    model = tracer.load(toy_model.torch.bfloat16(), tokenizer=toy_model.tokenizer, check=False)
    trained = MEND(**QUICK).fit(model, small_records(12), plan=TrainingPlan(steps=2, batch=3, every=1, held_out=3))
    assert {parameter.dtype for parameter in trained.trained.network.parameters()} == {torch.float32}
    before = model.fingerprint()
    with trained.apply(model, REQUESTS) as edit:
        assert edit.diagnostics[0]["probability_written"] != edit.diagnostics[0]["probability_before"]
    assert model.fingerprint() == before


def test_the_mean_over_tokens_is_the_gradient_of_the_mean_over_tokens(toy_model: tracer.LanguageModel) -> None:
    editor = with_new_network(MEND(blocks=1, rank=4, step=0.01, normalise=False, reduction="mean"), toy_model)
    lengths = [len(toy_model.tokenizer(request.new).input_ids) for request in REQUESTS]
    assert lengths[0] != lengths[1]
    each = [gradients(toy_model, [request], editor.weights) for request in REQUESTS]
    with editor.apply(toy_model, REQUESTS) as edit:
        for change in edit.changes:
            mean = sum(n * one[change.weight] for n, one in zip(lengths, each, strict=True)) / sum(lengths)
            torch.testing.assert_close((change.out @ change.into.T).T, -0.01 * mean, rtol=0, atol=1e-12)


def test_a_new_network_returns_the_normalised_factors_as_they_are() -> None:
    sides = {"a.weight": (5, 3), "b.weight": (5, 3), "c.weight": (3, 5)}
    network = MEND(rank=4).network(sides, embedding_size=0, dtype=torch.float64, seed=0)
    generator = torch.Generator().manual_seed(1)
    for transform, (n, m) in zip(network.transforms, network.groups, strict=True):
        parts = [torch.randn(6, width, generator=generator, dtype=torch.float64) for width in (n, m)]
        transform.see(*parts)
        for number in range(2 if n == 5 else 1):
            for same, part in zip(transform(*parts, number, normalise=False), parts, strict=True):
                assert torch.equal(same, part)
            for made, part in zip(transform(*parts, number, normalise=True), parts, strict=True):
                torch.testing.assert_close(made, (part - part.mean(0)) / (part.std(0) + 1e-7))


def test_a_step_of_zero_leaves_every_logit_as_it_was(toy_model: tracer.LanguageModel) -> None:
    ids = torch.tensor([[5, 9, 100, 7]])
    before = toy_model.torch(ids).logits
    with with_new_network(MEND(step=0.0, normalise=False, rank=4), toy_model).apply(toy_model, REQUESTS) as edit:
        assert torch.equal(toy_model.torch(ids).logits, before)
        assert edit.diagnostics[0]["update_norm"] == 0


def test_statistics_equal_two_passes_however_rows_are_cut() -> None:
    rows = 1e3 + torch.randn(57, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for cuts in ((57,), (1, 1, 55), (20, 30, 7)):
        moments = RunningMoments(4)
        for part in rows.split(cuts):
            moments.update(part)
        moments.update(rows[:0])
        torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-13, atol=0)
        torch.testing.assert_close(moments.deviation, rows.std(0), rtol=1e-11, atol=0)
    with pytest.raises(RequestError, match="fewer than two"):
        _ = RunningMoments(4).deviation


def test_an_entry_in_which_no_rows_have_differed_is_no_measure() -> None:
    """A neuron that was never on in training, and is in an edit."""
    moments = RunningMoments(2)
    moments.update(torch.tensor([[0.0, 1.0], [0.0, 3.0]], dtype=torch.float64))
    found = moments.normalised(torch.tensor([[0.5, 4.0]], dtype=torch.float64))
    assert found[0, 0] == 0
    assert found[0, 1].item() == pytest.approx((4 - 2) / (2**0.5 + 1e-7), rel=1e-14)


def test_a_pass_that_is_not_finite_is_skipped_and_spoils_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    real, n_passes = MendNetwork.terms, [0]

    def terms(network: MendNetwork, model: tracer.LanguageModel, factors: Any, asked: Any) -> Any:
        n_passes[0] += network.training
        if network.training and n_passes[0] == 2:
            factors = {name: Factors(one.inputs, one.deltas * torch.inf) for name, one in factors.items()}
        return real(network, model, factors, asked)

    monkeypatch.setattr(MendNetwork, "terms", terms)
    plan = TrainingPlan(steps=3, batch=4, together=4, every=1, held_out=6)
    trained = MEND(**QUICK).fit(small_model(), small_records(20), plan=plan).trained
    steps = [one["loss"] for one in trained.result.curve if "validation" not in one]
    assert trained.result.skipped == 1 and [math.isfinite(loss) for loss in steps] == [True, False, True]
    assert all(math.isfinite(one["loss"]) for one in trained.result.curve if "validation" in one)
    assert all(tensor.isfinite().all() for tensor in trained.network.state_dict().values())


def test_only_training_changes_the_statistics(learned: tuple[tracer.LanguageModel, MEND]) -> None:
    model, editor = learned
    network = editor.trained.network
    counts = [transform.inputs.count.clone() for transform in network.transforms]
    editor.each(model, REQUESTS)
    assert [transform.inputs.count for transform in network.transforms] == counts
    # In the last MLP only the token that predicts the answer, here one, can change the loss.
    assert counts == [8 * editor.trained.result.best["step"]] * 2


def test_the_first_gradient_reaches_the_widening_matrices() -> None:
    model = small_model()
    network = with_new_network(MEND(**QUICK), model).trained.network.train()
    records = small_records(4)
    found = losses(network, lesson_of(model, network, records, [record.prompt for record in records]))
    (found.edit.mean() + found.drift.mean()).backward()
    for transform in network.transforms:
        for layer in transform.layers:
            assert layer.widen.grad.abs().max() > 0


def test_losses_are_scaled_where_the_model_is_and_in_its_type(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    editor = with_new_network(MEND(blocks=1, normalise=False), toy_model)
    seen, real = [], type(editor.trained.network).proposed

    def watched(network, texts, asked, scale):
        seen.append(scale)
        return real(network, texts, asked, scale)

    monkeypatch.setattr(type(editor.trained.network), "proposed", watched)
    editor.each(toy_model, REQUESTS)
    (scale,) = seen
    assert scale.device == toy_model.device


def test_what_other_editors_take_and_refuse_it_does_too(learned: tuple[tracer.LanguageModel, MEND]) -> None:
    model, editor = learned
    with pytest.raises(RequestError, match="seed='abc' is no whole number"):
        editor.apply(model, REQUESTS, seed="abc")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match="seed=-1 is not from 0"):
        MEND().fit(model, small_records(4), seed=-1)
    with pytest.warns(EditingWarning, match="2 of 2 answers stay below probability 0.5.*Train longer"):
        edit = editor.apply(model, iter(REQUESTS))  # pyright: ignore[reportArgumentType]
    assert [record["rounds"] for record in edit.diagnostics] == [1, 1]
    edit.undo()
    twice = [REQUESTS[0], dataclasses.replace(REQUESTS[0], new=" Paris")]
    assert len(editor.each(model, twice)) == 2
    with pytest.raises(RequestError, match="blocks='2' is no whole number"):
        MEND(blocks="2")  # pyright: ignore[reportArgumentType]


def test_an_edit_of_several_is_the_sum_of_single_edits(learned: tuple[tracer.LanguageModel, MEND]) -> None:
    """The shorter request is padded in the batch and not alone, so padding counts for nothing."""
    model, trained = learned
    plain = with_new_network(MEND(blocks=1, normalise=False), model)
    for editor in (trained, plain):
        single = [editor.each(model, [request])[0] for request in REQUESTS]
        with editor.apply(model, REQUESTS) as together:
            pass
        for at, change in enumerate(together.changes):
            alone = sum(edit.changes[at].out @ edit.changes[at].into.T for edit in single)
            torch.testing.assert_close(change.out @ change.into.T, alone, rtol=0, atol=1e-12)


def test_a_sum_of_many_requests_is_no_wider_than_the_matrix(toy_model: tracer.LanguageModel) -> None:
    editor = with_new_network(MEND(blocks=1, normalise=False, step=0.01), toy_model)
    requests = [EditRequest(fact.prompt, fact.subject, " Rome") for fact in bundled()[:24]]
    wanted = gradients(toy_model, requests, editor.weights)
    with editor.apply(toy_model, requests) as edit:
        for change in edit.changes:
            assert change.into.shape[1] <= len(change.into)
            torch.testing.assert_close((change.out @ change.into.T).T, -0.01 * wanted[change.weight], rtol=0, atol=1e-9)


def test_side_terms_of_each_row_equal_the_edited_weights(family_model: tracer.LanguageModel) -> None:
    editor = with_new_network(MEND(blocks=2, rank=4, step=0.05, normalise=False), family_model)
    pairs = [(request.prompt, request.new) for request in REQUESTS]
    network = editor.trained.network
    texts = texts_of(family_model, 2, pairs)
    with edited(network.matrices(family_model), network.proposed(texts, network.asked(family_model, pairs))):
        beside = texts.scores()[0].tolist()
    for row, edit in enumerate(editor.each(family_model, REQUESTS)):
        with edit.apply(family_model):
            inside = texts_of(family_model, 2, pairs[row : row + 1]).scores()[0].item()
        assert inside == pytest.approx(beside[row], abs=1e-9)


def test_nothing_drifts_where_nothing_changes_and_the_drift_is_the_divergence() -> None:
    model = small_model()
    (weight, *_), pair = feed_forward_weights(model, 1), ("The Louvre is in", " Rome")
    n, m = sizes(model, [weight])[weight]
    module = {weight: model.torch.get_submodule(weight.removesuffix(".weight"))}
    texts = texts_of(model, 1, [pair]).kept()
    ids = torch.tensor([model.tokenizer("The Louvre is in Rome").input_ids[:-1]])
    before = model.torch(ids).logits.log_softmax(-1)
    for scale in (0.0, 0.3):
        term = SideTerm(torch.full((1, 1, m), scale).double(), torch.linspace(-1, 2, n).double()[None, None])
        with edited(module, {weight: term}):
            drift, after = texts.drift().item(), model.torch(ids).logits.log_softmax(-1)
        wanted = (before.exp() * (before - after)).sum(-1).mean().item()
        assert drift == pytest.approx(wanted, abs=1e-12)
        assert (drift > 1e-3) == (scale > 0)


def test_training_teaches_edits_that_are_more_local_than_gradient_steps(
    learned: tuple[tracer.LanguageModel, MEND],
) -> None:
    model, editor = learned
    _, held_out = split_by_subject(small_records(), PLAN.held_out)
    lesson = lesson_of(model, editor.trained.network, held_out, [record.rephrases[0] for record in held_out])
    plain = with_new_network(MEND(blocks=1, normalise=False), model).trained.network
    low, high = 0.01, 1.0  # the step at which plain gradients do as well on other words lies between
    with torch.no_grad():
        best = losses(editor.trained.network, lesson)
        for _ in range(12):
            plain.steps.fill_((low * high) ** 0.5)
            found = losses(plain, lesson)
            worse = found.edit.mean() > best.edit.mean()
            low, high = ((low * high) ** 0.5, high) if worse else (low, (low * high) ** 0.5)
    assert found.edit.mean().item() == pytest.approx(best.edit.mean().item(), rel=0.01)
    assert best.drift.mean() < 0.7 * found.drift.mean()
    first, last = ([one for one in editor.trained.result.curve if "validation" not in one][at] for at in (0, -1))
    assert last["edit_loss"] < first["edit_loss"] - 1
    assert best.taken.double().mean() > 0.1


def test_files_hold_the_editor_bit_for_bit(learned: tuple[tracer.LanguageModel, MEND], tmp_path: Path) -> None:
    model, editor = learned
    editor.save(tmp_path / "mend.safetensors")
    again = editor_named("mend", model, checkpoint=str(tmp_path / "mend.safetensors"))
    before = model.fingerprint()
    with editor.apply(model, REQUESTS) as edit:
        edit.save(tmp_path / "edit.safetensors")
    assert model.fingerprint() == before
    with again.apply(model, REQUESTS) as same:
        assert same.editor == edit.editor
        for one, other in zip(edit.changes, same.changes, strict=True):
            assert torch.equal(one.out, other.out) and torch.equal(one.into, other.into)
    with load_edit(tmp_path / "edit.safetensors").apply(model) as read:
        for one, other in zip(edit.changes, read.changes, strict=True):
            assert torch.equal(one.out, other.out) and torch.equal(one.into, other.into)
        assert model.fingerprint() != before
    assert model.fingerprint() == before


class Killed(Exception):
    """What ends a training from outside."""


def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = training._step, [0]

    def step(*arguments: Any) -> Any:
        if count[0] == steps:
            raise Killed
        count[0] += 1
        return real(*arguments)

    monkeypatch.setattr(training, "_step", step)


def check_goes_on(editor: Learned, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that is killed twice ends as one that is not: network, curve, best."""
    model, records = small_model(), small_records(40)
    plan = TrainingPlan(steps=6, batch=5, together=3, every=2, held_out=8)
    whole = editor.fit(model, records, plan=plan, folder=folder / "whole", seed=3)
    for steps in (3, 2):  # dies between checkpoints, and right after one
        with monkeypatch.context() as patched:
            killed_after(steps, patched)
            with pytest.raises(Killed):
                editor.fit(model, records, plan=plan, folder=folder / "cut", seed=3)
    cut = editor.fit(model, records, plan=plan, folder=folder / "cut", seed=3)
    assert str(cut.trained) == str(whole.trained)
    assert cut.trained.result.curve == whole.trained.result.curve
    assert cut.trained.result.steps == 6
    read = type(editor).load(folder / "cut")
    assert str(read.trained) == str(whole.trained)
    (folder / "cut" / EDITOR).unlink()
    editor.fit(model, records, plan=plan, folder=folder / "cut", seed=3)
    assert (folder / "cut" / EDITOR).read_bytes() == (folder / "whole" / EDITOR).read_bytes()
    with pytest.raises(RequestError, match=r"another training \(seed: 3 there, 4 now"):
        editor.fit(model, records, plan=plan, folder=folder / "cut", seed=4)


def test_a_training_that_was_killed_goes_on_to_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_goes_on(MEND(**QUICK), tmp_path, monkeypatch)


def test_training_ends_when_validations_get_no_better() -> None:
    plan = TrainingPlan(steps=20, batch=2, every=1, patience=2, held_out=4)
    frozen = MEND(blocks=1, rank=2, normalise=False, rate=1e-300, step_rate=1e-300)  # cannot change
    result = frozen.fit(small_model(), small_records(20), plan=plan).trained.result
    assert (result.steps, result.early, result.best["step"]) == (3, True, 1)


def test_every_record_is_seen_once_a_round() -> None:
    drawn = [pair for step in range(5) for pair in numbers_of_step(step, n=7, batch=4, seed=1)]
    for turn in range(2):
        assert sorted(number for number, of in drawn if of == turn) == list(range(7))
    assert [number for number, turn in drawn if turn == 0] != [number for number, turn in drawn if turn == 1]


def test_success_is_measured_on_any_rephrase_or_as_often_as_asked_on_the_edited_prompt_itself() -> None:
    record = dataclasses.replace(small_records(1)[0], rephrases=("a", "b", "c"))
    for own in (0.0, 0.5, 1.0):
        places = [(number, turn) for number in range(100) for turn in range(2)]
        drawn = [other_words(record, own, seed=0, number=number, turn=turn) for number, turn in places]
        assert drawn == [other_words(record, own, seed=0, number=number, turn=turn) for number, turn in places]
        share = drawn.count(record.prompt) / len(drawn)
        assert share == pytest.approx(own, abs=0.1) and (share == own or own == 0.5)
        assert set(drawn) - {record.prompt} == (set(record.rephrases) if own < 1 else set())


def test_training_and_validation_share_no_subject() -> None:
    records = [record for record in small_records(12) for _ in range(3)]
    kept, others = split_by_subject(records, 4)
    assert not {record.subject for record in kept} & {record.subject for record in others}
    assert len(kept) + len(others) == 36 and len(others) == 6
    with pytest.raises(RequestError, match="cannot be split"):
        split_by_subject(records[:3], 2)
    with pytest.raises(RequestError, match="1 subjects are both trained and validated on"):
        MEND().fit(small_model(), records[:3], held_out=records[2:6])


def test_readers_leave_out_what_is_scored_later(tmp_path: Path) -> None:
    other = json.loads(json.dumps(RECORD).replace("Angela Merkel", "Marie Curie")) | {"case_id": 4}
    (tmp_path / "all.json").write_text(json.dumps([RECORD, other]))
    (tmp_path / "scored.json").write_text(json.dumps([RECORD]))
    (found,) = training_records(tmp_path / "all.json", without=[tmp_path / "scored.json"])
    assert found == TrainingRecord(
        "The mother tongue of Marie Curie is",
        "Marie Curie",
        "French",
        ("Marie Curie speaks", "At home Marie Curie spoke"),
        "The mother tongue of Johann Sebastian Bach is",
        "German",
    )
    with pytest.raises(RequestError, match="no record to train on"):
        training_records(tmp_path / "scored.json", without=[tmp_path / "all.json"])


def test_who_is_not_trained_says_how(toy_model: tracer.LanguageModel) -> None:
    for make in (lambda: MEND().apply(toy_model, REQUESTS), lambda: editor_named("mend", toy_model)):
        with pytest.raises(RequestError, match=r"editing train --editor mend .* --set checkpoint=FOLDER"):
            make()


def test_other_weights_are_refused_or_noted(learned: tuple[tracer.LanguageModel, MEND]) -> None:
    _, editor = learned
    narrow = tracer.load(gpt2(2), tokenizer=make_tokenizer(bos=False), check=False)
    with pytest.raises(ValueError, match=r"the editing network was trained for \(32, 128\)"):
        editor.apply(narrow, REQUESTS)
    other = small_model()
    with torch.no_grad():
        other.anatomy.blocks[0].mlp.c_fc.weight += 0.1
    with pytest.warns(UserWarning, match="trained on other weights"):
        editor.each(other, REQUESTS[:1])
    with Planted().apply(other, REQUESTS[:1]), pytest.warns(UserWarning, match="trained on other weights"):
        editor.each(other, REQUESTS[:1])


def test_on_weights_edited_since_the_training_nothing_is_noted(learned: tuple[tracer.LanguageModel, MEND]) -> None:
    model, editor = learned
    with Planted().apply(model, REQUESTS[:1]), editor.apply(model, REQUESTS[:1]), warnings.catch_warnings():
        warnings.simplefilter("error")
        editor.each(model, REQUESTS[:1])


def test_what_a_network_was_trained_with_cannot_be_set_any_more(
    learned: tuple[tracer.LanguageModel, MEND], tmp_path: Path
) -> None:
    model, editor = learned
    editor.save(tmp_path / "mend.safetensors")
    given = {"checkpoint": str(tmp_path / "mend.safetensors")}
    with pytest.raises(RequestError, match=r"was trained with blocks=1, rank=64\. .* can be set now: reduction"):
        editor_named("mend", model, **given, rank=5, blocks=2, step=QUICK["step"])
    assert editor_named("mend", model, **given, reduction="mean", rank=64).reduction == "mean"


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("transformer.h.1.mlp.c_fc.weight", r"Write weights=\('transformer"),
        (("transformer.h.1.mlp.c_fc.bias",), "is the bias of a Conv1D"),
        (("transformer.h.1.ln_1.weight",), "is the weight of a LayerNorm"),
        (("transformer.wte.weight",), "is in no block"),
        (("transformer.h.1.mlp.c.weight",), "has no weight"),
    ],
)
def test_weights_that_are_no_matrices_are_refused_before_training(weights: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MEND(weights=weights).fit(small_model(), small_records(12), plan=TrainingPlan(steps=1, held_out=3))


def test_the_command_trains_and_its_folder_is_an_editor(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "flat.json").write_text(json.dumps(flat_records(12)))
    sizes_of = ["--steps", "2", "--batch", "2", "--every", "1", "--held-out", "3", "--blocks", "1"]
    command = ["train", "--data", str(tmp_path / "flat.json"), "--out", str(tmp_path / "out"), *sizes_of, "--json"]
    ran = CliRunner().invoke(app, [*command, "--model", str(model_folder)])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["steps"] == 2 and found["seconds"] > 0 and found["peak_bytes"] > 2**20
    assert (tmp_path / "out" / "training.png").stat().st_size > 1000
    model = tracer.load(model_folder)
    with editor_named("mend", model, checkpoint=str(tmp_path / "out")).apply(model, REQUESTS[:1]) as edit:
        assert len(edit.changes) == 2
    ran = CliRunner().invoke(app, [*command, "--editor", "rome"])
    assert ran.exit_code == 2 and "Choose from mend, ke" in ran.output


def test_the_figure_shows_the_curve(learned: tuple[tracer.LanguageModel, MEND]) -> None:
    result = learned[1].trained.result
    figure = plot_training(result)
    figure.canvas.draw()
    losses_axes = figure.axes[0]
    labels = [label.get_text() for each in figure.axes[:2] for label in each.get_yticklabels(which="both")]
    assert any(labels) and not any("$" in label for label in labels)
    thin, dots = (line.get_ydata().tolist() for line in losses_axes.lines[:2])
    assert thin == [one["edit_loss"] for one in result.curve if not one.get("validation")] and len(thin) == 24
    assert dots == [one["edit_loss"] for one in result.curve if one.get("validation")] and len(dots) == 2
