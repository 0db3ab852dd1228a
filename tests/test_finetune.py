"""Fine-tuning: the losses by whole passes, the ball, the early stop, and one matrix changed and no other."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import LAYERS, assert_same_weights, make_tokenizer, tiny_gpt2, weights
from families import FAMILIES
from test_edit import OTHER, REQUEST
from test_families import DENSE

import tracer
from editing import EditFailedError, EditingWarning, EditRequest, RequestError, load_edit
from editing.fine_tuning import many_descents
from editing.fine_tuning.descent import STOP_BELOW, batch_of
from editing.fine_tuning.ft import FT, PRESETS
from editing.fine_tuning.trained_matrix import ball_around
from editing.scoring.scores import target_scores
from tracer.errors import AnatomyError, SiteError

LONG = dataclasses.replace(REQUEST, new=" Constantinople")
# Random models do not always reach the target.
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")


@pytest.fixture
def sharp_model(toy_model: tracer.LanguageModel) -> tracer.LanguageModel:
    """A toy whose logits are large enough to be nearly sure of something."""
    toy_model.torch.transformer.ln_f.weight.data *= 5
    return toy_model


def whole_pass_nll(model: tracer.LanguageModel, request: EditRequest, loss: str) -> torch.Tensor:
    """The loss of one request by a whole forward pass of the model, nothing cached."""
    prompt, target = (model.tokenizer(text, return_tensors="pt").input_ids for text in (request.prompt, request.new))
    ids = prompt if loss == "prompt_last" else torch.cat((prompt, target[:, :-1]), dim=1)
    logits = model.torch(ids).logits[0, prompt.shape[1] - 1 :].log_softmax(-1)
    return -logits.expand(target.shape[1], -1).gather(1, target.T).mean()


@pytest.mark.parametrize("name", DENSE)
def test_the_cached_loss_and_gradient_equal_a_whole_passes(name: str) -> None:
    """Rows of different lengths: in each family the blocks above give what the whole model gives."""
    model, layer = tracer.load(FAMILIES[name].build(), tokenizer=make_tokenizer(bos=False), check=False), 1
    batch = batch_of(model, layer, [REQUEST, LONG, OTHER], "target_new")
    expected = torch.stack([whole_pass_nll(model, request, "target_new") for request in (REQUEST, LONG, OTHER)])
    weight = model.torch.get_parameter(model.anatomy.value_weight_name(layer)).requires_grad_()
    torch.testing.assert_close(batch.nll(), expected, atol=1e-6, rtol=0)
    found, slow = (torch.autograd.grad(nll.mean(), weight)[0] for nll in (batch.nll(), expected))
    assert slow.norm() > 1e-4
    torch.testing.assert_close(found, slow, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ["target_new", "prompt_last"])
def test_one_step_is_adams_step_on_the_loss(family_model: tracer.LanguageModel, loss: str) -> None:
    """Adam's first step moves each entry by the rate against the sign of its gradient."""
    name = family_model.anatomy.value_weight_name(1)
    weight = family_model.torch.get_parameter(name).requires_grad_()
    nll = torch.stack([whole_pass_nll(family_model, request, loss) for request in (LONG, OTHER)])
    (gradient,) = torch.autograd.grad(nll.mean(), weight)
    before = weight.detach().clone()
    with FT(layer=1, loss=loss, steps=1, rate=1e-3).apply(family_model, [LONG, OTHER]) as edit:
        moved = weight.detach() - before
        assert edit.diagnostics[0]["loss_before"] == pytest.approx(nll[0].item(), abs=1e-9)
    clear = gradient.abs() > 1e-5  # Adam's own 1e-8 does not show
    assert clear.double().mean() > 0.5
    torch.testing.assert_close(moved[clear], -1e-3 * gradient[clear].sign(), atol=1e-5, rtol=0)


