"""Primitive scores: hand arithmetic, greedy decoding, and independence of whatever is scored beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import make_tokenizer, tiny_gpt2, tiny_llama
from planted import Planted

import tracer
from editing import EditRequest
from editing.scoring.distributions import Distributions
from editing.scoring.generation import continued
from editing.scoring.scores import TargetScore, target_scores
from tracer.errors import FactError, NumericsError
from tracer.model.tokens import encode_with_target

PROMPT = "The capital of France is"
TARGETS = ("of", "Paris", "Constantinople", "the city of", "Berlin and Rome")


def test_a_score_is_the_sum_and_mean_nll_of_the_targets_own_tokens(family_model: tracer.LanguageModel) -> None:
    lengths = set()
    for target in TARGETS:
        tokenizer = family_model.tokenizer
        ids = tokenizer(f"{PROMPT} {target}", return_tensors="pt").input_ids
        n = len(tokenizer(PROMPT).input_ids)
        with torch.inference_mode():
            logits = family_model.torch(ids).logits[0, n - 1 : -1].log_softmax(-1)
        by_hand = -logits.gather(1, ids[0, n:, None])
        (score,) = target_scores(family_model, [(PROMPT, target)])
        lengths.add(len(score.target))
        assert score.nll_sum == pytest.approx(float(by_hand.sum()), abs=1e-9)
        assert score.nll == pytest.approx(float(by_hand.mean()), abs=1e-9)
        assert score.prob == pytest.approx(math.exp(-float(by_hand.mean())))
        assert score.predicted == tuple(logits.argmax(-1).tolist())
    assert {1, 3} <= lengths


def test_token_accuracy_and_agreement_by_hand() -> None:
    score = TargetScore(3.0, (5, 6, 7), (5, 9, 7))
    assert score.token_acc == pytest.approx(2 / 3) and not score.tf_exact and score.nll == 1
    assert score.agree(TargetScore(9.0, (5, 6, 7), (1, 9, 7))) == pytest.approx(2 / 3)
    assert TargetScore(1.0, (4,), (4,)).tf_exact


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama])
def test_teacher_forced_exactness_is_greedy_decoding(family, bos: bool) -> None:
    torch.manual_seed(1)
    model = tracer.load(family().double(), tokenizer=make_tokenizer(bos=bos))
    prompts = [PROMPT, "Angela Merkel speaks", "Rome is", "The mother tongue of Bach is the"]
    pairs = []
    for prompt in prompts:
        start = encode_with_target(model.tokenizer, prompt, "x")
        said = continued(model, torch.tensor([start.ids[: start.n_prompt]]), 3)[0, start.n_prompt :].tolist()
        pairs += [(prompt, model.tokenizer.decode(said[:n])) for n in (1, 2, 3)] + [(prompt, "Paris")]
    pairs = [pair for pair in pairs if pair[1].strip()]
    exact = []
    for pair, score in zip(pairs, target_scores(model, pairs), strict=True):
        encoding = encode_with_target(model.tokenizer, *pair)
        begin = torch.tensor([encoding.ids[: encoding.n_prompt]])
        greedy = continued(model, begin, len(score.target))[0, encoding.n_prompt :].tolist()
        assert score.tf_exact == (tuple(greedy) == score.target), pair
        exact.append(score.tf_exact)
    assert True in exact and False in exact


@pytest.mark.parametrize("share", [True, False])
def test_a_score_does_not_depend_on_what_is_scored_beside_it(family_model, share: bool) -> None:
    pairs = [(f"{'word ' * n}France is", target) for n in range(1, 12) for target in TARGETS]
    together = target_scores(family_model, pairs, share=share)
    backwards = target_scores(family_model, pairs[::-1], share=share)[::-1]
    alone = [target_scores(family_model, [pair])[0] for pair in pairs]
    for other in (backwards, alone):
        np.testing.assert_allclose([s.nll for s in together], [s.nll for s in other], atol=1e-9)
        assert [s.predicted for s in together] == [s.predicted for s in other]


def test_pairs_that_share_their_input_are_read_in_one_row(toy_model: tracer.LanguageModel) -> None:
    rows = []
    handle = toy_model.anatomy.blocks[0].register_forward_hook(lambda _m, inputs, _o: rows.append(len(inputs[0])))
    pairs = [(PROMPT, "of"), (PROMPT, "the"), (PROMPT, "the city of"), (PROMPT, "of")]
    try:
        target_scores(toy_model, pairs)
        target_scores(toy_model, pairs, share=False)
    finally:
        handle.remove()
    assert rows == [1, 2]  # "of" and "the" are read off the row of "the city of"; unshared both share one input still


def test_an_editor_that_acts_on_the_whole_model_is_heard(toy_model: tracer.LanguageModel) -> None:
    pairs = [(PROMPT, target) for target in TARGETS]
    plain = target_scores(toy_model, pairs)
    seen = toy_model.torch.register_forward_hook(lambda _m, _i, output: seen_calls.append(1))
    seen_calls: list[int] = []
    try:
        heard = target_scores(toy_model, pairs)
    finally:
        seen.remove()
    assert seen_calls
    np.testing.assert_allclose([s.nll for s in heard], [s.nll for s in plain], atol=1e-9)


def test_a_model_that_nnsight_has_wrapped_is_scored_as_before(toy_model: tracer.LanguageModel) -> None:
    inner = toy_model.torch.base_model
    calls: list[str] = []
    handle = inner.register_forward_hook(lambda *_: calls.append("inner"))
    own = toy_model.torch.lm_head.register_forward_hook(lambda _m, inputs, _o: calls.append(str(inputs[0].ndim)))
    pairs = [(PROMPT, target) for target in TARGETS]
    try:
        assert toy_model.nnsight is not None and "forward" in vars(toy_model.torch)
        target_scores(toy_model, pairs)
        assert set(calls) == {"inner", "2"}  # logits of the targets' positions alone
        calls.clear()
        whole = toy_model.torch.forward
        toy_model.torch.forward = lambda *args, **options: whole(*args, **options)
        target_scores(toy_model, pairs)
        assert set(calls) == {"inner", "3"}  # whoever has put that there wants to be heard
    finally:
        handle.remove()
        own.remove()


def test_only_the_most_probable_continuation_is_exact(toy_model: tracer.LanguageModel) -> None:
    assert len(toy_model.tokenizer(" of").input_ids) == 1
    with Planted({"of": 1e3}).apply(toy_model, [EditRequest("France is", "France", "of")]):
        best, other = target_scores(toy_model, [(PROMPT, "of"), (PROMPT, "the")])
    assert best.tf_exact and best.prob == pytest.approx(1)
    assert not other.tf_exact


def test_the_divergence_from_itself_is_zero_and_from_another_is_the_sum(toy_model: tracer.LanguageModel) -> None:
    pair, logs = (PROMPT, "of"), []
    kept = Distributions()
    target_scores(toy_model, [pair], visit=kept.keep)
    target_scores(toy_model, [pair], visit=lambda _pair, _place, log_probs: logs.append(log_probs))
    assert kept.divergence(pair, 0, logs[0]) == pytest.approx(0, abs=1e-12)
    other = (logs[0] * 0.5).log_softmax(-1)
    by_hand = float((logs[0].exp() * (logs[0] - other)).sum())
    assert kept.divergence(pair, 0, other) == pytest.approx(by_hand) and by_hand > 0


def test_what_does_not_fit_has_no_divergence() -> None:
    kept, row = Distributions(max_bytes=8 * 4), torch.zeros(4, dtype=torch.float64)
    kept.keep(("a", "b"), 0, row)
    kept.keep(("a", "c"), 0, row)
    assert ("a", "b") in kept and ("a", "c") not in kept
    assert math.isnan(kept.divergence(("a", "c"), 0, row))
    kept.forget()
    kept.keep(("a", "c"), 0, row)
    assert ("a", "c") in kept and ("a", "b") not in kept


def test_a_blank_target_is_refused(toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(FactError, match="no tokens"):
        target_scores(toy_model, [(PROMPT, " ")])


def test_a_model_of_nan_is_refused(toy_model: tracer.LanguageModel) -> None:
    with torch.no_grad():
        toy_model.torch.get_parameter(toy_model.anatomy.value_weight_name(0)).fill_(float("nan"))
    with pytest.raises(NumericsError):
        target_scores(toy_model, [(PROMPT, "Paris")])


def test_a_long_common_beginning_is_read_once_to_the_same_scores(family_model: tracer.LanguageModel) -> None:
    """Two groups that begin alike, one row of its own, short rows, targets that begin each other."""
    one, other = "A cat sat on the mat. " * 4, "Paris is a city in France. " * 4
    prompts = [f"{one}{PROMPT}", f"{one}The people of Spain", one + "The", f"{other}It", f"{other}{PROMPT}", PROMPT]
    pairs = [(prompt.strip(), target) for prompt in prompts for target in ("of", "a", "the city of")]
    lengths: list[int] = []
    handle = family_model.anatomy.embedding.register_forward_hook(lambda _m, args, _o: lengths.append(args[0].numel()))
    try:
        together = target_scores(family_model, pairs)
        once, lengths[:] = sum(lengths), []
        apart = target_scores(family_model, pairs, share=False)
    finally:
        handle.remove()
    assert once < 0.6 * sum(lengths)
    for (pair, score), expected in zip(zip(pairs, together, strict=True), apart, strict=True):
        assert score.nll_sum == pytest.approx(expected.nll_sum, abs=1e-9), pair
        assert score.predicted == expected.predicted
