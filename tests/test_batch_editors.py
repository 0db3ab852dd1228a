"""MEMIT, PMET, EMMET and AlphaEdit on tiny models: what is written, what is kept, undo."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Iterator

import pytest
import torch
from conftest import LAYERS, assert_same_weights, weights

import tracer
from editing import EMMET, MEMIT, PMET, ROME, AlphaEdit, EditRequest, RequestError, layers_around, load_edit
from editing.edit import Edit
from editing.errors import CovarianceError
from editing.locate_then_edit import suffix
from editing.locate_then_edit.alphaedit import earlier_keys
from editing.locate_then_edit.contexts import contexts
from editing.locate_then_edit.covariance import SecondMoment
from editing.locate_then_edit.keys import read_keys
from editing.locate_then_edit.norms import before_norm
from editing.locate_then_edit.presets import PRESETS
from editing.locate_then_edit.rows import batched_rows, request_rows
from editing.locate_then_edit.spread import mean_keys, read_all
from editing.locate_then_edit.suffix import Part, Suffix
from editing.locate_then_edit.values import Search, _Path, optimise_values
from editing.padding import least_padding
from tracer.errors import SiteError

REQUESTS = [
    EditRequest("The Space Needle is located in the city of", subject="The Space Needle", new=" Paris"),
    EditRequest("The mother tongue of Angela Merkel is", subject="Angela Merkel", new=" French"),
    EditRequest("The capital of France is the city of", subject="France", new=" Rome"),
]
PREFIXES = ("", "It is said. ", "One day they went away. ")
QUICK = {"context_plan": ((2, 4),), "tokens": 700, "steps": 6}
LAYERS_WRITTEN = (1, 2)
EDITORS = {
    "MEMIT": MEMIT(layers=LAYERS_WRITTEN, **QUICK),
    "PMET": PMET(layers=LAYERS_WRITTEN, **QUICK),
    "EMMET": EMMET(layer=1, **QUICK),
    "AlphaEdit": AlphaEdit(layers=LAYERS_WRITTEN, **QUICK),
}
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")


@pytest.fixture(params=EDITORS)
def editor(request: pytest.FixtureRequest) -> MEMIT | EMMET:
    return EDITORS[request.param]


# The values of several requests


@pytest.mark.parametrize("parts", [("mlp",), ("block",), ("mlp", "attn")])
def test_values_found_together_equal_those_found_alone(family_model: tracer.LanguageModel, parts: tuple) -> None:
    search = Search(steps=6, clamp=0.7, greedy=len(parts) == 2)
    together = optimise_values(family_model, 2, request_rows(family_model, REQUESTS, PREFIXES), search, parts=parts)
    for request, value in zip(REQUESTS, together, strict=True):
        rows = request_rows(family_model, [request], PREFIXES)
        (alone,) = optimise_values(family_model, 2, rows, search, parts=parts)
        torch.testing.assert_close(value.delta, alone.delta, atol=1e-7, rtol=0)
        assert value.steps == alone.steps and value.clamped == alone.clamped


def test_rows_of_some_contexts_are_the_rows_of_those_contexts_alone(family_model: tracer.LanguageModel) -> None:
    assert len(PREFIXES) > 2
    some = request_rows(family_model, REQUESTS, PREFIXES).of_some([0, 2])
    alone = request_rows(family_model, REQUESTS, (PREFIXES[0], PREFIXES[2]))
    for name, value in vars(alone).items():
        assert torch.equal(torch.as_tensor(getattr(some, name)), torch.as_tensor(value)), name


def test_contexts_taken_in_turns_all_have_their_turn_and_the_bare_prompt_every_one(toy_model) -> None:
    rows = request_rows(toy_model, REQUESTS, ("", "Yes. ", "It is so: ", "No. ", "Then: ", "Well. "))
    assert rows.in_turns(None) == rows.in_turns(5) == [[0, 1, 2, 3, 4, 5]]
    turns = rows.in_turns(2)
    assert [len(turn) for turn in turns] == [3, 3, 2] and all(turn[0] == 0 for turn in turns)
    assert sorted(number for turn in turns for number in turn[1:]) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("part", ["mlp", "block"])
@pytest.mark.parametrize("call", [0, math.inf])
def test_a_turn_off_the_recording_of_all_rows_equals_one_recorded_alone(
    family_model: tracer.LanguageModel, monkeypatch: pytest.MonkeyPatch, call: float, part: Part
) -> None:
    rows = request_rows(family_model, REQUESTS, PREFIXES)
    monkeypatch.setattr(suffix, "call_tokens", lambda _: call)
    whole = Suffix(family_model, 2, rows, (part,))
    assert len(whole.strands) == (2 if call == 0 else 1)  # essence prompts run by themselves, or beside the others
    deltas = 0.1 * torch.randn(len(REQUESTS), 1, family_model.d_model, dtype=torch.float64)
    for turn in rows.in_turns(1):
        monkeypatch.setattr(suffix, "call_tokens", lambda _: math.inf if call == 0 else 0)
        alone = Suffix(family_model, 2, rows.of_some(turn), (part,))
        assert len(alone.strands) == (1 if call == 0 else 2)
        torch.testing.assert_close(whole.of_some(turn).initial, alone.initial, atol=1e-7, rtol=0)
        for found, expected in zip(whole.of_some(turn).logits(deltas), alone.logits(deltas), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [2, 3])
def test_the_first_step_in_turns_sees_the_first_turn_and_the_next_another(toy_model, steps: int) -> None:
    rows = request_rows(toy_model, REQUESTS, PREFIXES)
    turns = optimise_values(toy_model, 2, rows, Search(steps=steps, contexts_a_step=1))
    first = optimise_values(toy_model, 2, rows.of_some(rows.in_turns(1)[0]), Search(steps=steps))
    for value, alone in zip(turns, first, strict=True):
        assert torch.allclose(value.delta, alone.delta, atol=1e-9) == (steps == 2)


def test_where_a_norm_follows_steps_are_in_units_of_the_output_and_a_value_turns_by_45_degrees(family_model) -> None:
    free = family_model.torch.config.model_type.startswith("gemma3")
    for editor in (ROME(layer=1), EMMET(layer=1), PMET(layers=(1, 2)), MEMIT(layers=(1, 2))):
        search, given = editor.search(family_model), dataclasses.replace(editor, rate=0.1, clamp=2.0)
        assert search.relative == free and search.rate == (0.35 if free else editor.published_rate)
        assert search.clamp == (min(1.0, editor.published_clamp) if free else editor.published_clamp)
        found = given.search(family_model)
        assert (found.rate, found.relative, found.clamp) == (0.1, False, 2.0)


def test_relative_steps_do_not_depend_on_the_scale_of_the_output() -> None:
    """One of Adam's first steps is its rate in every entry."""
    for scale in (0.01, 1.0, 100.0):
        z0 = scale * torch.tensor([[3.0, -4.0, 0.0, 0.0]], dtype=torch.float64)
        path = _Path(z0, Search(rate=0.2, relative=True, clamp=10.0))
        path.step(torch.ones_like(z0))
        assert torch.allclose(path.delta, torch.full_like(z0, -0.2 * 2.5 * scale), rtol=1e-4)


