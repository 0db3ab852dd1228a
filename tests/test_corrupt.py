"""Corruptions do to the subject what they say, and all runs of a fact share their draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import noise_of

import tracer
from tracer.corrupt import (
    Corruption,
    Draws,
    GaussianNoise,
    MeanAblation,
    ReplaceSubject,
    ResampleAblation,
    StudentNoise,
    UniformNoise,
    ZeroAblation,
    embeddings,
    subject_embeddings,
)
from tracer.errors import FactError
from tracer.passes import Passes
from tracer.sweep import Sweep

FACT = tracer.Fact("The Space Needle is located in the city of", "The Space Needle")
SUBJECTS = ["The Space Needle", "The Louvre", "Big Ben", "The Colosseum"]
EVERY = [
    GaussianNoise(),
    GaussianNoise(full=True),
    UniformNoise(),
    StudentNoise(degrees=5),
    ReplaceSubject(),
    ResampleAblation(),
    MeanAblation(),
    ZeroAblation(),
]


@pytest.mark.parametrize("corruption", EVERY, ids=lambda c: c.label())
def test_every_corruption_gives_the_definitions_numbers(
    toy_model: tracer.LanguageModel, corruption: Corruption
) -> None:
    fact = FACT.preflight(toy_model)
    corruption = corruption.measured(toy_model, SUBJECTS)
    draws = corruption.drawn(toy_model, [fact], 3, 1)
    begin, end = fact.subject_span
    assert draws.values.shape == (1, 3, end - begin, toy_model.anatomy.embedding_size)
    ids, tokens = torch.tensor([fact.token_ids]), list(range(len(fact.token_ids)))
    passes, sweep = (engine(toy_model, ids, fact.subject_span, draws) for engine in (Passes, Sweep))
    for fast, slow in (
        (sweep.state_map(5, tokens), passes.state_map(5, tokens)),
        (sweep.severed_map("mlp", 5, tokens), passes.severed_map("mlp", 5, tokens)),
    ):
        torch.testing.assert_close(fast, slow, atol=1e-9, rtol=0)
    again = corruption.drawn(toy_model, [fact], 3, 1)
    assert torch.equal(draws.values, again.values)
    result = tracer.trace(toy_model, fact, kinds=("state",), corruption=corruption, samples=3)
    np.testing.assert_allclose(result.restored["state"], sweep.state_map(result.answer_id, tokens).numpy(), atol=1e-12)
    assert result.settings.corruption == corruption.label()


@pytest.mark.parametrize("kind", [GaussianNoise, UniformNoise, StudentNoise])
def test_noises_have_the_standard_deviation_they_say(kind: type) -> None:
    options = {"degrees": 8.0} if kind is StudentNoise else {}
    drawn = kind(scale=2.0, sigma=0.5, **options).draws(samples=50, n_subject=20, d_model=200, seed=3)
    assert abs(float(drawn.std()) - 1.0) < 0.02 and abs(float(drawn.mean())) < 0.02
    if kind is UniformNoise:
        assert float(drawn.abs().max()) <= np.sqrt(3)


def test_full_covariance_noise_has_the_covariance_of_the_subjects(toy_model: tracer.LanguageModel) -> None:
    subjects = [fact.subject for fact in tracer.facts.bundled()]
    noise = GaussianNoise(scale=1.0, full=True).measured(toy_model, subjects)
    drawn = noise.draws(samples=4000, n_subject=5, d_model=toy_model.d_model, seed=0).flatten(0, 1)
    wanted = torch.cov(subject_embeddings(toy_model, subjects).T)
    assert (torch.cov(drawn.T) - wanted).norm() / wanted.norm() < 0.1
    spherical = torch.eye(len(wanted), dtype=torch.float64) * wanted.diagonal().mean()
    assert (spherical - wanted).norm() / wanted.norm() > 0.2  # so that the line above says something


def test_replacing_a_subject_by_itself_has_no_effect(toy_model: tracer.LanguageModel) -> None:
    same = ReplaceSubject(others=(FACT.subject,))
    result = tracer.trace(toy_model, FACT, severed=("mlp",), corruption=same, samples=2)
    assert result.total_effect == pytest.approx(0, abs=1e-12)
    for effect in result.indirect_effect.values():
        np.testing.assert_allclose(effect, 0, atol=1e-12)


def test_a_replaced_subject_is_the_run_of_the_other_prompt(toy_model: tracer.LanguageModel) -> None:
    fact, corruption = FACT.preflight(toy_model), ReplaceSubject()
    fitting = corruption.replacements(toy_model, fact)
    assert FACT.subject not in fitting and len(fitting) > 1
    other = next(iter(fitting))
    begin, end = fact.subject_span
    draws = ReplaceSubject(others=(other,)).drawn(toy_model, [fact], 1, 1)
    sweep = Sweep(toy_model, torch.tensor([fact.token_ids]), fact.subject_span, draws)
    ids = torch.tensor([[*fact.token_ids[:begin], *fitting[other], *fact.token_ids[end:]]])
    with torch.inference_mode():
        logits = toy_model.torch(ids).logits[0, -1]
    torch.testing.assert_close(sweep.corrupted_logits[0], logits, atol=1e-10, rtol=0)


def test_ablations_put_in_what_they_say(toy_model: tracer.LanguageModel) -> None:
    fact, rows = FACT.preflight(toy_model), subject_embeddings(toy_model, SUBJECTS)
    mean = MeanAblation().measured(toy_model, SUBJECTS).drawn(toy_model, [fact], 2, 1)
    torch.testing.assert_close(mean.values[0, 1, 0], rows.mean(0))
    drawn = ResampleAblation().measured(toy_model, SUBJECTS).drawn(toy_model, [fact], 4, 1).values[0]
    assert all(any(torch.equal(value, row) for row in rows) for value in drawn.flatten(0, 1))
    begin, end = fact.subject_span
    embedded = embeddings(toy_model, torch.tensor([[fact.token_ids]]))[:, :, begin:end]
    assert embedded.any() and not ZeroAblation().drawn(toy_model, [fact], 1, 1).onto(embedded).any()


def test_draws_are_added_or_put_in_place() -> None:
    embedded = torch.ones(1, 3, 2, 4)
    noise = noise_of(3, 2)[..., :4]
    torch.testing.assert_close(Draws.of(noise).onto(embedded), embedded + noise.float())
    torch.testing.assert_close(Draws(noise[None], replaces=True).onto(embedded)[0], noise.float())


def test_bad_corruptions_are_refused(toy_model: tracer.LanguageModel) -> None:
    fact = FACT.preflight(toy_model)
    with pytest.raises(FactError, match="No other subject takes the . tokens"):
        ReplaceSubject(others=("a much longer subject than that, with many words",)).drawn(toy_model, [fact], 1, 1)
    with pytest.raises(FactError, match="no variance"):
        StudentNoise(degrees=2)
    with pytest.raises(FactError, match="not negative"):
        UniformNoise(scale=-1)
    with pytest.raises(FactError, match="measured"):
        MeanAblation().drawn(toy_model, [fact], 1, 1)
    bare = tracer.TokenizedFact(fact.token_ids, fact.subject_span)
    with pytest.raises(FactError, match="as text"):
        ReplaceSubject().drawn(toy_model, [bare], 1, 1)