def test_the_two_losses_differ_only_for_answers_of_several_tokens(toy_model: tracer.LanguageModel) -> None:
    one = EditRequest("The capital of France is", "France", " of")
    for request, alike in ((one, True), (LONG, False)):
        values = [batch_of(toy_model, 1, [request], loss).nll().item() for loss in ("target_new", "prompt_last")]
        assert (abs(values[0] - values[1]) < 1e-12) == alike


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_ball_holds_to_the_last_bit(tokenizer, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, radius = tracer.load(tiny_gpt2().to(dtype), tokenizer=tokenizer), 0.003
    matrix = model.anatomy.value_matrix(1)
    before = {name: value.detach().clone().double() for name, value in matrix.named_parameters()}
    with FT(layer=1, loss="prompt_last", radius=radius, rate=1e-3, steps=12).apply(model, [REQUEST]) as edit:
        moved = [(value.detach().double() - before[name]).abs().max() for name, value in matrix.named_parameters()]
        assert edit.editor["method"] == "FT-L" and edit.diagnostics[0]["clamped"] > 0
    assert 0.5 * radius < max(moved) <= radius


def test_the_ball_is_as_large_as_rounding_allows() -> None:
    value = torch.tensor([1.0, -300.0, 1e-6], dtype=torch.float32)
    low, high = ball_around(value, 0.1)
    assert ((value.double() - low.double() <= 0.1) & (high.double() - value.double() <= 0.1)).all()
    torch.testing.assert_close(high - low, torch.full((3,), 0.2), atol=1e-4, rtol=0)


def test_a_ball_of_radius_zero_changes_nothing(toy_model: tracer.LanguageModel) -> None:
    before = weights(toy_model)
    with FT(layer=1, radius=0.0, loss="prompt_last", steps=3).apply(toy_model, [REQUEST]):
        assert_same_weights(toy_model, before)


def test_only_the_weight_and_bias_of_one_value_matrix_change_and_undo_restores_them(family_model) -> None:
    before = weights(family_model)
    edit = FT(layer=2, steps=3).apply(family_model, [REQUEST, OTHER])
    changed = {name for name, value in family_model.torch.state_dict().items() if not torch.equal(value, before[name])}
    path = family_model.anatomy.value_weight_name(2).removesuffix(".weight")
    assert changed == {f"{path}.{name}" for name, _ in family_model.anatomy.value_matrix(2).named_parameters()}
    edit.undo()
    assert_same_weights(family_model, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in family_model.torch.modules())
    assert all(parameter.grad is None for parameter in family_model.torch.parameters())


def test_requests_are_learnt_together(sharp_model: tracer.LanguageModel) -> None:
    with FT(layer=3, rate=0.02).apply(sharp_model, [LONG, OTHER], seed=3) as edit:
        after = target_scores(sharp_model, [(request.prompt, request.new) for request in (LONG, OTHER)])
        assert [record["probability_written"] for record in edit.diagnostics] == [score.prob for score in after]
    for record in edit.diagnostics:
        assert record["probability_before"] < 0.1 < 0.5 < record["probability_written"]
        assert record["probability_reached"] == pytest.approx(record["probability_written"], abs=1e-9)
        assert record["loss"] < record["loss_before"] and record["steps"] <= 25


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("radius", [None, 2e-3])
def test_edits_made_side_by_side_are_those_made_alone(name: str, radius: float | None) -> None:
    model = tracer.load(FAMILIES[name].build().double(), tokenizer=make_tokenizer(bos=False), check=False)
    editor, before = FT(layer=1, radius=radius, rate=1e-3, steps=4), weights(model)
    edits = editor.each(model, [REQUEST, LONG, OTHER])
    assert_same_weights(model, before)
    for edit in edits:
        with editor.apply(model, list(edit.requests)) as alone:
            for found, expected in zip(edit.changes, alone.changes, strict=True):
                close = torch.isclose(found.values, expected.values, atol=1e-7, rtol=0)
                assert close.double().mean() > 0.999  # Adam blows rounding up where a gradient is next to nothing
            for key in ("loss_before", "loss", "probability_written"):
                assert edit.diagnostics[0][key] == pytest.approx(alone.diagnostics[0][key], abs=1e-6)
            assert edit.diagnostics[0]["steps"] == alone.diagnostics[0]["steps"] == 4
            assert edit.diagnostics[0]["clamped"] == pytest.approx(alone.diagnostics[0]["clamped"], abs=1e-3)


def test_side_by_side_each_stops_once_its_own_loss_is_small(sharp_model: tracer.LanguageModel) -> None:
    editor = FT(layer=1, rate=1e-2, steps=40)
    alone = []
    for request in (REQUEST, LONG, OTHER):
        with editor.apply(sharp_model, [request]) as edit:
            alone.append((edit.diagnostics[0]["steps"], edit.diagnostics[0]["loss"]))
    together = [edit.diagnostics[0] for edit in editor.each(sharp_model, [REQUEST, LONG, OTHER])]
    assert [record["steps"] for record in together] == [steps for steps, _ in alone]
    assert len({steps for steps, _ in alone}) > 1 and min(steps for steps, _ in alone) < 40
    assert [record["loss"] for record in together] == pytest.approx([loss for _, loss in alone], abs=1e-6)


def test_as_many_side_by_side_as_memory_allows(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    whole = FT(layer=1, steps=2).each(toy_model, [REQUEST, LONG, OTHER])
    monkeypatch.setattr(many_descents, "MOST_BYTES", 1)
    assert many_descents.most_together(toy_model, 1) == 1
    for one, other in zip(whole, FT(layer=1, steps=2).each(toy_model, [REQUEST, LONG, OTHER]), strict=True):
        assert one.diagnostics[0]["loss"] == pytest.approx(other.diagnostics[0]["loss"], abs=1e-6)


def test_batches_take_turns(toy_model: tracer.LanguageModel) -> None:
    """With one request a batch there is a step for each request and round; a single batch takes one a round."""
    steps = {}
    for size in (1, 2):
        with FT(layer=2, steps=3, batch=size).apply(toy_model, [REQUEST, OTHER]) as edit:
            steps[size] = edit.diagnostics[0]["steps"]
    assert steps == {1: 6, 2: 3}


def test_the_descent_stops_once_the_loss_is_small(sharp_model: tracer.LanguageModel) -> None:
    with FT(layer=3, rate=0.02, steps=200).apply(sharp_model, [REQUEST]) as edit:
        first = edit.diagnostics[0]
        assert first["steps"] < 200 and first["loss"] < STOP_BELOW
        again = FT(layer=3, rate=0.02).apply(sharp_model, [REQUEST])
        assert again.diagnostics[0]["steps"] == 0 and again.diagnostics[0]["relative_change"] == 0
        again.undo()


def test_no_request_is_no_change_and_the_same_request_gives_the_same_bits(toy_model: tracer.LanguageModel) -> None:
    before = toy_model.fingerprint()
    with FT(layer=1).apply(toy_model, []) as edit:
        assert toy_model.fingerprint() == before and edit.changes == ()
    prints = set()
    for _ in range(2):
        with FT(layer=1, steps=3).apply(toy_model, [REQUEST, OTHER]):
            prints.add(toy_model.fingerprint())
    assert len(prints) == 1 and before not in prints


def test_a_saved_fine_tuning_is_applied_again_bit_for_bit(toy_model: tracer.LanguageModel, tmp_path) -> None:
    with FT(layer=1, steps=3).apply(toy_model, [REQUEST]) as edit:
        edited = weights(toy_model)
        edit.save(tmp_path / "edit.safetensors")
    with load_edit(tmp_path / "edit.safetensors").apply(toy_model) as again:
        assert_same_weights(toy_model, edited)
        assert again.editor == {"method": "FT-M", **dataclasses.asdict(FT(layer=1, steps=3)), "seed": 0}


def test_a_loss_that_is_not_finite_leaves_the_model_as_it_was(toy_model: tracer.LanguageModel) -> None:
    before = toy_model.fingerprint()
    with pytest.raises(EditFailedError, match="loss became nan after 1 steps"):
        FT(layer=1, rate=1e200).apply(toy_model, [REQUEST])
    assert toy_model.fingerprint() == before and toy_model.edits == []


def test_steps_that_rounding_swallows_are_refused_and_half_lost_ones_said(tokenizer) -> None:
    torch.manual_seed(0)
    model = tracer.load(tiny_gpt2().to(torch.bfloat16), tokenizer=tokenizer)
    model.anatomy.value_matrix(1).bias.data += 1  # a bias of zero takes any step
    before = weights(model)
    with pytest.raises(EditFailedError, match="lost in bfloat16: no entry changes. Load float32"):
        FT(layer=1, rate=1e-12, steps=1).apply(model, [REQUEST])
    assert_same_weights(model, before)
    with pytest.warns(EditingWarning, match="lost by rounding"), FT(layer=1, steps=2).apply(model, [REQUEST]):
        pass


@pytest.mark.filterwarnings("error::editing.EditingWarning")
def test_an_answer_that_is_not_reached_is_said(toy_model: tracer.LanguageModel) -> None:
    with (
        pytest.warns(EditingWarning, match="1 of 1 answers stay below probability 0.5, e.g. The Space Needle -> Paris"),
        FT(layer=1, steps=1).apply(toy_model, [REQUEST]),
    ):
        pass


def test_published_settings_are_found_by_name() -> None:
    assert FT.preset("openai-community/gpt2-xl") == FT(layer=0, loss="prompt_last", radius=5e-4)
    assert FT.preset("gpt2-xl", "FT") == FT(layer=1, loss="prompt_last")
    assert FT.preset("EleutherAI/gpt-j-6B", "FT-M") == FT(layer=21)
    assert FT.preset("gpt2-xl", "FT", layer=2, steps=5) == FT(layer=2, loss="prompt_last", steps=5)
    with pytest.raises(RequestError, match="FT has no setting lyer. It has layer, loss"):
        FT.preset("gpt2-xl", lyer=2)
    with pytest.raises(RequestError, match="None is no name of a model"):
        FT.preset(None)
    for name, variants in PRESETS.items():
        assert [FT.preset(name, variant).variant for variant in variants] == list(variants)
    with pytest.raises(RequestError, match="No published settings for gpt2-xl FT-M: .*suited_to"):
        FT.preset("gpt2-xl", "FT-M")


def test_settings_are_derived_for_other_models(toy_model: tracer.LanguageModel) -> None:
    assert FT.suited_to(toy_model) == FT(layer=3 * LAYERS // 4)
    ball = FT.suited_to(toy_model, "FT-L")
    weight = toy_model.anatomy.value_matrix(0).weight
    assert ball.layer == 0 and 0 < ball.radius < 0.1 * weight.detach().std()
    assert FT.suited_to(toy_model, "FT").variant == "FT"


def test_a_change_that_may_harm_the_model_is_said(toy_model: tracer.LanguageModel) -> None:
    with (
        pytest.warns(EditingWarning, match=r"The change is \d\.\d\d of the weight's norm .* lower rate, or a radius"),
        FT(layer=1, rate=0.05, steps=60).apply(toy_model, [REQUEST]) as edit,
    ):
        assert edit.diagnostics[0]["relative_change"] > 0.5


def test_bad_settings_and_models_are_refused(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    for options, said in (
        ({"loss": "other"}, "target_new, prompt_last"),
        ({"steps": 0}, "steps=0 is below 1"),
        ({"radius": -1.0}, "no number of 0 or more. Write radius=0.0005, or None"),
        ({"rate": float("nan")}, "no number above 0"),
        ({"layer": 1.5}, "no whole number"),
        ({"rate": None}, "rate=None is no number"),
        ({"radius": "5e-4"}, "is no number"),
    ):
        with pytest.raises(RequestError, match=said):
            FT(**{"layer": 1, **options})
    monkeypatch.setattr(type(toy_model.torch), "forward", None)
    with pytest.raises(SiteError, match="has layers 0 to 3"):
        FT(layer=LAYERS).apply(toy_model, [REQUEST])
    with pytest.raises(RequestError, match="become both"):
        FT(layer=1).apply(toy_model, [REQUEST, LONG])
    for make in (FT(layer=1).apply, FT(layer=1).each):
        with pytest.raises(RequestError, match="seed=-1 is not from 0 to 4294967295"):
            make(toy_model, [REQUEST], seed=-1)
    mixture = tracer.load(FAMILIES["Mixtral"].build(), tokenizer=toy_model.tokenizer, check=False)
    with pytest.raises(AnatomyError, match="no single MLP output matrix"):
        FT(layer=1).apply(mixture, [REQUEST])