def test_a_delta_at_two_places_equals_one_in_a_whole_pass(family_model: tracer.LanguageModel) -> None:
    layer, rows = 2, request_rows(family_model, REQUESTS, PREFIXES)
    shape = (len(REQUESTS), 2, family_model.d_model)
    deltas = 0.1 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Suffix(family_model, layer, rows, ("mlp", "attn")).logits(deltas)[0].log_softmax(-1)
    each, anatomy = torch.arange(len(rows.ids)), family_model.anatomy
    handles = []
    for part, matrix in enumerate((anatomy.value_matrix(layer), anatomy.head_matrix(layer))):

        def add(_module, _inputs, output, part=part):
            output = output.clone()
            output[each, rows.lookup] += deltas[:, part].repeat_interleave(rows.each, 0)
            return output

        handles.append(matrix.register_forward_hook(add))
    with torch.no_grad():
        logits = family_model.torch(input_ids=rows.ids, attention_mask=rows.attention_mask).logits.log_softmax(-1)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found, logits[rows.target_rows, rows.target_places], atol=1e-9, rtol=0)


def test_a_delta_at_a_block_equals_one_in_a_whole_pass(family_model: tracer.LanguageModel) -> None:
    layer, rows = 1, request_rows(family_model, REQUESTS, PREFIXES)
    deltas = torch.randn(len(REQUESTS), 1, family_model.d_model, dtype=torch.float64)
    found = Suffix(family_model, layer, rows, ("block",)).logits(deltas)[0].log_softmax(-1)
    each = torch.arange(len(rows.ids))

    def add(_module, _inputs, output):
        changed = (output[0] if isinstance(output, tuple) else output).clone()
        changed[each, rows.lookup] += deltas[:, 0].repeat_interleave(rows.each, 0)
        return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

    handle = family_model.anatomy.blocks[layer].register_forward_hook(add)
    with torch.no_grad():
        logits = family_model.torch(input_ids=rows.ids, attention_mask=rows.attention_mask).logits.log_softmax(-1)
    handle.remove()
    torch.testing.assert_close(found, logits[rows.target_rows, rows.target_places], atol=1e-9, rtol=0)


