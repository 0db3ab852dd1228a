"""Both engines reproduce the numbers of the authors' published tracer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

import tracer
from tracer.answer import probability
from tracer.corrupt import GaussianNoise
from tracer.passes import Passes
from tracer.sweep import Sweep

FOLDER = Path(__file__).parent / "reference"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tiny() -> tracer.LanguageModel:
    return tracer.load(GPT2LMHeadModel.from_pretrained(FOLDER / "tiny_gpt2"))


@pytest.fixture(scope="module")
def smollm2() -> tracer.LanguageModel:
    return tracer.load("smollm2", device="cpu")


@pytest.mark.parametrize("engine", [Passes, Sweep])
@pytest.mark.parametrize("name", ["tiny_gpt2_a", "tiny_gpt2_b"])
def test_a_tiny_gpt2_has_the_published_maps(tiny: tracer.LanguageModel, engine: type, name: str) -> None:
    assert compare(tiny, engine, name) < 1e-6


@pytest.mark.parametrize("engine", [Passes, Sweep])
@pytest.mark.parametrize("name", ["tiny_gpt2_a", "tiny_gpt2_b"])
def test_a_tiny_gpt2_has_the_published_severed_maps_with_their_two_draws(
    tiny: tracer.LanguageModel, engine: type, name: str
) -> None:
    assert compare_published_severed(tiny, engine, name) < 1e-6


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["smollm2_135m_france", "smollm2_135m_eiffel"])
def test_the_sweep_has_the_published_severed_maps_with_their_two_draws(
    smollm2: tracer.LanguageModel, name: str
) -> None:
    assert compare_published_severed(smollm2, Sweep, name) < TOLERANCE


def test_published_draws_are_an_option_of_a_trace(tiny: tracer.LanguageModel) -> None:
    reference = np.load(FOLDER / "tiny_gpt2_a.npz")
    begin, end = map(int, reference["subject_range"])
    fact = tracer.TokenizedFact(tuple(map(int, reference["token_ids"])), (begin, end))
    noise = GaussianNoise(3.0, float(reference["noise_std"]))
    options = {"kinds": ("state",), "severed": ("mlp",), "corruption": noise, "samples": int(reference["samples"])}
    result = tracer.trace(tiny, fact, published_draws=True, **options)
    own = tracer.trace(tiny, fact, **options)
    severed = result.restored["state | mlp severed"].mean(-1)
    np.testing.assert_allclose(severed, reference["scores_severed_mlp"], atol=1e-6)
    np.testing.assert_array_equal(result.restored["state"], own.restored["state"])
    assert result.settings.published_draws and not own.settings.published_draws
    assert np.abs(severed - own.restored["state | mlp severed"].mean(-1)).max() > 1e-4


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["smollm2_135m_france", "smollm2_135m_darwin", "smollm2_135m_eiffel"])
def test_the_sweep_has_the_published_maps_of_smollm2(smollm2: tracer.LanguageModel, name: str) -> None:
    assert compare(smollm2, Sweep, name) < TOLERANCE


@pytest.mark.real_model
def test_the_definition_has_the_published_cells_of_smollm2(smollm2: tracer.LanguageModel) -> None:
    reference = np.load(FOLDER / "smollm2_135m_france.npz")
    passes = engine_for(smollm2, Passes, reference)
    answer, token, layer, window = int(reference["answer_id"]), 3, 12, int(reference["window"])
    held = {
        "scores_states": passes.state(token, layer),
        "scores_mlp": passes.window("mlp", token, layer, window),
        "scores_attn": passes.window("attn", token, layer, window),
        "scores_severed_mlp_same_noise": passes.severed("mlp", token, layer),
        "scores_severed_attn_same_noise": passes.severed("attn", token, layer),
    }
    for field, sites in held.items():
        found = float(probability(passes.restored(sites), answer).mean())
        assert abs(found - reference[field][token, layer]) < TOLERANCE, field


@pytest.mark.real_model
def test_the_prompt_is_tokenised_as_published(smollm2: tracer.LanguageModel) -> None:
    for path in FOLDER.glob("smollm2*.npz"):
        reference = np.load(path)
        fact = tracer.Fact(str(reference["prompt"]), str(reference["subject"])).preflight(smollm2)
        assert list(fact.token_ids) == list(reference["token_ids"])
        assert fact.subject_span == tuple(reference["subject_range"])


def engine_for(
    model: tracer.LanguageModel, engine: type, reference: np.lib.npyio.NpzFile, *, published_draws: bool = False
) -> Passes | Sweep:
    begin, end = map(int, reference["subject_range"])
    noise, samples = GaussianNoise(3.0, float(reference["noise_std"])), int(reference["samples"])
    draws = noise.draws(samples=2 * samples, n_subject=end - begin, d_model=model.d_model, seed=1)
    ids, span = torch.tensor(reference["token_ids"])[None], (begin, end)
    if published_draws:
        return engine(model, ids, span, draws[samples:], frozen_noise=draws[:samples])
    return engine(model, ids, span, draws[:samples])


def compare(model: tracer.LanguageModel, engine: type, name: str) -> float:
    """The largest difference over every map of the file."""
    reference = np.load(FOLDER / f"{name}.npz")
    run, answer = engine_for(model, engine, reference), int(reference["answer_id"])
    tokens = list(range(len(reference["token_ids"])))
    assert int(run.clean_logits.argmax()) == answer
    worst = [
        abs(float(probability(run.clean_logits, answer)) - reference["clean_prob"]),
        abs(float(probability(run.corrupted_logits, answer).mean()) - reference["corrupted_prob"]),
    ]
    for field in reference.files:
        if not field.startswith("scores_") or field in ("scores_severed_mlp", "scores_severed_attn"):
            continue  # those hold values of another noise draw: `compare_published_severed`
        _, kind, *rest = field.split("_")
        window = int(rest[0].removeprefix("window")) if rest and rest[0].startswith("window") else 10
        if kind == "states":
            found = run.state_map(answer, tokens)
        elif kind == "severed":
            found = run.severed_map(rest[0], answer, tokens)
        else:
            found = run.window_map(kind, answer, tokens, window)
        worst.append(float(np.abs(found.mean(-1).numpy() - reference[field]).max()))
    return max(worst)


def compare_published_severed(model: tracer.LanguageModel, engine: type, name: str) -> float:
    """The largest difference over the severed maps whose two passes draw different noise."""
    reference = np.load(FOLDER / f"{name}.npz")
    run, tokens = engine_for(model, engine, reference, published_draws=True), list(range(len(reference["token_ids"])))
    worst = []
    for path in ("mlp", "attn"):
        if f"scores_severed_{path}" in reference.files:
            found = run.severed_map(path, int(reference["answer_id"]), tokens).mean(-1).numpy()
            worst.append(float(np.abs(found - reference[f"scores_severed_{path}"]).max()))
    return max(worst)
