"""The collapse alarm: perplexity by hand, silent without an edit, loud when the model is ruined."""

from __future__ import annotations

import math

import pytest
import torch
from planted import Planted, simple_cases

import tracer
from editing import EditingWarning, RequestError
from editing.metrics.alarms import PASSAGES, CollapseAlarm

TEXT = ("France is a country and Rome is a city.", "She speaks French at home.")


def test_perplexity_by_hand(family_model: tracer.LanguageModel) -> None:
    nll, tokens = 0.0, 0
    for passage in TEXT:
        ids = family_model.tokenizer(passage, return_tensors="pt").input_ids
        first = len(family_model.tokenizer(passage.split()[0]).input_ids)
        with torch.inference_mode():
            logits = family_model.torch(ids).logits[0, first - 1 : -1].log_softmax(-1)
        nll -= float(logits.gather(1, ids[0, first:, None]).sum())
        tokens += ids.shape[1] - first
    assert CollapseAlarm(family_model, passages=TEXT).perplexity == pytest.approx(math.exp(nll / tokens))


def test_it_is_silent_without_an_edit(toy_model: tracer.LanguageModel) -> None:
    found = CollapseAlarm(toy_model).read()
    assert (found.ratio, found.collapsed) == (pytest.approx(1), False)
    assert found.kl == pytest.approx(0, abs=1e-12)


def test_it_warns_when_perplexity_grows_beyond_the_factor(toy_model: tracer.LanguageModel) -> None:
    alarm = CollapseAlarm(toy_model, passages=TEXT, factor=1.5)
    with Planted({"French": 50.0}).apply(toy_model, [simple_cases(1)[0].request]):
        with pytest.warns(EditingWarning, match="times what it was"):
            found = alarm.read()
        assert found.collapsed and found.ratio > 1.5 and found.kl > 0
        assert not CollapseAlarm(toy_model, passages=TEXT).read().collapsed  # set now, it compares with now
    assert not alarm.read().collapsed


def test_a_model_of_nan_has_collapsed(toy_model: tracer.LanguageModel) -> None:
    alarm = CollapseAlarm(toy_model, passages=TEXT)
    with torch.no_grad():
        toy_model.torch.get_parameter(toy_model.anatomy.value_weight_name(1)).fill_(float("nan"))
    found = alarm.read(warn=False)
    assert found.collapsed and found.perplexity == math.inf and math.isnan(found.kl)


def test_the_bundled_text_is_ordinary_sentences_that_fit_a_small_context(toy_model: tracer.LanguageModel) -> None:
    assert len(PASSAGES) == len(set(PASSAGES))
    assert all(passage[0].isupper() and passage.endswith(".") for passage in PASSAGES)
    assert max(len(toy_model.tokenizer(passage).input_ids) for passage in PASSAGES) <= toy_model.context_length


@pytest.mark.parametrize(
    ("options", "said"), [({"factor": 1.0}, "always|without any edit"), ({"passages": ("One",)}, "one word")]
)
def test_an_alarm_that_means_nothing_is_refused(toy_model: tracer.LanguageModel, options: dict, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        CollapseAlarm(toy_model, **options)
