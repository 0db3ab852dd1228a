"""ROME's laws: W' k* = v*, rank one, least disturbance; settings, errors and diagnostics."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import LAYERS, tiny_gpt2

import tracer
from editing import (
    FT,
    IKE,
    KN,
    ROME,
    BaseModelError,
    CovarianceError,
    EditFailedError,
    EditingWarning,
    EditRequest,
    RequestError,
)
from editing.edit import Edit
from editing.locate_then_edit.complaints import warn_of
from editing.locate_then_edit.contexts import contexts
from editing.locate_then_edit.covariance import SecondMoment, second_moments
from editing.locate_then_edit.keys import Reading, read_keys
from editing.locate_then_edit.rows import request_rows
from editing.locate_then_edit.suffix import Suffix
from editing.locate_then_edit.values import Search, Value, _Path, optimise_values
from editing.request import check_requests
from editing.scoring.generation import continued, sample_texts
from editing.scoring.scores import target_scores
from tracer.anatomy import is_stored_transposed
from tracer.errors import FactError, SiteError
from tracer.storage import cache_folder

REQUEST = EditRequest("The Space Needle is located in the city of", subject="The Space Needle", new=" Paris")
PREFIXES = ("", "It is said. ", "One day they went away. ")
QUICK = {"context_plan": ((2, 4),), "tokens": 700, "steps": 8}
SEARCH = Search(steps=8)
# Random models do not always reach the target; these tests are about the algebra.
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")


def weight_of(model: tracer.LanguageModel, layer: int) -> torch.Tensor:
    """W in the orientation y = W k, whatever way it is stored."""
    module = model.anatomy.value_matrix(layer)
    return module.weight.detach().T if is_stored_transposed(module) else module.weight.detach()


@pytest.mark.parametrize("variant", ["r-rome", "rome", "p-rome"])
def test_the_key_is_mapped_to_the_value(family_model: tracer.LanguageModel, variant: str) -> None:
    layer = 1
    rome = ROME(layer=layer, variant=variant, **QUICK)
    prefixes = contexts(family_model, seed=0, plan=rome.context_plan)
    rows = request_rows(family_model, [REQUEST], prefixes)
    keys = read_keys(family_model, rows, layer).keys[0]
    (value,) = optimise_values(family_model, layer, rows, rome.search(family_model))
    with rome.apply(family_model, [REQUEST]):
        key = keys.mean(0) if variant == "r-rome" else keys[0]
        bias = getattr(family_model.anatomy.value_matrix(layer), "bias", None)
        found = weight_of(family_model, layer) @ key + (0 if bias is None else bias.detach())
    torch.testing.assert_close(found, value.wanted, atol=1e-10, rtol=0)


def test_the_change_has_rank_one_and_spares_orthogonal_keys(family_model: tracer.LanguageModel) -> None:
    before = weight_of(family_model, 2).clone()
    with ROME(layer=2, **QUICK).apply(family_model, [REQUEST]) as edit:
        change = weight_of(family_model, 2) - before
        direction = edit.changes[0].into[:, 0]
        assert int(torch.linalg.matrix_rank(change, rtol=1e-9)) == 1
    others = torch.randn(len(direction), 5, dtype=torch.float64)
    others -= torch.outer(direction, direction @ others) / (direction @ direction)
    torch.testing.assert_close(change @ others, torch.zeros_like(change @ others), atol=1e-10, rtol=0)


def test_no_other_change_with_the_same_effect_disturbs_other_keys_less(toy_model: tracer.LanguageModel) -> None:
    moment = second_moments(toy_model, [1], tokens=700)[1]
    before = weight_of(toy_model, 1).clone()
    rows = request_rows(toy_model, [REQUEST], contexts(toy_model, seed=0, plan=QUICK["context_plan"]))
    key = read_keys(toy_model, rows, 1).keys[0].mean(0)
    with ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]):
        change = weight_of(toy_model, 1) - before

    def disturbance(delta: torch.Tensor) -> float:
        return float((delta @ moment.regularised @ delta.T).trace())

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(change.shape, generator=generator, dtype=torch.float64) * change.norm() / 30
        other -= torch.outer(other @ key, key) / (key @ key)  # keeps the constraint
        assert disturbance(change + other) > disturbance(change)


def test_the_scale_of_the_statistics_does_not_matter(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    weights, real = [], SecondMoment.regularised.fget
    for scale in (1.0, 1000.0):
        with monkeypatch.context() as patch:
            patch.setattr(SecondMoment, "regularised", property(lambda self, scale=scale: scale * real(self)))
            toy_model.remembered.clear()
            with ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]):
                weights.append(weight_of(toy_model, 1).clone())
    torch.testing.assert_close(*weights, atol=1e-12, rtol=0)


def test_without_statistics_the_key_itself_is_the_direction(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    monkeypatch.setattr(ROME, "statistics", None)  # none are taken
    editor = ROME(layer=1, identity=True, **QUICK)
    rows = request_rows(toy_model, [REQUEST], editor.prefixes(toy_model, 0))
    key = read_keys(toy_model, rows, 1).keys[0].mean(0)
    with editor.apply(toy_model, [REQUEST]) as edit:
        torch.testing.assert_close(edit.changes[0].into[:, 0], key / key.norm(), atol=1e-12, rtol=0)


def test_the_variants_agree_where_the_only_context_is_the_bare_prompt(toy_model: tracer.LanguageModel) -> None:
    weights = []
    for variant in ("r-rome", "rome", "p-rome"):
        with ROME(layer=1, variant=variant, context_plan=(), tokens=700, steps=4).apply(toy_model, [REQUEST]):
            weights.append(weight_of(toy_model, 1).clone())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(weights[0], weights[2], atol=1e-12, rtol=0)


def test_the_new_answer_becomes_more_probable(family_model: tracer.LanguageModel) -> None:
    (before,) = target_scores(family_model, [(REQUEST.prompt, REQUEST.new)])
    with ROME(layer=1, **{**QUICK, "steps": 20}).apply(family_model, [REQUEST]):
        (after,) = target_scores(family_model, [(REQUEST.prompt, REQUEST.new)])
    assert after.prob > 1.1 * before.prob  # as far as a random model lets one layer decide


def test_a_delta_of_zero_gives_the_models_own_logits(family_model: tracer.LanguageModel) -> None:
    """The replayed suffix equals a whole forward pass, in every row and for every target token."""
    request = dataclasses.replace(REQUEST, new=" Constantinople")
    rows = request_rows(family_model, [request], PREFIXES)
    zero = torch.zeros(1, 1, family_model.d_model, dtype=torch.float64)
    targets, essence = (found.log_softmax(-1) for found in Suffix(family_model, 1, rows).logits(zero))
    with torch.no_grad():
        logits = family_model.torch(input_ids=rows.ids, attention_mask=rows.attention_mask).logits.log_softmax(-1)
    torch.testing.assert_close(targets.detach(), logits[rows.target_rows, rows.target_places], atol=1e-9, rtol=0)
    torch.testing.assert_close(essence[0].detach(), logits[-1, rows.lookup[-1]], atol=1e-9, rtol=0)
    last = Suffix(family_model, 1, rows, essence_at="last").of_some([0, 1]).logits(zero)[1].log_softmax(-1)
    end = int(rows.attention_mask[-1].sum()) - 1
    assert end > rows.lookup[-1]
    torch.testing.assert_close(last[0].detach(), logits[-1, end], atol=1e-9, rtol=0)


def test_a_delta_in_the_replay_equals_one_in_a_whole_pass(family_model: tracer.LanguageModel) -> None:
    layer = 2
    rows = request_rows(family_model, [REQUEST], PREFIXES)
    delta = torch.randn(family_model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = Suffix(family_model, layer, rows).logits(delta[None, None])[0].log_softmax(-1)
    each = torch.arange(len(rows.ids))

    def add(_module, _inputs, output):
        output = output.clone()
        output[each, rows.lookup] += delta
        return output

    handle = family_model.anatomy.value_matrix(layer).register_forward_hook(add)
    with torch.no_grad():
        logits = family_model.torch(input_ids=rows.ids, attention_mask=rows.attention_mask).logits.log_softmax(-1)
    handle.remove()
    torch.testing.assert_close(targets.detach(), logits[rows.target_rows, rows.target_places], atol=1e-9, rtol=0)


def test_the_loss_has_the_parts_that_whole_passes_have(toy_model: tracer.LanguageModel) -> None:
    """Mean NLL over contexts and tokens, KL(p_delta || p_0) of the essence, |delta| / |z0|^2: each with its weight."""
    rows = request_rows(toy_model, [dataclasses.replace(REQUEST, new=" Constantinople")], PREFIXES)
    (value,) = optimise_values(toy_model, 1, rows, Search(steps=3, kl=0.3, decay=0.7))
    each = torch.arange(len(rows.ids))

    def add(_module, _inputs, output):
        output = output.clone()
        output[each, rows.lookup] += value.delta[0]
        return output

    logits = []
    for hook in (lambda *_: None, add):
        handle = toy_model.anatomy.value_matrix(1).register_forward_hook(hook)
        with torch.no_grad():
            found = toy_model.torch(input_ids=rows.ids, attention_mask=rows.attention_mask).logits
        logits.append(found.log_softmax(-1))
        handle.remove()
    before, after = logits
    of_rows = [[] for _ in PREFIXES]
    for row, place, token in zip(rows.target_rows, rows.target_places, rows.target_ids, strict=True):
        of_rows[row].append(-float(after[row, place, token]))
    assert len(of_rows[0]) > 1
    at = rows.lookup[-1]
    drift = (after[-1, at].exp() * (after[-1, at] - before[-1, at])).sum()
    assert value.loss["nll"] == pytest.approx(np.mean([np.mean(nll) for nll in of_rows]), abs=1e-9)
    assert value.loss["kl"] == pytest.approx(0.3 * float(drift), abs=1e-9) and drift > 1e-3
    assert value.loss["decay"] == pytest.approx(0.7 * float(value.delta.norm() / value.initial.norm() ** 2), abs=1e-12)


def test_the_essence_is_read_at_the_end_of_the_subjects_words(toy_model: tracer.LanguageModel) -> None:
    for subject in ("Angela Merkel", "  Angela Merkel "):
        rows = request_rows(toy_model, [EditRequest("Where  Angela Merkel lives is", subject, " Rome")], ("",))
        assert toy_model.tokenizer is not None
        assert toy_model.tokenizer.decode(rows.ids[1, : rows.attention_mask[1].sum()]) == "Angela Merkel is a"
        assert toy_model.tokenizer.decode(rows.ids[1, : rows.lookup[1] + 1]) == "Angela Merkel"


@pytest.mark.parametrize(("nll", "ends"), [(0.049, True), (0.051, False)])
def test_a_loss_below_a_twentieth_ends_the_way_before_another_step(nll: float, ends: bool) -> None:
    path, nothing = _Path(torch.ones(1, 4, dtype=torch.float64), Search(steps=5)), torch.tensor(0.0)
    found = path.loss(torch.tensor(nll), nothing, torch.tensor(False))
    assert (found is None) == ends == path.done and path.taken == 0


def test_the_value_stays_in_its_ball_and_the_loss_falls(toy_model: tracer.LanguageModel) -> None:
    rows = request_rows(toy_model, [REQUEST], PREFIXES)
    (value,) = optimise_values(toy_model, 1, rows, Search(steps=8, clamp=0.7))
    assert value.delta.norm() <= 0.7 * value.initial.norm() * (1 + 1e-6)
    assert value.clamped > 0 and value.steps == 7
    assert value.probability[1] > value.probability[0]


def test_every_target_token_counts(toy_model: tracer.LanguageModel) -> None:
    one, other = (
        request_rows(toy_model, [dataclasses.replace(REQUEST, new=new)], ("",))
        for new in (" Paris Rome", " Paris Oslo")
    )
    assert one.target_ids[0] == other.target_ids[0] and one.target_lengths[0] > 1
    values = [optimise_values(toy_model, 1, rows, SEARCH)[0] for rows in (one, other)]
    assert values[0].loss["nll"] != values[1].loss["nll"]


def test_gradients_never_reach_the_weights(toy_model: tracer.LanguageModel) -> None:
    with ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]):
        assert all(parameter.grad is None for parameter in toy_model.torch.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in toy_model.torch.modules())


def test_two_requests_are_written_one_on_the_other(toy_model: tracer.LanguageModel) -> None:
    second = EditRequest("The mother tongue of Angela Merkel is", subject="Angela Merkel", new=" French")
    with ROME(layer=1, **QUICK).apply(toy_model, [REQUEST, second]) as edit:
        assert [change.weight for change in edit.changes] == ["transformer.h.1.mlp.c_proj.weight"] * 2
        assert len(edit.diagnostics) == 2


def test_an_empty_list_changes_nothing(toy_model: tracer.LanguageModel) -> None:
    before = toy_model.fingerprint()
    with ROME(layer=1).apply(toy_model, []) as edit:
        assert toy_model.fingerprint() == before and edit.changes == ()


def test_the_same_seed_gives_the_same_bits(toy_model: tracer.LanguageModel) -> None:
    prints = set()
    for _ in range(2):
        with ROME(layer=1, **QUICK).apply(toy_model, [REQUEST], seed=5):
            prints.add(toy_model.fingerprint())
    assert len(prints) == 1


def test_requests_edited_each_alone_may_contradict_each_other(toy_model: tracer.LanguageModel) -> None:
    others = [REQUEST, dataclasses.replace(REQUEST, new="Rome")]
    found = ROME(layer=1, **QUICK).each(toy_model, others, progress=False)
    assert [edit.requests[0].new.strip() for edit in found] == ["Paris", "Rome"]
    assert all(edit.changes for edit in found)


def test_bad_requests_are_refused_before_the_model_runs(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    monkeypatch.setattr(type(toy_model.torch), "forward", None)
    with pytest.raises(SiteError, match="has layers 0 to 3"):
        ROME(layer=LAYERS).apply(toy_model, [REQUEST])
    with pytest.raises(RequestError, match="become both 'Paris' and 'Rome'"):
        ROME(layer=1).apply(toy_model, [REQUEST, dataclasses.replace(REQUEST, new="Rome")])
    with pytest.raises(RequestError, match="no EditRequest"):
        ROME(layer=1).apply(toy_model, ["Paris"])
    with pytest.raises(RequestError, match="seed=4294967296 is not from 0"):
        ROME(layer=1).apply(toy_model, [REQUEST], seed=2**32)
    for options, said in (
        ({"variant": "s-rome"}, "r-rome, rome, p-rome"),
        ({"identity": "False"}, "identity='False' is neither True nor False. Write identity=True or"),
        ({"skip_first": 1}, "skip_first=1 is neither"),
        ({"corpus": 5}, "corpus=5 is no path"),
        ({"values_folder": 5}, "values_folder=5 is no path"),
    ):
        with pytest.raises(RequestError, match=said):
            ROME(layer=1, **options)


def test_prefixes_that_do_not_fit_are_told_apart_from_prompts_that_do_not(toy_model: tracer.LanguageModel) -> None:
    room = toy_model.context_length
    prompt = "The Space Needle" + " is" * (room - 20)
    fits = EditRequest(prompt, "The Space Needle", " Paris")
    n_tokens = len(toy_model.tokenizer(f"{prompt} Paris").input_ids)
    assert room - 20 < n_tokens <= room
    plan = {**QUICK, "context_plan": ((2, 40),)}
    with pytest.raises(FactError, match=rf"tokens with its answer, and \d+ with .* takes {room}. Write context_plan"):
        ROME(layer=1, **plan).apply(toy_model, [fits])
    with pytest.raises(FactError, match="Shorten it"):
        ROME(layer=1, **plan).apply(toy_model, [dataclasses.replace(fits, prompt=prompt + " is" * 40)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("The Louvre is in", "the louvre", "Rome"), "Did you mean 'The Louvre'"),
        (("The Louvre is in", "The Louvre", " "), "new answer is empty"),
        ((" ", "The Louvre", "Rome"), "prompt is empty"),
        ((5, "The Louvre", "Rome"), "prompt=5 is no text"),
        (("The Louvre is in", "The Louvre", None), "new=None is no text"),
        (("The Louvre is in", "The Louvre", "Rome", 7), "true=7 is no text"),
        (("The Louvre is in", "The Louvre", "Rome", " "), "old answer is blank"),
        (("Rome is in", "n", "Italy", None, None, None, -1), "no 'n' at character -1; it occurs at 9"),
        (("Rome is in", "n", "Italy", None, None, None, 9.0), "subject_at=9.0 is no whole number"),
    ],
)
def test_bad_requests_say_what_to_write(arguments: tuple, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        EditRequest(*arguments)


@pytest.mark.parametrize(
    "record", [{}, {"case_id": 1, "requested_rewrite": {"prompt": "Rome is", "subject": "Rome"}}, None]
)
def test_what_is_no_counterfact_record_is_refused(record) -> None:
    with pytest.raises(RequestError, match="no CounterFact record"):
        EditRequest.from_counterfact(record)


def test_a_template_is_filled_where_its_braces_are() -> None:
    request = EditRequest("In Paris, {} is", subject="Paris {x}", new="red")
    assert (request.prompt, request.subject_at) == ("In Paris, Paris {x} is", 10)


@pytest.mark.filterwarnings("error::editing.EditingWarning")
def test_an_optimisation_that_does_not_get_there_is_said(toy_model: tracer.LanguageModel) -> None:
    with (
        pytest.warns(EditingWarning, match="reached probability"),
        ROME(layer=1, **{**QUICK, "steps": 2, "clamp": 0.01}).apply(toy_model, [REQUEST]),
    ):
        pass


@pytest.mark.filterwarnings("error::editing.EditingWarning")
def test_edits_made_each_for_itself_complain_together_at_the_line_that_asked(toy_model: tracer.LanguageModel) -> None:
    editor = ROME(layer=1, **{**QUICK, "steps": 2, "clamp": 0.01})
    second = EditRequest("The mother tongue of Angela Merkel is", subject="Angela Merkel", new=" French")
    with pytest.warns(EditingWarning, match=r"Paris \(and 1 more\): the optimisation reached") as said:
        editor.each(toy_model, [REQUEST, second])
    with pytest.warns(EditingWarning, match="reached") as said_once:
        editor.apply(toy_model, [REQUEST])
    assert {warning.filename for warning in (*said, *said_once)} == {__file__}


def test_a_division_by_little_is_complained_of(toy_model: tracer.LanguageModel) -> None:
    """Published ROME divides by the bare prompt's share in a direction that was made for the mean key."""
    editor = ROME(layer=1, variant="rome", identity=True, **QUICK)
    keys = torch.tensor([[0.1, 1.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)  # bare, and two contexts
    value = Value(torch.ones(1, 2), torch.zeros(1, 2), (0.1, 0.9), {}, 1, 0)
    reading = Reading(keys[None], torch.zeros(1, 3, 2, dtype=torch.float64), torch.zeros(1, 2))
    change, division, ratio = editor._change(toy_model, reading, value, None)
    mean = keys.mean(0)
    assert division == pytest.approx(float(mean @ keys[0] / mean.norm()))
    assert ratio == pytest.approx(float(mean @ keys[0] / (mean @ mean)))
    record = {"lost_by_rounding": 0, "relative_change": 0, "probability_written": 1, "probability_reached": 1}
    told = {"subject": "S", "new": "N", "division_ratio": 0.2}
    with pytest.warns(EditingWarning, match=r"divided by 0\.20"):
        warn_of(Edit((), (), {}, "", ({**record, **told},)))


def test_a_loss_that_is_not_finite_leaves_the_model_as_it_was(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    before = toy_model.fingerprint()
    editor = ROME(layer=1, **QUICK)
    object.__setattr__(editor, "kl", float("inf"))  # as a setting it is refused
    with pytest.raises(EditFailedError, match="loss became"):
        editor.apply(toy_model, [REQUEST])
    assert toy_model.fingerprint() == before and toy_model.edits == []


# The statistics of other keys


def test_statistics_are_the_mean_outer_product_of_keys(toy_model: tracer.LanguageModel, tmp_path) -> None:
    texts = ["The capital of France is the city of Paris.", "The mother tongue of Angela Merkel is German."] * 40
    (tmp_path / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    moment = second_moments(toy_model, [2], corpus=tmp_path / "corpus.txt", tokens=600)[2]
    keys, seen = [], 0
    handle = toy_model.anatomy.value_matrix(2).register_forward_hook(lambda m, i, o: keys.append(i[0][0].detach()))
    for text in texts:
        ids = toy_model.tokenizer(text, return_tensors="pt").input_ids[:, : 600 - seen]
        if seen < 600:
            toy_model.torch(ids)
            seen += ids.shape[1]
    handle.remove()
    stacked = torch.cat(keys)
    torch.testing.assert_close(moment.matrix, stacked.T @ stacked / len(stacked), atol=1e-9, rtol=0)
    assert moment.n_tokens == seen == 600


def test_statistics_without_first_tokens_leave_them_out(toy_model: tracer.LanguageModel, tmp_path) -> None:
    texts = ["The capital of France is the city of Paris.", "The mother tongue of Angela Merkel is German."]
    (tmp_path / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    moment = second_moments(toy_model, [2], corpus=tmp_path / "corpus.txt", tokens=15, skip_first=True)[2]
    keys, left = [], 15
    handle = toy_model.anatomy.value_matrix(2).register_forward_hook(lambda m, i, o: keys.append(i[0][0, 1:].detach()))
    for text in texts:
        ids = toy_model.tokenizer(text, return_tensors="pt").input_ids[:, :left]
        left -= ids.shape[1]
        toy_model.torch(ids)
    handle.remove()
    stacked = torch.cat(keys)
    assert left == 0 and moment.n_tokens == len(stacked) == 13
    torch.testing.assert_close(moment.matrix, stacked.T @ stacked / 13, atol=1e-9, rtol=0)


def test_statistics_are_not_those_of_equal_weights_that_compute_otherwise(toy_model: tracer.LanguageModel) -> None:
    first = second_moments(toy_model, [1], tokens=700)[1]
    other = tracer.load(copy.deepcopy(toy_model.torch), tokenizer=toy_model.tokenizer, check=False)
    other.torch.config.layer_norm_epsilon = 1e-3
    assert other.fingerprint() == toy_model.fingerprint()
    assert not first.cached and not second_moments(other, [1], tokens=700)[1].cached
    assert second_moments(toy_model, [1], tokens=700)[1].cached


def test_one_text_is_too_little_for_statistics_with_an_error(toy_model: tracer.LanguageModel, tmp_path) -> None:
    (tmp_path / "corpus.txt").write_text("The capital of France is the city of Paris, and so on.", encoding="utf-8")
    with pytest.raises(CovarianceError, match="is one text"):
        second_moments(toy_model, [2], corpus=tmp_path / "corpus.txt", tokens=8)
    with pytest.raises(CovarianceError, match="tokens=10 reach.*Write tokens=256"):
        second_moments(toy_model, [2], tokens=10)


def test_statistics_come_from_the_cache_the_second_time(toy_model: tracer.LanguageModel) -> None:
    first, second = (second_moments(toy_model, [1], tokens=700)[1] for _ in range(2))
    assert (first.cached, second.cached) == (False, True)
    assert torch.equal(first.matrix, second.matrix)
    assert (first.n_tokens, first.half_difference) == (second.n_tokens, second.half_difference)


def test_statistics_are_the_unedited_models(toy_model: tracer.LanguageModel) -> None:
    first = second_moments(toy_model, [2], tokens=700, cache=False)[2]
    with ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]):
        edited = toy_model.fingerprint()
        second = second_moments(toy_model, [2], tokens=700, cache=False)[2]
        assert toy_model.fingerprint() == edited
        assert second_moments(toy_model, [1], tokens=700)[1].cached  # by the unedited model's fingerprint
    assert torch.equal(first.matrix, second.matrix)


def test_dead_neurons_do_not_break_the_inverse() -> None:
    keys = torch.randn(50, 8, dtype=torch.float64)
    keys[:, 3] = 0
    moment = SecondMoment(0, keys.T @ keys / 50, 50, "planted", 0.0)
    solved = moment.solve(keys[0])
    assert torch.isfinite(solved).all() and solved[3] == 0
    assert moment.report()["dead_neurons"] == 1


def test_a_corpus_too_short_is_refused(toy_model: tracer.LanguageModel, tmp_path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("One line of a few words only.\n", encoding="utf-8")
    with pytest.raises(CovarianceError, match="Give more text"):
        second_moments(toy_model, [1], corpus=path)
    with pytest.raises(CovarianceError, match="no corpus file"):
        second_moments(toy_model, [1], corpus=tmp_path / "absent.txt")


# Text from the model


def test_sampling_leaves_the_global_random_state_alone(toy_model: tracer.LanguageModel) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one = sample_texts(toy_model, 6, length=6, seed=1, top_k=5)
    assert torch.equal(torch.rand(3), expected)
    assert one == sample_texts(toy_model, 6, length=6, seed=1, top_k=5)
    assert one != sample_texts(toy_model, 6, length=6, seed=2, top_k=5)


def test_greedy_continuation_is_the_argmax_of_whole_passes(family_model: tracer.LanguageModel) -> None:
    ids = family_model.tokenizer("The capital of France is", return_tensors="pt").input_ids
    found = continued(family_model, ids, 6)
    with torch.inference_mode():
        for _ in range(6):
            ids = torch.cat((ids, family_model.torch(ids, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(found, ids)


def test_the_first_context_is_empty_and_the_others_end_in_a_stop(tokenizer_with_bos) -> None:
    from conftest import tiny_llama

    torch.manual_seed(0)
    model = tracer.load(tiny_llama(), tokenizer=tokenizer_with_bos)
    found = contexts(model, seed=0, plan=((2, 3), (3, 5)))
    assert len(found) == 6 and found[0] == ""
    assert all(text.endswith(". ") and "<bos>" not in text for text in found[1:])


def test_contexts_follow_the_seed_part_by_part_and_are_the_unedited_models(toy_model: tracer.LanguageModel) -> None:
    plan = ((4, 6), (4, 6))
    first, other = (contexts(toy_model, seed=seed, plan=plan) for seed in (0, 5))
    assert first[1:5] != first[5:] and first[1:] != other[1:]
    toy_model.remembered.clear()
    with ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]):
        toy_model.remembered.clear()
        assert contexts(toy_model, seed=0, plan=plan) == first


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 1}, "steps=1 is below 2"),
        ({"steps": 2.5}, "no whole number"),
        ({"steps": None}, "steps=None is no whole number. Write steps=20"),
        ({"tokens": 0}, "below 2. Write tokens=100000, or None"),
        ({"ridge": -1.0}, "no number of 0 or more"),
        ({"clamp": "2"}, "clamp='2' is no number"),
        ({"kl": None}, "kl=None is no number"),
        ({"context_plan": (5, 10)}, "write pairs"),
        ({"context_plan": ((5,),)}, "write pairs"),
        ({"context_plan": ((2.5, 4),)}, "write pairs"),
        ({"context_plan": ((0, 5),)}, "texts of nothing"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        ROME(**{"layer": 1, **options})


def test_a_plan_of_lists_is_the_same_as_one_of_tuples() -> None:
    assert ROME(layer=1, context_plan=[[2, 4]]) == ROME(layer=1, context_plan=((2, 4),))  # pyright: ignore[reportArgumentType]


def test_a_corpus_that_is_not_there_is_refused_before_anything_runs() -> None:
    with pytest.raises(CovarianceError, match="no corpus file"):
        ROME(layer=1, corpus="/nowhere.txt")


def test_a_prompt_that_leaves_no_room_is_refused(toy_model: tracer.LanguageModel) -> None:
    long = EditRequest("France " * 60 + "is", "France", "Zanzibar " * 12)
    with pytest.raises(FactError, match="takes 96"):
        ROME(layer=1, **QUICK).apply(toy_model, [long])
    with pytest.raises(FactError, match="takes 96"):
        target_scores(toy_model, [(long.prompt, long.new)])


def test_float16_optimises_in_float32(tokenizer) -> None:
    torch.manual_seed(0)
    model = tracer.load(tiny_gpt2().half(), tokenizer=tokenizer)
    with ROME(layer=1, **QUICK).apply(model, [REQUEST]) as edit:
        assert edit.changes


def test_damaged_statistics_are_measured_again(toy_model: tracer.LanguageModel) -> None:
    first = second_moments(toy_model, [1], tokens=700)[1]
    for path in [*cache_folder().glob("covariance/*"), *cache_folder().glob("own_text/*")]:
        path.write_bytes(path.read_bytes()[:50])
    second = second_moments(toy_model, [1], tokens=700)[1]
    assert not second.cached and torch.equal(first.matrix, second.matrix)


def test_the_diagnostics_say_how_well_the_statistics_are_known(toy_model: tracer.LanguageModel) -> None:
    with ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]) as edit:
        (said,) = edit.summary["statistics"]
    assert said["tokens"] == 700 and 0 < said["half_difference"] < 1 and said["condition_number_at_least"] > 1


@pytest.mark.parametrize("settings", [{"decay": -1.0}, {"kl": -0.1}, {"kl_position": "first"}])
def test_settings_that_mean_nothing_are_refused(settings: dict) -> None:
    with pytest.raises(RequestError, match=next(iter(settings))):
        ROME(layer=1, **settings)


def test_a_seed_is_a_whole_number_of_any_kind(toy_model: tracer.LanguageModel) -> None:
    with ROME(layer=1, **QUICK).apply(toy_model, [REQUEST], seed=np.int64(3)) as edit:
        assert edit.editor["seed"] == 3
    with pytest.raises(RequestError, match="seed='x' is no whole number"):
        ROME(layer=1).apply(toy_model, [REQUEST], seed="x")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("editor", [ROME(layer=1), FT(layer=1), KN(), IKE()], ids=lambda editor: type(editor).__name__)
def test_what_is_no_model_or_no_list_is_refused(editor, toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(BaseModelError, match=r"Write model = tracer\.load\(model\)"):
        editor.apply(toy_model.torch, [REQUEST])
    with pytest.raises(RequestError, match=r"Write apply\(model, \[request\]\)"):
        editor.apply(toy_model, None)


@pytest.mark.parametrize("editor", [ROME(layer=1, **QUICK), FT(layer=1, steps=2), KN(nodes=2)], ids=repr)
def test_requests_that_can_be_read_only_once_are_written(editor, toy_model: tracer.LanguageModel) -> None:
    """A generator that the checks have read is empty; an edit of nothing would look like success."""
    with editor.apply(toy_model, (request for request in [REQUEST])) as edit:
        assert edit.requests == (REQUEST,) and len(edit.diagnostics) == 1
    with pytest.raises(RequestError, match=r"apply\(model, list\(requests\)\)"):
        check_requests(toy_model, iter([REQUEST]))  # pyright: ignore[reportArgumentType]


def test_a_request_alone_is_refused_with_what_to_write(toy_model: tracer.LanguageModel) -> None:
    for editor in (ROME(layer=1), FT(layer=1), IKE()):
        with pytest.raises(RequestError, match=r"apply\(model, \[request\]\)"):
            editor.apply(toy_model, REQUEST)  # pyright: ignore[reportArgumentType]
