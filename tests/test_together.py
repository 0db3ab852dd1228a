"""Tokens restored together, answers of several tokens, paths severed here and there: both engines agree, laws hold."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYERS, noise_of

import tracer
from tracer.metric import metric_named
from tracer.passes import Passes
from tracer.severed import Severed
from tracer.sweep import Sweep

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