@pytest.mark.parametrize("tokens", [1, 60, 10_000])
def test_batches_hold_every_request_once(toy_model: tracer.LanguageModel, tokens: int) -> None:
    batches = list(batched_rows(toy_model, REQUESTS, PREFIXES, tokens=tokens))
    assert sorted(number for numbers, _ in batches for number in numbers) == [0, 1, 2]
    assert all(rows.n_requests == len(numbers) for numbers, rows in batches)
    assert len(batches) == 3 or tokens > 1


@pytest.mark.parametrize("most", [1, 20, 1000])
@pytest.mark.parametrize("overhead", [0.0, 2.5, 7.0, 1000.0, math.inf])
def test_batches_cost_as_little_as_the_best_of_all_partitions(most: int, overhead: float) -> None:
    def cost(batches: list[list[int]]) -> float:
        each = min(overhead, 1e6)
        return sum(len(batch) * max(lengths[n] for n in batch) + each for batch in batches)

    def allowed(batch: list[int]) -> bool:
        return len(batch) == 1 or len(batch) * max(lengths[n] for n in batch) <= most

    lengths = [5, 2, 9, 5, 3, 3]
    found = least_padding(lengths, most=most, overhead=overhead)
    assert sorted(n for batch in found for n in batch) == list(range(len(lengths)))
    assert all(map(allowed, found))
    best = min(cost(batches) for batches in partitions(list(range(len(lengths)))) if all(map(allowed, batches)))
    assert cost(found) == best


def test_what_was_read_before_counts_as_seen_and_not_as_run() -> None:
    batches = least_padding([2, 2, 4, 4], most=100, overhead=1e3, read=10, most_seen=28)
    assert sorted(map(sorted, batches)) == [[0, 1], [2, 3]]  # 2 * 14 are seen; with three, 3 * 14 would be
    assert least_padding([2, 2], most=100, overhead=1e3, read=10, most_seen=23) == [[0], [1]]


def partitions(numbers: list[int]) -> Iterator[list[list[int]]]:
    """Every way to put them into batches."""
    if not numbers:
        yield []
        return
    for batches in partitions(numbers[1:]):
        yield [[numbers[0]], *batches]
        for at, batch in enumerate(batches):
            yield [*batches[:at], [numbers[0], *batch], *batches[at + 1 :]]


# What is written


