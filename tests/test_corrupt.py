"""Corruptions do to the subject what they say, and all runs of a fact share their draws."""

from __future__ import annotations

import dataclasses
import re

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
from tracer.errors import FactError, TracerWarning
from tracer.facts import bundled
from tracer.passes import Passes
from tracer.sweep import Sweep

FACT = tracer.Fact("The Space Needle is located in the city of", "The Space Needle")
SUBJECTS = ["The Space Needle", "The Louvre", "Big Ben", "The Colosseum"]
STUDIED = [tracer.Fact(f"{subject} is located in the city of", subject) for subject in SUBJECTS]
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
    corruption = corruption.measured(toy_model, STUDIED)
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
    facts = bundled()
    subjects = [fact.subject for fact in facts]
    noise = GaussianNoise(scale=1.0, full=True).measured(toy_model, facts)
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


# Facts as published files have them: relations by identifier, prompts in words that the package does not know.
CAPITALS, ANIMALS = (
    [tracer.Fact(f"{fact.subject}, as one knows, is", fact.subject, relation=identifier) for fact in bundled(relation)]
    for relation, identifier in (("capital of a country", "P36"), ("class of an animal", "P31"))
)


def drawn_subjects(model: tracer.LanguageModel, corruption: ReplaceSubject, fact: tracer.Fact) -> set[str]:
    """The subjects whose embeddings are drawn for this fact."""
    tokenized = fact.preflight(model)
    begin, end = tokenized.subject_span
    values = corruption.drawn(model, [tokenized], 20, 1).values[0]
    known = {}
    for other in [*CAPITALS, *ANIMALS, *bundled()]:
        ids = tracer.Fact(f"{other.subject}, as one knows, is", other.subject).preflight(model).token_ids[begin:end]
        known[tuple(embeddings(model, torch.tensor(ids)).flatten().tolist())] = other.subject
    return {known[tuple(row.flatten().tolist())] for row in values}


@pytest.mark.parametrize("own", [CAPITALS, ANIMALS], ids=["P36", "P31"])
@pytest.mark.parametrize("labelled", [True, False], ids=["by identifier", "by the words of the prompt"])
def test_subjects_are_replaced_by_those_of_their_relation_among_the_facts_studied(toy_model, own, labelled) -> None:
    facts = [*CAPITALS, *ANIMALS]
    if not labelled:
        rename = {"P36": "as everyone knows, is", "P31": "as one knows, is"}
        facts = [
            dataclasses.replace(fact, prompt=f"{fact.subject}, {rename[str(fact.relation)]}", relation=None)
            for fact in facts
        ]
    fact = facts[0] if own is CAPITALS else facts[-1]
    corruption = ReplaceSubject().measured(toy_model, facts)
    subjects = {one.subject for one in own} - {fact.subject}
    drawn = drawn_subjects(toy_model, corruption, fact)
    assert len(drawn) > 1 and drawn <= subjects
    assert set(corruption.replacements(toy_model, fact.preflight(toy_model))) <= subjects


def test_where_no_subject_of_the_relation_fits_others_are_taken_with_a_warning(toy_model) -> None:
    lonely = tracer.Fact("South Korea, they say, is", "South Korea", relation="P0")
    corruption = ReplaceSubject(facts=(lonely, *ANIMALS))
    with pytest.warns(TracerWarning, match="No other subject of this relation takes the . tokens .* other relations"):
        found = corruption.replacements(toy_model, lonely.preflight(toy_model))
    assert found and set(found) <= {fact.subject for fact in ANIMALS}


def test_the_label_tells_pools_of_facts_apart_and_draws_repeat(toy_model) -> None:
    one, again, other = (ReplaceSubject(facts=tuple(facts)) for facts in (CAPITALS, list(CAPITALS), CAPITALS[1:]))
    assert one == again and one.label() == again.label() and one != other and one.label() != other.label()
    assert f"{len(CAPITALS)} facts, sha256 " in one.label()
    fact = CAPITALS[0].preflight(toy_model)
    assert torch.equal(one.drawn(toy_model, [fact], 4, 1).values, again.drawn(toy_model, [fact], 4, 1).values)
    assert not torch.equal(one.drawn(toy_model, [fact], 4, 1).values, one.drawn(toy_model, [fact], 4, 2).values)
    assert ReplaceSubject().measured(toy_model).label() == ReplaceSubject(facts=bundled()).label()
    assert one.measured(toy_model, ANIMALS) == one
    with pytest.raises(FactError, match="Write one of them"):
        ReplaceSubject(others=("France",), facts=tuple(CAPITALS))


def test_a_study_replaces_subjects_by_those_of_its_own_facts(toy_model, tmp_path) -> None:
    facts = [*CAPITALS, *ANIMALS]
    plan = tracer.Plan(kinds=("mlp",), samples=2, corruption="replace")
    study = tracer.run_study(toy_model, facts, tmp_path, plan=plan, most=3)
    own = ReplaceSubject(facts=tuple(facts))
    assert study.manifest.settings["plan"]["corruption"] == own.label()
    options = {"kinds": ("mlp",), "samples": 2, "corruption": own}
    alone = tracer.trace(toy_model, facts[2], **options)
    result = dict(study.traces())[2]
    np.testing.assert_allclose(result.corrupted_samples, alone.corrupted_samples, atol=1e-12)
    mean = tracer.average(toy_model, facts, most=3, kinds=("mlp",), samples=2, corruption="replace")
    np.testing.assert_allclose(mean.corrupted[2], alone.corrupted, atol=1e-12)


def test_corruptions_may_be_named_wherever_they_are_asked_for(toy_model) -> None:
    options = {"samples": 2, "kinds": ("mlp",)}
    named, given = (tracer.trace(toy_model, FACT, corruption=c, **options) for c in ("uniform", UniformNoise()))
    assert named.settings == given.settings
    np.testing.assert_array_equal(named.restored["mlp"], given.restored["mlp"])
    assert tracer.attribute(toy_model, FACT, corruption="zero", **options).settings.corruption == "ZeroAblation()"
    heads = tracer.trace_heads(toy_model, FACT, layers=[0], corruption="mean", samples=1)
    assert re.fullmatch(r"MeanAblation\(digest='[0-9a-f]{12}'\)", heads.settings.corruption)
    for wrong in ("gausian", 3.0, GaussianNoise):
        for call in (tracer.trace, tracer.attribute, lambda model, fact, **o: tracer.average(model, [fact], **o)):
            with pytest.raises(FactError, match="There is no corruption .*gaussian, full.*GaussianNoise"):
                call(toy_model, FACT, corruption=wrong)


def test_ablations_put_in_what_they_say(toy_model: tracer.LanguageModel) -> None:
    fact, rows = FACT.preflight(toy_model), subject_embeddings(toy_model, SUBJECTS)
    mean = MeanAblation().measured(toy_model, STUDIED).drawn(toy_model, [fact], 2, 1)
    torch.testing.assert_close(mean.values[0, 1, 0], rows.mean(0))
    drawn = ResampleAblation().measured(toy_model, STUDIED).drawn(toy_model, [fact], 4, 1).values[0]
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
