"""`trace`, `average` and `locate`: what they return, keep, refuse and repeat."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import tracer
from tracer.corrupt import GaussianNoise, embedding_sigma
from tracer.effect import AverageTrace, Estimate, Settings, TraceResult
from tracer.errors import FactError, FileFormatError, ModelSourceError, SiteError
from tracer.fact import ROLES, TokenizedFact
from tracer.studies.averaging import average_of

FACT = tracer.Fact("The Space Needle is located in the city of", subject="The Space Needle")
OTHER = tracer.Fact("The mother tongue of Angela Merkel is", subject="Angela Merkel")


@pytest.fixture
def result(toy_model: tracer.LanguageModel) -> TraceResult:
    return tracer.trace(toy_model, FACT, severed=("mlp", "attn"), window=3, samples=3)


def test_both_engines_return_the_same_result(toy_model: tracer.LanguageModel, result: TraceResult) -> None:
    slow = tracer.trace(toy_model, FACT, severed=("mlp", "attn"), window=3, samples=3, engine="passes")
    assert list(slow.restored) == ["state", "mlp", "attn", "state | mlp severed", "state | attn severed"]
    assert slow.answer_id == result.answer_id
    np.testing.assert_allclose(slow.clean, result.clean, atol=1e-12)
    for kind, effect in result.indirect_effect.items():
        np.testing.assert_allclose(effect, slow.indirect_effect[kind], atol=1e-9, err_msg=kind)


def test_effects_are_differences_of_probability(result: TraceResult) -> None:
    assert result.total_effect == pytest.approx(result.clean - result.corrupted)
    for kind, restored in result.restored.items():
        by_hand = restored.mean(-1) - result.corrupted_samples.mean()
        np.testing.assert_allclose(result.indirect_effect[kind], by_hand)
        paired = (restored - result.corrupted_samples).std(-1, ddof=1) / np.sqrt(3)
        np.testing.assert_allclose(result.standard_error[kind], paired)


def test_the_last_state_of_the_last_token_has_the_whole_effect(result: TraceResult) -> None:
    effect = result.indirect_effect["state"]
    assert effect[-1, -1] == pytest.approx(result.total_effect)
    np.testing.assert_array_equal(effect[:-1, -1], 0)


def test_nothing_before_the_subject_has_an_effect(toy_model: tracer.LanguageModel) -> None:
    found = tracer.trace(toy_model, OTHER, severed=("mlp",), window=2, samples=2)
    begin = found.subject_span[0]
    assert begin > 0
    for kind, effect in found.indirect_effect.items():
        np.testing.assert_allclose(effect[:begin], 0, atol=1e-15, err_msg=kind)


def test_the_noise_is_the_published_draw_and_the_seed_decides(toy_model: tracer.LanguageModel) -> None:
    noise = GaussianNoise(2.0, sigma=0.5)
    draw = noise.draws(samples=4, n_subject=2, d_model=5, seed=1)
    np.testing.assert_array_equal(draw, np.random.RandomState(1).randn(4, 2, 5))
    one, other = (tracer.trace(toy_model, FACT, kinds=("state",), samples=2, seed=seed) for seed in (1, 2))
    again = tracer.trace(toy_model, FACT, kinds=("state",), samples=2, seed=1)
    np.testing.assert_array_equal(one.restored["state"], again.restored["state"])
    assert not np.allclose(one.corrupted_samples, other.corrupted_samples)


def test_sigma_is_the_standard_deviation_of_the_subjects_embeddings(toy_model: tracer.LanguageModel) -> None:
    ids = toy_model.tokenizer("France").input_ids + toy_model.tokenizer("Angela Merkel").input_ids
    by_hand = toy_model.anatomy.embedding.weight.detach()[ids].std()
    assert embedding_sigma(toy_model, ["France", "Angela Merkel"]) == pytest.approx(float(by_hand))


def test_no_noise_has_no_effect(toy_model: tracer.LanguageModel) -> None:
    found = tracer.trace(toy_model, FACT, corruption=GaussianNoise(0.0, 1.0), samples=2, severed=("attn",))
    assert found.total_effect == pytest.approx(0, abs=1e-12)
    for effect in found.indirect_effect.values():
        np.testing.assert_allclose(effect, 0, atol=1e-12)


def test_an_answer_given_is_the_one_traced(toy_model: tracer.LanguageModel) -> None:
    named = dataclasses.replace(FACT, answer="Paris")
    with torch.inference_mode():
        ids = toy_model.tokenizer(FACT.prompt, return_tensors="pt").input_ids
        probabilities = toy_model.torch(ids).logits[0, -1].softmax(-1)
    with pytest.warns(tracer.TracerWarning):
        found = tracer.trace(toy_model, named, kinds=("state",), samples=2)
    assert found.clean == pytest.approx(float(probabilities[found.answer_id]))
    assert found.answer_id == named.preflight(toy_model, warn=False).answer_id


def test_chosen_roles_are_traced_and_the_rest_is_nan(toy_model: tracer.LanguageModel, result: TraceResult) -> None:
    role = "last subject token"
    found = tracer.trace(toy_model, FACT, window=3, samples=3, roles=(role,))
    chosen = np.array([name == role for name in found.roles])
    for kind, effect in found.indirect_effect.items():
        np.testing.assert_allclose(effect[chosen], result.indirect_effect[kind][chosen], atol=1e-12)
        assert np.isnan(effect[~chosen]).all()


def test_a_saved_result_is_the_same_result(result: TraceResult, tmp_path) -> None:
    result.save(tmp_path / "trace.safetensors")
    again = TraceResult.load(tmp_path / "trace.safetensors")
    assert (again.fact, again.settings, again.answer) == (result.fact, result.settings, result.answer)
    assert list(again.restored) == list(result.restored)
    for kind, values in result.restored.items():
        np.testing.assert_array_equal(again.restored[kind], values)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.safetensors"]


def test_damaged_files_are_refused(result: TraceResult, tmp_path) -> None:
    path = tmp_path / "trace.safetensors"
    result.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        TraceResult.load(path)
    path.write_bytes(whole)
    with pytest.raises(FileFormatError, match="holds 'trace', where 'average'"):
        AverageTrace.load(path)
    with pytest.raises(FileFormatError, match="There is no file"):
        TraceResult.load(tmp_path / "absent")


def test_a_frame_has_a_row_for_every_site(result: TraceResult) -> None:
    frame = result.to_frame()
    row = frame[(frame.kind == "mlp") & (frame.layer == 2) & (frame.token == 1)]
    assert float(row.indirect_effect.iloc[0]) == result.indirect_effect["mlp"][1, 2]
    assert len(frame) == sum(values[..., 0].size for values in result.restored.values())


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"kinds": ("heads",)}, SiteError, "no kind 'heads'"),
        ({"severed": ("state",)}, SiteError, "cannot be severed"),
        ({"kinds": ()}, SiteError, "Nothing to trace"),
        ({"window": 0}, SiteError, "restores nothing"),
        ({"samples": 0}, SiteError, "draws nothing"),
        ({"engine": "fast"}, SiteError, "no engine 'fast'"),
        ({"roles": ("subject",)}, FactError, "no role 'subject'"),
        ({"samples": 2.0}, SiteError, "samples=2.0 is no whole number. Write samples=10"),
        ({"window": 2.5}, SiteError, "window=2.5 is no whole number"),
        ({"seed": True}, SiteError, "seed=True is no whole number"),
        ({"seed": -1}, SiteError, "seed=-1 is not from 0 to 4294967295"),
        ({"seed": 2**32}, SiteError, "seed=4294967296 is not"),
        ({"max_bytes": "1GB"}, SiteError, "max_bytes='1GB' is no whole number. Write max_bytes=1 << 30"),
        ({"kinds": "state"}, SiteError, r"kinds is a sequence: write kinds=\('state',\)"),
        ({"severed": "mlp"}, SiteError, r"severed is a sequence: write severed=\('mlp',\)"),
        ({"roles": "last token"}, FactError, "roles is a sequence"),
    ],
)
def test_bad_settings_are_refused_before_the_model_runs(
    toy_model: tracer.LanguageModel, options: dict, error: type, said: str, monkeypatch
) -> None:
    monkeypatch.setattr(type(toy_model.torch), "forward", None)
    with pytest.raises(error, match=said):
        tracer.trace(toy_model, FACT, **options)


def test_what_is_no_model_fact_or_trace_is_named(toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(FactError, match=r"'Paris is' is not a fact. Write tracer.Fact\(prompt"):
        tracer.trace(toy_model, "Paris is")  # pyright: ignore[reportArgumentType]
    for call in (tracer.trace, lambda model, fact: tracer.average(model, [fact])):
        with pytest.raises(ModelSourceError, match=r"A str is not an opened model. Write tracer.load"):
            call("gemma-3-270m", FACT)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FactError, match=r"average\(model, \[fact\]\)"):
        tracer.average(toy_model, FACT)  # pyright: ignore[reportArgumentType]
    for use in (tracer.locate, tracer.plot_average):
        with pytest.raises(FactError, match="study.average"):
            use(toy_model)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FactError, match="1 texts for 3 token ids"):
        TokenizedFact((1, 2, 3), (0, 1), tokens=("a",))
    with pytest.raises(FactError, match="Token id 9999999"):
        tracer.trace(toy_model, TokenizedFact((1, 2, 3), (0, 1), other_ids=(9999999,)), metric="logit_difference")


def test_an_average_leaves_out_facts_that_cannot_be_measured_and_takes_others(toy_model: tracer.LanguageModel) -> None:
    with_other = dataclasses.replace(FACT, other=" London")
    options = {"metric": "logit_difference", "window": 2, "samples": 2, "corruption": GaussianNoise(sigma=0.3)}
    average = tracer.average(toy_model, [OTHER, with_other], most=1, **options)
    assert average.prompts == (FACT.prompt,)
    assert [prompt for prompt, _ in average.skipped] == [OTHER.prompt] and "other=" in average.skipped[0][1]
    with pytest.raises(FactError, match="has no alternative answer"):
        tracer.average(toy_model, [OTHER], **options)


def test_two_means_in_one_folder_are_told_apart(toy_model: tracer.LanguageModel, tmp_path) -> None:
    options = {"corruption": "mean", "window": 2, "samples": 1, "kinds": ("mlp",)}
    tracer.average(toy_model, [FACT], folder=tmp_path, **options)
    both = tracer.average(toy_model, [FACT, OTHER], folder=tmp_path, **options)
    np.testing.assert_array_equal(both.corrupted, tracer.average(toy_model, [FACT, OTHER], **options).corrupted)
    assert len(list(tmp_path.iterdir())) == 3


def test_an_average_is_the_mean_over_facts_by_role(toy_model: tracer.LanguageModel) -> None:
    noise = GaussianNoise(sigma=0.3)
    options = {"window": 2, "samples": 2, "corruption": noise}
    average = tracer.average(toy_model, [FACT, OTHER], **options)
    traces = [tracer.trace(toy_model, fact, **options) for fact in (FACT, OTHER)]
    for row, role in enumerate(ROLES):
        of_role = [[n for n, name in enumerate(found.roles) if name == role] for found in traces]
        pairs = zip(traces, of_role, strict=True)
        means = [found.indirect_effect["mlp"][tokens].mean(0) for found, tokens in pairs if tokens]
        np.testing.assert_allclose(average.indirect_effect["mlp"][row], np.mean(means, axis=0), atol=1e-12)
        if len(means) == 2:
            error = np.std(means, axis=0, ddof=1) / np.sqrt(2)
            np.testing.assert_allclose(average.standard_error["mlp"][row], error, atol=1e-12)
    assert average.n == 2
    assert average.total_effect.mean == pytest.approx(np.mean([found.total_effect for found in traces]))


def test_facts_the_model_does_not_predict_are_listed(toy_model: tracer.LanguageModel) -> None:
    wrong = dataclasses.replace(OTHER, answer="German")
    average = tracer.average(toy_model, [FACT, wrong], kinds=("state",), samples=2)
    assert average.prompts == (FACT.prompt,)
    ((prompt, reason),) = average.skipped
    first = wrong.preflight(toy_model, warn=False).answer_tokens[0]
    assert prompt == wrong.prompt and reason.endswith(f"not {first!r}")
    with pytest.raises(FactError, match="1 facts were left out, e.g. .*the model predicts .*known_only=False"):
        tracer.average(toy_model, [wrong], kinds=("state",), samples=2)
    both = tracer.average(toy_model, [FACT, wrong], kinds=("state",), samples=2, known_only=False)
    assert both.n == 2


def test_an_interrupted_average_goes_on_and_ends_the_same(toy_model, tmp_path, monkeypatch) -> None:
    options = {"kinds": ("state",), "samples": 2}
    whole = tracer.average(toy_model, [FACT, OTHER], **options)
    traced: list[str] = []
    real = tracer.studies.batches.trace_alike

    def interrupted(model, facts, plan):
        if len(traced) == 1:
            raise KeyboardInterrupt
        traced.extend(fact.fact.prompt for fact in facts)
        return real(model, facts, plan)

    monkeypatch.setattr("tracer.studies.batches.trace_alike", interrupted)
    monkeypatch.setattr("tracer.studies.averaging.at_once", lambda *_: 1)
    with pytest.raises(KeyboardInterrupt):
        tracer.average(toy_model, [FACT, OTHER], folder=tmp_path, **options)
    assert len(list(tmp_path.iterdir())) == 1
    traced.clear()
    resumed = tracer.average(toy_model, [FACT, OTHER], folder=tmp_path, **options)
    assert traced == [OTHER.prompt]
    np.testing.assert_allclose(resumed.effects["state"], whole.effects["state"], atol=1e-12)


def test_a_folder_never_mixes_engines(toy_model: tracer.LanguageModel, tmp_path) -> None:
    options = {"kinds": ("state",), "samples": 2, "folder": tmp_path}
    assert tracer.average(toy_model, [FACT], **options).settings.engine == "sweep"
    toy_model.sweep_fault = "found at fault"
    assert tracer.average(toy_model, [FACT], **options).settings.engine == "passes"
    assert tracer.average(toy_model, [FACT], engine="passes", **options).settings.engine == "passes"
    assert len(list(tmp_path.iterdir())) == 2


def test_traces_of_different_settings_are_not_averaged(toy_model: tracer.LanguageModel) -> None:
    one, other = (tracer.trace(toy_model, FACT, kinds=("state",), samples=2, seed=seed) for seed in (1, 2))
    with pytest.raises(FactError, match="different models, noise"):
        average_of([one, other])


def planted(effects: np.ndarray) -> AverageTrace:
    """An average with given MLP effects [fact, layer] at the last subject token."""
    values = np.full((len(effects), len(ROLES), effects.shape[1]), np.nan)
    values[:, ROLES.index("last subject token")] = effects
    settings = Settings("planted", "", 3, 2, 1, "GaussianNoise()")
    clean = np.full(len(effects), 0.9)
    return AverageTrace(tuple(map(str, range(len(effects)))), (), clean, clean - 0.8, {"mlp": values}, settings)


def test_locate_finds_the_planted_layer_and_how_sure_it_is() -> None:
    clear = np.tile([0.1, 0.5, 0.2], (10, 1))
    place = tracer.locate(planted(clear))
    assert (place.kind, place.layer, place.role) == ("mlp", 1, "last subject token")
    assert place.share == {1: 1.0}
    assert place.effect == pytest.approx(0.5)
    torn = np.array([[0.9, 0.0, 0.0], [0.0, 0.0, 0.8]] * 5)
    unsure = tracer.locate(planted(torn))
    assert unsure.layer == 0 and 0.2 < unsure.share[2] < 0.8
    assert sum(unsure.share.values()) == pytest.approx(1)


def test_locate_says_which_maps_there_are() -> None:
    with pytest.raises(SiteError, match="it has mlp"):
        tracer.locate(planted(np.ones((2, 3))), kind="attn")
    with pytest.raises(SiteError, match="No fact was traced"):
        tracer.locate(planted(np.ones((2, 3))), role="last token")


def test_a_saved_average_is_the_same_average(toy_model: tracer.LanguageModel, tmp_path) -> None:
    average = tracer.average(toy_model, [FACT, OTHER], window=2, samples=2)
    average.save(tmp_path / "average.safetensors")
    again = AverageTrace.load(tmp_path / "average.safetensors")
    assert (again.prompts, again.settings, list(again.effects)) == (
        average.prompts,
        average.settings,
        list(average.effects),
    )
    np.testing.assert_array_equal(again.effects["attn"], average.effects["attn"])


def test_an_estimate_has_its_interval_by_hand() -> None:
    estimate = Estimate.of(np.array([1.0, 2.0, 3.0, np.nan]))
    assert (estimate.mean, estimate.n) == (2.0, 3)
    assert estimate.standard_error == pytest.approx(1 / np.sqrt(3))
    assert estimate.interval == pytest.approx((2 - 1.96 / np.sqrt(3), 2 + 1.96 / np.sqrt(3)))


def test_results_are_told_in_a_line(toy_model: tracer.LanguageModel) -> None:
    options = {"kinds": ("mlp",), "window": 2, "samples": 2}
    found = tracer.trace(toy_model, FACT, **options)
    average = tracer.average(toy_model, [FACT, OTHER], **options)
    heads = tracer.trace_heads(toy_model, FACT, samples=2)
    for result, said in (
        (found, FACT.prompt),
        (average, "2 facts, ATE"),
        (heads, "heads"),
        (tracer.locate(average), "AIE"),
    ):
        assert said in repr(result) and len(repr(result)) < 250
    assert f"clean {found.clean:.3f}" in repr(found) and repr(average.total_effect) == str(average.total_effect)