def test_undo_restores_every_weight_bit_for_bit(family_model: tracer.LanguageModel, editor: MEMIT | EMMET) -> None:
    before = weights(family_model)
    edit = editor.apply(family_model, REQUESTS)
    changed = {
        name for name, tensor in family_model.torch.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {change.weight for change in edit.changes} and changed
    edit.undo()
    assert_same_weights(family_model, before)


def test_a_failure_between_layers_leaves_the_model_as_it_was(
    toy_model: tracer.LanguageModel, editor: MEMIT | EMMET, monkeypatch
) -> None:
    before = weights(toy_model)
    monkeypatch.setattr("editing.locate_then_edit.spread.target_scores", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        editor.apply(toy_model, REQUESTS)
    assert_same_weights(toy_model, before)
    assert toy_model.edits == []


def test_a_loaded_edit_gives_the_same_weights(toy_model: tracer.LanguageModel, editor: MEMIT | EMMET, tmp_path) -> None:
    with editor.apply(toy_model, REQUESTS) as edit:
        written = weights(toy_model)
        edit.save(tmp_path / "edit.safetensors")
    with load_edit(tmp_path / "edit.safetensors").apply(toy_model) as loaded:
        assert_same_weights(toy_model, written)
        assert loaded.kept.keys() == edit.kept.keys()


def test_edits_made_one_by_one_equal_those_made_in_one_go(
    toy_model: tracer.LanguageModel, editor: MEMIT | EMMET
) -> None:
    before = toy_model.fingerprint()
    made = editor.each(toy_model, REQUESTS)
    assert toy_model.fingerprint() == before and toy_model.edits == []
    for request, edit in zip(REQUESTS, made, strict=True):
        with editor.apply(toy_model, [request]) as alone:
            expected = weights(toy_model)
        with edit.apply(toy_model):
            for name, tensor in toy_model.torch.state_dict().items():
                torch.testing.assert_close(tensor, expected[name], atol=1e-7, rtol=0)
        assert edit.requests == (request,) and alone.diagnostics[0].keys() == edit.diagnostics[0].keys()


@pytest.mark.parametrize("editor", [*EDITORS.values(), ROME(layer=1, **QUICK)], ids=[*EDITORS, "ROME"])
def test_an_edit_tells_where_its_time_went(toy_model: tracer.LanguageModel, editor: MEMIT | EMMET | ROME) -> None:
    begun = time.perf_counter()
    edit = editor.apply(toy_model, REQUESTS, progress=False)
    whole, seconds = time.perf_counter() - begun, edit.summary["seconds"]
    assert seconds.keys() == {"values", "statistics", "keys", "solve", "write", "scores"}
    assert min(seconds.values()) > 0 and sum(seconds.values()) < whole
    assert seconds["values"] == pytest.approx(sum(record["value_seconds"] for record in edit.diagnostics))
    edit.undo()


def test_nothing_to_write_changes_nothing(toy_model: tracer.LanguageModel, editor: MEMIT | EMMET) -> None:
    before = toy_model.fingerprint()
    with editor.apply(toy_model, []) as edit:
        assert toy_model.fingerprint() == before and edit.changes == ()


def test_a_weak_ridge_in_one_layer_writes_the_whole_residual(family_model: tracer.LanguageModel) -> None:
    """(W + D) K = W K + R, which in a layer whose output is added as it is closes the gap at the mean key."""
    memit = MEMIT(layers=(2,), strength=1e-8, **{**QUICK, "context_plan": ()})
    with memit.apply(family_model, REQUESTS) as edit:
        for record in edit.diagnostics:
            assert record["residual_after"] < 1e-6 * record["residual_before"]


def test_every_layer_takes_its_share(family_model: tracer.LanguageModel) -> None:
    with MEMIT(layers=(0, 1, 2), strength=1e-8, **{**QUICK, "context_plan": ()}).apply(family_model, REQUESTS) as edit:
        assert all(record["residual_after"] < 0.5 * record["residual_before"] for record in edit.diagnostics)
        assert len(edit.changes) == 3 and all(one["relative_change"] > 0 for one in edit.summary["layers"])


@pytest.mark.parametrize(("kind", "divisor"), [(MEMIT, 2.0), (PMET, math.sqrt(2)), (AlphaEdit, 2.0)])
def test_with_two_layers_left_a_share_of_the_residual_is_asked_and_the_last_layer_gets_the_rest(
    toy_model: tracer.LanguageModel, kind: type[MEMIT], divisor: float
) -> None:
    """Where nothing is written, nothing of what is missing goes away between the layers."""
    editor, asked = kind(layers=LAYERS_WRITTEN, **QUICK), {}

    def solve(layer: int, keys: torch.Tensor, residuals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked[layer] = residuals.T
        return residuals.new_zeros(len(residuals), 1), keys.new_zeros(len(keys), 1)

    prefixes = editor.prefixes(toy_model, 0)
    values = editor.values(toy_model, REQUESTS, 0)
    spread = editor.spread(toy_model, solve)
    with Edit(tuple(REQUESTS), (), {}, toy_model.fingerprint()).apply(toy_model) as edit:
        spread.write(edit, REQUESTS, values, prefixes)
    there = read_all(toy_model, REQUESTS, prefixes, 2, 2, spread.part).reached
    missing = torch.stack([value.wanted for value in values]) - there
    torch.testing.assert_close(asked[1], missing / divisor, atol=1e-12, rtol=0)
    torch.testing.assert_close(asked[2], missing, atol=1e-12, rtol=0)


def test_emmet_with_one_request_is_r_rome(family_model: tracer.LanguageModel) -> None:
    same = {"context_plan": (), "tokens": 700, "steps": 6}
    assert EMMET(layer=1).search(family_model) == ROME(layer=1).search(family_model)
    with ROME(layer=1, **same).apply(family_model, REQUESTS[:1]):
        rome = weights(family_model)
    with EMMET(layer=1, **same).apply(family_model, REQUESTS[:1]):
        for name, tensor in family_model.torch.state_dict().items():
            torch.testing.assert_close(tensor, rome[name], atol=1e-10, rtol=0)


def test_emmet_maps_every_key_to_its_value(toy_model: tracer.LanguageModel) -> None:
    emmet = EMMET(layer=1, slack=0.0, **{**QUICK, "context_plan": ()})
    with emmet.apply(toy_model, REQUESTS) as edit:
        assert all(record["residual_after"] < 1e-9 * record["residual_before"] for record in edit.diagnostics)


def test_pmet_with_the_attention_held_is_an_optimisation_of_the_mlp_alone(toy_model: tracer.LanguageModel) -> None:
    rows = request_rows(toy_model, REQUESTS[:1], PREFIXES)
    both = Suffix(toy_model, 2, rows, ("mlp", "attn"))
    one = Suffix(toy_model, 2, rows, ("mlp",))
    delta = torch.randn(1, 1, toy_model.d_model, dtype=torch.float64)
    torch.testing.assert_close(both.logits(torch.cat((delta, 0 * delta), 1)), one.logits(delta), atol=1e-12, rtol=0)


def test_pmet_stops_once_every_target_is_the_argmax_and_the_drift_is_small() -> None:
    initial, nll = torch.ones(2, 4, dtype=torch.float64), torch.tensor(2.0)
    for greedy, drift, ends in ((True, 0.005, True), (True, 0.5, False), (False, 0.005, False)):
        path = _Path(initial, Search(greedy=True))
        loss = path.loss(nll, torch.tensor(drift), torch.tensor(greedy))
        assert (loss is None) == ends
    assert _Path(initial, Search()).loss(nll, torch.tensor(0.005), torch.tensor(True)) is not None


# Null space


def test_alphaedit_keeps_the_keys_of_its_edits_and_forgets_them_with_undo(toy_model: tracer.LanguageModel) -> None:
    editor, neurons = EDITORS["AlphaEdit"], 4 * toy_model.d_model
    first = editor.apply(toy_model, REQUESTS[:1])
    prefixes = contexts(toy_model, seed=0, plan=editor.context_plan, openings=editor.openings)
    on_final = mean_keys(read_all(toy_model, REQUESTS[:1], prefixes, 2, 2, "block")).T
    torch.testing.assert_close(earlier_keys(toy_model, 2, neurons), on_final, atol=1e-12, rtol=0)
    second = editor.apply(toy_model, REQUESTS[1:])
    assert earlier_keys(toy_model, 2, neurons).shape == (neurons, 3)
    second.undo()
    assert earlier_keys(toy_model, 2, neurons).shape == (neurons, 1)
    first.undo()
    assert earlier_keys(toy_model, 2, neurons).shape == (neurons, 0)


def test_alphaedit_writes_nothing_outside_its_null_space(toy_model: tracer.LanguageModel) -> None:
    editor = EDITORS["AlphaEdit"]
    moments = editor.statistics(toy_model, 0, False)
    with editor.apply(toy_model, REQUESTS) as edit:
        for layer, change in zip(LAYERS_WRITTEN, edit.changes, strict=True):
            kept = editor.null_space(moments[layer])
            outside = change.into - kept @ (kept.T @ change.into)
            assert outside.norm() < 1e-9 * change.into.norm()
            (share,) = (one for one in edit.summary["null_space"] if one["layer"] == layer)
            assert share["directions"] == kept.shape[1] < share["of"]


def test_a_threshold_below_every_eigenvalue_is_refused(toy_model: tracer.LanguageModel) -> None:
    before = weights(toy_model)
    with pytest.raises(CovarianceError, match="threshold=None"):
        AlphaEdit(layers=(1,), threshold=1e-30, **QUICK).apply(toy_model, REQUESTS)
    assert_same_weights(toy_model, before)


def test_alphaedits_defaults_by_hand() -> None:
    """Directions that carry 10 % of C's trace together, and a tenth of the keys' mean squared length inside them."""
    eigenvalues = torch.tensor([2.5, 5.0, 5.0, 87.5], dtype=torch.float64)
    kept = AlphaEdit(layers=(1,)).null_space(SecondMoment(1, eigenvalues.diag(), 100, "planted", 0.0))
    assert kept.shape == (4, 2) and kept[2:].abs().max() == 0  # 2.5 + 5 are; another 5 would be too much
    keys = torch.tensor([[1.0, 2.0], [0.0, 2.0], [5.0, 5.0], [7.0, 7.0]], dtype=torch.float64)
    assert AlphaEdit(layers=(1,))._strength_for(kept, keys) == pytest.approx(0.1 * (1 + 8) / 2)


def test_keys_that_use_all_directions_alike_have_no_null_space_unless_a_threshold_says_so() -> None:
    moment = SecondMoment(1, torch.eye(8, dtype=torch.float64), 100, "planted", 0.0)
    with pytest.raises(CovarianceError, match="below 10% of their sum; the smallest is 1. Write threshold=2"):
        AlphaEdit(layers=(1,)).null_space(moment)
    assert AlphaEdit(layers=(1,), threshold=2.0).null_space(moment).shape == (8, 8)


# Norms between W and the residual stream


def test_the_wanted_output_of_w_gives_the_wanted_direction_after_its_norm(family_model: tracer.LanguageModel) -> None:
    if family_model.anatomy.names.mlp_site == "mlp":
        pytest.skip("nothing stands between W and the stream")
    norm = family_model.anatomy.site_module("mlp", 1)
    with torch.no_grad():
        norm.weight.copy_(0.3 * torch.randn(family_model.d_model, dtype=torch.float64))
        outputs = torch.randn(3, family_model.d_model, dtype=torch.float64)
        residual = 0.5 * torch.randn(3, family_model.d_model, dtype=torch.float64)
        wanted = norm(outputs) + residual
        found = norm(outputs + before_norm(family_model, 1, outputs, residual))
    torch.testing.assert_close(torch.cosine_similarity(found, wanted), torch.ones(3, dtype=torch.float64))
    assert (found.norm(dim=1) / wanted.norm(dim=1) - 1).abs().max() < 0.5


# Settings


def test_keys_weigh_the_bare_prompt_as_much_as_all_prefixes(toy_model: tracer.LanguageModel) -> None:
    reading = read_keys(toy_model, request_rows(toy_model, REQUESTS[:1], PREFIXES), 1)
    keys = reading.keys[0]
    torch.testing.assert_close(mean_keys(reading)[0], 0.5 * keys[0] + 0.25 * keys[1] + 0.25 * keys[2])


@pytest.mark.parametrize(
    ("kind", "model", "layers", "steps", "rate", "decay", "clamp", "kl", "strength"),
    [
        (MEMIT, "gpt2-xl", (13, 17), 20, 0.5, 0.5, 0.75, 0.0625, 20_000),
        (MEMIT, "gpt-j-6b", (3, 8), 25, 0.5, 0.5, 0.75, 0.0625, 15_000),
        (MEMIT, "gpt-neox-20b", (6, 10), 20, 0.5, 0.5, 0.8, 0.0625, 6_000),
        (MEMIT, "llama-3-8b", (4, 8), 25, 0.1, 0.5, 0.75, 0.0625, 15_000),
        (MEMIT, "mistral-7b", (4, 8), 25, 0.5, 1e-3, 4.0, 0.0625, 15_000),
        (PMET, "gpt-j-6b", (3, 8), 30, 0.2, 0.5, 0.75, 1.0, 6_000),
        (PMET, "gpt-neox-20b", (6, 10), 30, 0.5, 0.5, 0.8, 0.8, 15_000),
        (PMET, "llama-2-7b", (4, 8), 20, 0.5, 0.5, 1.0, 0.0625, 15_000),
        (AlphaEdit, "gpt2-xl", (13, 17), 20, 0.5, 0.5, 0.75, 0.0625, 10),
        (AlphaEdit, "llama-3-8b", (4, 8), 25, 0.1, 0.5, 0.75, 0.0625, 10),
        (AlphaEdit, "qwen2.5-7b", (4, 8), 25, 0.5, 1e-3, 4.0, 0.0625, 1),
    ],
)
def test_a_preset_has_the_published_settings(
    kind: type[MEMIT], model: str, layers: tuple, steps: int, rate, decay, clamp, kl, strength
) -> None:
    """The released configurations, by hand."""
    found = kind.preset(model)
    assert found.layers == tuple(range(layers[0], layers[1] + 1)) and found.steps == steps
    assert (found.rate, found.decay, found.clamp, found.kl, found.strength) == (rate, decay, clamp, kl, strength)
    assert kind.preset(model, rate=0.07).rate == 0.07


def test_memits_default_weight_of_old_keys_is_gpt_js_for_as_many_neurons(toy_model: tracer.LanguageModel) -> None:
    moment = EDITORS["MEMIT"].statistics(toy_model, 0, False)[1]
    with EDITORS["MEMIT"].apply(toy_model, REQUESTS[:1]) as edit:
        assert edit.summary["strength"] == pytest.approx(15_000 * len(moment.matrix) / 16_384)


@pytest.mark.parametrize("method", PRESETS)
def test_every_preset_makes_an_editor(method: str) -> None:
    kind = {"ROME": ROME, "MEMIT": MEMIT, "PMET": PMET, "EMMET": EMMET, "AlphaEdit": AlphaEdit}[method]
    assert all(kind.preset(model).written() for model in PRESETS[method])
    with pytest.raises(RequestError, match="No .* settings were published for 'gpt5'"):
        kind.preset("gpt5")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MEMIT(layers=()), "names no layers"),
        (lambda: MEMIT(layers=3), "names no layers"),
        (lambda: MEMIT(layers=(3, 3)), "twice"),
        (lambda: MEMIT(layers=(3,), strength=0.0), "no number above 0. Write strength=15000.0, or None"),
        (lambda: EMMET(layer=3, slack=-1.0), "no number of 0 or more"),
        (lambda: AlphaEdit(layers=(3,), threshold=0.0), "no number above 0"),
        (lambda: AlphaEdit(layers=(3,), threshold="2e-2"), "threshold='2e-2' is no number"),
        (lambda: MEMIT(layers=(3,), strength="1"), "strength='1' is no number"),
        (lambda: EMMET(layer=3, slack=None), "slack=None is no number"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        make()


def test_a_layer_that_is_not_there_is_refused(toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(SiteError, match="has layers 0 to 3"):
        MEMIT(layers=(1, LAYERS)).apply(toy_model, REQUESTS)


@pytest.mark.parametrize(
    ("layer", "n_layers", "expected"),
    [
        (5, 30, (3, 4, 5, 6, 7)),
        (0, 30, (0, 1, 2, 3, 4)),
        (29, 30, (25, 26, 27, 28, 29)),
        (2, 4, (2,)),
        (1, 9, (0, 1, 2)),
    ],
)
def test_layers_around_stay_inside(layer: int, n_layers: int, expected: tuple[int, ...]) -> None:
    assert layers_around(layer, n_layers) == expected


QUICK = {"steps": 3, "context_plan": ((2, 3),), "tokens": 400}


def test_kept_values_serve_every_editor_that_wants_the_same_and_no_other(toy_model, tmp_path) -> None:
    def found(editor) -> list[dict]:
        return [dict(edit.diagnostics[0]) for edit in editor.each(toy_model, REQUESTS, progress=False)]

    first = found(ROME(layer=1, values_folder=tmp_path, **QUICK))
    again = found(ROME(layer=1, variant="rome", values_folder=tmp_path, **QUICK))
    assert not any(record["value_kept"] for record in first) and all(record["value_kept"] for record in again)
    for one, other in zip(first, again, strict=True):
        same = ("nll", "kl", "probability_reached", "value_seconds")
        assert [one[name] for name in same] == [other[name] for name in same]
    for different in ({"layer": 2}, {"layer": 1, "clamp": 2.0}, {"layer": 1, "context_plan": ()}):
        settings = {**QUICK, **different}
        assert not any(record["value_kept"] for record in found(ROME(values_folder=tmp_path, **settings))), different
    toy_model.torch.config.scale_attn_weights = False  # equal weights, another computation
    assert not any(record["value_kept"] for record in found(ROME(layer=1, values_folder=tmp_path, **QUICK)))


def test_answers_of_other_tokens_have_kept_values_of_their_own(toy_model, tmp_path) -> None:
    editor = ROME(layer=1, values_folder=tmp_path, **QUICK)
    for new, known in ((" Paris", False), ("Paris", True), ("\nParis", False), (" Paris ", False), (" Paris", True)):
        (edit,) = editor.each(toy_model, [dataclasses.replace(REQUESTS[0], new=new)], progress=False)
        assert edit.diagnostics[0]["value_kept"] == known, new


def test_values_of_an_edited_model_are_not_kept_and_a_damaged_file_is_found_anew(toy_model, tmp_path) -> None:
    editor = ROME(layer=1, values_folder=tmp_path, **QUICK)
    with ROME(layer=2, **QUICK).apply(toy_model, REQUESTS[:1], progress=False):
        editor.apply(toy_model, REQUESTS[1:2], progress=False).undo()
    assert not list(tmp_path.iterdir())
    plain = editor.apply(toy_model, REQUESTS[:1], progress=False)
    plain.undo()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    (mended,) = editor.each(toy_model, REQUESTS[:1], progress=False)
    assert not mended.diagnostics[0]["value_kept"]
    assert torch.equal(mended.changes[0].delta(toy_model), plain.changes[0].delta(toy_model))
    assert "values_folder" not in mended.editor


@pytest.mark.parametrize("layers", [(), 3, "ab", (1.9, 2.2), (1, 1)])
def test_layers_that_are_no_layers_are_refused(layers) -> None:
    with pytest.raises(RequestError, match="layers="):
        MEMIT(layers=layers)


def test_alphaedit_says_when_the_text_is_too_little_for_a_null_space(toy_model: tracer.LanguageModel) -> None:
    neurons = toy_model.torch.get_parameter(toy_model.anatomy.value_weight_name(1)).numel() // toy_model.d_model
    for tokens, few in ((2 * neurons, True), (6 * neurons, False)):
        editor = AlphaEdit(layers=(1,), **{**QUICK, "tokens": tokens})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            editor.apply(toy_model, REQUESTS, progress=False).undo()
        assert any("count as null" in str(warning.message) for warning in caught) == few


@pytest.mark.filterwarnings("ignore::editing.EditingWarning")
def test_alphaedit_needs_no_inverse_of_its_statistics(toy_model: tracer.LanguageModel) -> None:
    """Fewer keys than neurons and no ridge: C is singular, and its eigenvectors are all that is asked for."""
    with AlphaEdit(layers=(1,), **{**QUICK, "tokens": 100}, ridge=0.0).apply(toy_model, REQUESTS) as edit:
        (told,) = edit.summary["statistics"]
    assert 1e6 < told["condition_number_at_least"] < 1e17


def test_emmet_says_which_requests_have_nearly_one_key(toy_model: tracer.LanguageModel) -> None:
    """In a causal model a subject at the beginning has one key, whatever follows it."""
    said = [
        dataclasses.replace(REQUESTS[0], prompt=f"The Space Needle {rest}", subject_at=None)
        for rest in ("is in", "lies in")
    ]
    for requests, alike in ((said, True), (REQUESTS, False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            EMMET(layer=1, **{**QUICK, "context_plan": ()}).apply(toy_model, requests, progress=False).undo()
        told = [str(one.message) for one in caught if "nearly the key" in str(one.message)]
        assert len(told) == alike and all("2 of 2 requests have" in text for text in told)
