"""Tokens restored together, answers of several tokens, paths severed here and there: both engines agree, laws hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import LAYERS, noise_of

import tracer
from tracer.answer import predicted_id, predicted_ids
from tracer.errors import SiteError
from tracer.metric import metric_named
from tracer.passes import Passes
from tracer.severed import Severed
from tracer.studies.averaging import usable
from tracer.sweep import Sweep

ENGINES = ("sweep", "passes")
PROMPT, ANSWER = [11, 87, 254, 33, 480, 129], (64, 300, 7)
IDS = torch.tensor([[*PROMPT, *ANSWER[:-1]]])
SPAN = (1, 3)
TOKENS = [5, (1, 2), 0, (2, 4), (1, 3, 5), (0, 1), 2, (1, 2, 3, 4, 5)]
CUTS = [
    Severed("mlp", layers=(1, 2)),
    Severed("attn", layers=[3]),
    Severed("mlp", tokens=(5,)),
    Severed("mlp", layers=(2, 3), tokens=(2, 4)),
    Severed("attn", tokens=(0, 3, 5)),
]


def both(model: tracer.LanguageModel, **options) -> tuple[Passes, Sweep]:
    passes, sweep = (engine(model, IDS, SPAN, noise_of(2, 2), **options) for engine in (Passes, Sweep))
    return passes, sweep


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_engines_agree_on_groups_whole_answers_and_cuts(family_model: tracer.LanguageModel, direction: str) -> None:
    options = {"answer_length": 3, "metric": metric_named("log_probability"), "direction": direction}
    passes, sweep = both(family_model, **options)
    maps = {
        "state": (sweep.state_map(ANSWER, TOKENS), passes.state_map(ANSWER, TOKENS)),
        "mlp": (sweep.window_map("mlp", ANSWER, TOKENS, 3), passes.window_map("mlp", ANSWER, TOKENS, 3)),
        "attn": (sweep.window_map("attn", ANSWER, TOKENS, 2), passes.window_map("attn", ANSWER, TOKENS, 2)),
        **{cut.name: (sweep.severed_map(cut, ANSWER, TOKENS), passes.severed_map(cut, ANSWER, TOKENS)) for cut in CUTS},
    }
    for name, (fast, slow) in maps.items():
        assert fast.shape == (len(TOKENS), LAYERS, 2) and slow.std() > 1e-3, name
        torch.testing.assert_close(fast, slow, atol=1e-9, rtol=0, msg=name)
    units = tracer.units.heads(family_model, [1])
    torch.testing.assert_close(sweep.unit_map(units, ANSWER, [2, 5]), passes.unit_map(units, ANSWER, [2, 5]))


def test_a_whole_answers_log_probability_is_the_sum_over_its_tokens(family_model: tracer.LanguageModel) -> None:
    with torch.inference_mode():
        steps = []
        for at, token in enumerate(ANSWER):  # one pass a token: no teacher forcing in one
            logits = family_model.torch(torch.tensor([[*PROMPT, *ANSWER[:at]]])).logits[0, -1]
            steps.append(logits.log_softmax(-1)[token])
    for name, expected in (("log_probability", sum(steps)), ("probability", sum(steps).exp())):
        for engine in both(family_model, answer_length=3, metric=metric_named(name)):
            found = (engine.batch.unrestored([ANSWER]) if isinstance(engine, Sweep) else engine.unrestored(ANSWER))[0]
            torch.testing.assert_close(found[0], expected, atol=1e-12, rtol=1e-9)


def test_restoring_all_that_differs_together_gives_the_clean_answer(family_model: tracer.LanguageModel) -> None:
    passes, sweep = both(family_model, answer_length=1)
    everything = tuple(range(SPAN[0], IDS.shape[1]))
    answer = int(sweep.clean_logits.argmax())
    clean = passes.unrestored(answer)[0].expand(LAYERS, 2)
    torch.testing.assert_close(sweep.state_map(answer, [everything])[0], clean, atol=1e-12, rtol=0)


def test_severing_layers_up_to_the_restored_one_changes_nothing(toy_model: tracer.LanguageModel) -> None:
    """They hold what they have in the corrupted run anyway."""
    passes, sweep = both(toy_model)
    for engine in (passes, sweep):
        plain, cut = engine.state_map(7, TOKENS), engine.severed_map(Severed("mlp", layers=(0, 1)), 7, TOKENS)
        torch.testing.assert_close(cut[:, 1:], plain[:, 1:], atol=1e-12, rtol=0)
        assert (cut[:, 0] - plain[:, 0]).abs().max() > 1e-6
        every = engine.severed_map(Severed("mlp", layers=range(LAYERS)), 7, TOKENS)
        torch.testing.assert_close(every, engine.severed_map("mlp", 7, TOKENS), atol=0, rtol=0)


FACT = tracer.Fact("The Space Needle is located in the city of", "The Space Needle", " Kyoto, Japan")
OTHER = tracer.Fact("The mother tongue of Angela Merkel is", subject="Angela Merkel")
OPTIONS = {"samples": 2, "window": 2}


def test_a_trace_of_groups_is_kept_tabled_and_has_a_group_of_one_tokens_effect(toy_model, tmp_path) -> None:
    last = len(OTHER.preflight(toy_model).token_ids) - 1
    groups = ("subject", (last,), "last token", (0, last))
    found = tracer.trace(toy_model, OTHER, groups=groups, severed=("mlp",), **OPTIONS)
    assert found.groups == ("subject", f"token {last}", "last token", f"tokens 0, {last}")
    for kind, effect in found.group_effect.items():
        alone = found.indirect_effect[kind][last]
        for group in (1, 2, 3):  # nothing is corrupted at token 0
            torch.testing.assert_close(torch.tensor(effect[group]), torch.tensor(alone), atol=1e-12, rtol=0)
        assert abs(effect[0] - alone).max() > 1e-6
    assert len(found.groups_to_frame()) == len(found.grouped) * 4 * LAYERS
    found.save(tmp_path / "trace.safetensors")
    kept = tracer.TraceResult.load(tmp_path / "trace.safetensors")
    assert kept.groups == found.groups and kept.groups_to_frame().equals(found.groups_to_frame())


def test_an_average_of_groups_is_the_mean_over_facts_that_have_them(toy_model, tmp_path) -> None:
    corruption, one_token = tracer.GaussianNoise(sigma=0.3), tracer.Fact("The capital of France is", "France")
    assert len(range(*one_token.preflight(toy_model).subject_span)) <= 2
    options = {**OPTIONS, "kinds": ("state",), "groups": ("subject", "middle subject tokens"), "corruption": corruption}
    average = tracer.average(toy_model, [OTHER, one_token], folder=tmp_path, **options)
    one, other = (tracer.trace(toy_model, fact, **options).group_effect["state"] for fact in (OTHER, one_token))
    expected = torch.tensor((one[0] + other[0]) / 2)
    torch.testing.assert_close(torch.tensor(average.group_effect["state"][0]), expected, atol=1e-12, rtol=0)
    frame = average.groups_to_frame().set_index(["group", "layer"])
    assert frame.n["subject", 0] == 2 and frame.n["middle subject tokens", 0] == 1
    average.save(tmp_path / "average.safetensors")
    kept = tracer.AverageTrace.load(tmp_path / "average.safetensors")
    assert kept.groups_to_frame().equals(average.groups_to_frame())


def test_a_whole_answer_is_traced_without_a_note(toy_model: tracer.LanguageModel) -> None:
    fast, slow = (tracer.trace(toy_model, FACT, whole_answer=True, engine=engine, **OPTIONS) for engine in ENGINES)
    assert (
        fast.answer == " Kyoto, Japan"
        and fast.settings.whole_answer
        and not FACT.preflight(toy_model, whole_answer=True).notes
    )
    with pytest.warns(tracer.TracerWarning, match="whole_answer=True"):
        first = tracer.trace(toy_model, FACT, **OPTIONS)
    assert 0 < fast.clean < first.clean
    for kind, values in fast.restored.items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(slow.restored[kind]), atol=1e-12, rtol=1e-9)


def test_a_fact_is_known_whole_only_if_every_token_of_its_answer_is_predicted(toy_model, monkeypatch) -> None:
    ids = FACT.preflight(toy_model, warn=False).token_ids
    each = tuple(predicted_id(toy_model, ids[:n]) for n in range(len(ids) - 2, len(ids) + 1))
    assert predicted_ids(toy_model, ids, 3) == each
    first, *_ = FACT.preflight(toy_model, warn=False).answer_ids
    monkeypatch.setattr("tracer.studies.averaging.predicted_ids", lambda _model, _ids, n, **_: (first, *[0] * (n - 1)))
    assert usable(toy_model, FACT, tracer.Plan(), True)[0] is not None
    none, reason = usable(toy_model, FACT, tracer.Plan(whole_answer=True), True)
    assert none is None and reason.endswith("not ' Kyoto, Japan'")


def test_severed_paths_are_named_read_and_resolved(toy_model: tracer.LanguageModel) -> None:
    cut = Severed.parsed("mlp:1-2@last token")
    assert cut == Severed("mlp", range(1, 3), "last token")
    assert cut.name == "state | mlp severed, layers 1-2, last token"
    assert Severed.parsed("attn").name == "state | attn severed" and Severed("attn", [3, 0, 1]).layers == (0, 1, 3)
    fast, slow = (tracer.trace(toy_model, OTHER, severed=(cut, "mlp"), engine=e, **OPTIONS) for e in ENGINES)
    assert list(fast.restored)[-2:] == [cut.name, "state | mlp severed"]
    for kind, values in fast.restored.items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(slow.restored[kind]), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"groups": "subject"}, SiteError, r"groups=\('subject',\)"),
        ({"groups": ("object",)}, SiteError, "no group 'object'. Choose from subject, first"),
        ({"groups": (3,)}, SiteError, r"3 is not a group of tokens. Write e.g. \(3, 5\)"),
        ({"groups": ((3, 99),)}, SiteError, "not 99"),
        ({"groups": ("subject", "subject")}, SiteError, "given twice"),
        ({"whole_answer": True, "metric": "rank"}, SiteError, "has no rank. Write metric='probability'"),
        ({"severed": (Severed("mlp", layers=[9]),)}, SiteError, "layers 0 to 3"),
        (
            {"severed": (Severed("mlp", tokens="middle subject tokens"),), "published_draws": True},
            SiteError,
            "without tokens",
        ),
        ({"published_draws": True, "whole_answer": True}, SiteError, "whole_answer=False"),
    ],
)
def test_bad_settings_are_refused_before_the_model_runs(toy_model, options, error, said, monkeypatch) -> None:
    monkeypatch.setattr(type(toy_model.torch), "forward", None)
    with pytest.raises(error, match=said):
        tracer.trace(toy_model, OTHER, corruption=tracer.GaussianNoise(sigma=0.3), **options)
    assert Severed("mlp", np.arange(2), np.array([3])) == Severed("mlp", (0, 1), (3,))
    assert tracer.Plan(groups=(np.array([3, 4]),)) == tracer.Plan(groups=((3, 4),))
    with pytest.raises(SiteError, match="mlp:3-7@last token"):
        Severed.parsed("mlp:3-")
