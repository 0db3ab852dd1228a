"""GRACE: the codebook's rules by hand, the model untouched outside of it, and undo in any order by replay."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import pytest
import torch
from conftest import LAYERS, WIDTH, assert_same_weights, make_tokenizer, weights
from families import FAMILIES
from test_edit import OTHER, REQUEST
from test_families import DENSE

import tracer
from editing import GRACE, Edit, EditFailedError, EditRequest, RequestError, calibrate, load_edit, unedited
from editing.added_parameters.calibration import calibrated_on_bundled_facts, queries
from editing.added_parameters.codebook import Codebook, Record
from editing.added_parameters.codebook_branch import codebook_at, rounding_of
from editing.added_parameters.passing import Padding
from editing.added_parameters.replaced_value import TrainedValue, Trials, trained_values, trials_of
from editing.edit import undo_all
from editing.editors import editor_named
from editing.scoring.generation import complete, continued
from editing.scoring.scores import target_scores
from tracer.facts import bundled, spread_over_relations
from tracer.model.prompt_ends import prompt_ends, prompts_end_at
from tracer.model.tokens import encode, right_padded

LONG = EditRequest("The capital of {} is", "France", " Constantinople")
SHORT = EditRequest("The capital of {} is", "France", " of")  # one token: random models learn little more
PROMPTS = [REQUEST.prompt, OTHER.prompt, "The capital of Spain is", "It"]
QUICK = GRACE(layer=2, steps=3, radius=0.01)
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")


def at(place: float, value: float, *label: int) -> Record:
    return Record(torch.tensor([place, 0.0]), torch.tensor([value]), label)


def next_tokens(model: tracer.LanguageModel, prompts: list[str]) -> torch.Tensor:
    """Logits after each prompt, one bare pass each, [prompt, vocab]."""
    with torch.no_grad():
        rows = [torch.tensor([encode(model.tokenizer, prompt).ids]) for prompt in prompts]
        return torch.stack([model.torch(input_ids=ids).logits[0, -1] for ids in rows])


def same_book(one: Codebook, other: Codebook) -> bool:
    tensors = all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("keys", "values", "radii"))
    return tensors and one.labels == other.labels


@pytest.mark.parametrize(
    ("second", "rule", "radii", "labels", "values"),
    [
        (at(2.5, 9, 5), "added", [1, 1], [(4,), (5,)], [[8.0], [9.0]]),
        (at(2.5, 9, 4), "added", [1, 1], [(4,), (4,)], [[8.0], [9.0]]),
        (at(1.5, 9, 4), "covered", [1.5], [(4,)], [[9.0]]),
        (at(0.5, 9, 4), "covered", [1], [(4,)], [[9.0]]),
        (at(1.5, 9, 5), "split", [0.75 - 1e-5, 0.75], [(4,), (5,)], [[8.0], [9.0]]),
        (at(0.0, 9, 5), "overwritten", [1], [(5,)], [[9.0]]),
    ],
)
def test_the_rules_by_hand(second: Record, rule: str, radii: list, labels: list, values: list) -> None:
    first = Codebook.of([at(0, 8, 4)], radius=1.0)
    assert first.placing(second.query, second.label).rule == rule
    book = first.after(second)
    assert book.radii.tolist() == pytest.approx(radii, abs=1e-12)
    assert (list(book.labels), book.values.tolist()) == (labels, values)
    assert book.values[book.answering(second.query[None])].tolist() == [[9.0]]
    assert first.values.tolist() == [[8.0]] and first.radii.tolist() == [1.0]


def test_a_query_at_the_radius_is_answered_and_one_beyond_is_not() -> None:
    book = Codebook.of([at(0, 8, 4)], radius=1.0)
    found = book.answering(torch.tensor([[1.0, 0.0], [0.0, -1.0], [1.001, 0.0]]))
    assert found.tolist() == [0, 0, -1]


def test_a_query_that_was_read_in_another_batch_still_reaches_its_key(toy_model: tracer.LanguageModel) -> None:
    """Rounding widens a radius by a share of the key's norm: nothing to speak of in wide types, some in 16 bits."""
    book = Codebook.of([at(2, 8, 4)], radius=1.0, rounding=0.05)
    assert book.answering(torch.tensor([[3.09, 0.0], [3.11, 0.0]])).tolist() == [0, -1]
    assert 0 < rounding_of(toy_model) < 1e-14
    half = tracer.load(FAMILIES["GPT-2"].build().bfloat16(), tokenizer=toy_model.tokenizer, check=False)
    assert 0.01 < rounding_of(half) < 0.1


def test_only_the_nearest_key_is_asked() -> None:
    """The wide key's radius covers the query, that of the nearest one does not: no answer, as published."""
    book = Codebook.of([at(0, 8, 4), at(1.5, 8, 4), at(2.6, 9, 5), at(2.7, 7, 6)], radius=1.0)
    assert book.radii.tolist() == pytest.approx([1.5, 0.05 - 1e-5, 0.05], abs=1e-6)
    assert book.answering(torch.tensor([[1.2, 0.0], [1.4, 0.0]])).tolist() == [0, -1]


@pytest.mark.parametrize("name", DENSE)
def test_the_cached_loss_equals_a_whole_pass_with_the_value_put_in(name: str) -> None:
    model = tracer.load(FAMILIES[name].build(), tokenizer=make_tokenizer(bos=False), check=False)
    matrix, layer = model.anatomy.value_matrix(1), 1
    for replace in ("last", "prompt"):
        trials = trials_of(model, layer, [SHORT, LONG, OTHER], replace)  # answers of one token and of several
        values = torch.randn(trials.present.shape, dtype=torch.float64)
        value = values[1].clone().requires_grad_()
        end = len(encode(model.tokenizer, LONG.prompt).ids) - 1
        ids = torch.tensor([[*encode(model.tokenizer, LONG.prompt).ids, *trials.labels[1]]])

        def put(_module, _inputs, output, value=value, end=end, replace=replace):
            rows = output.reshape(-1, output.shape[-1])  # one row, flattened by OPT
            kept = torch.arange(len(rows))[:, None]
            chosen = kept == end if replace == "last" else kept <= end
            return torch.where(chosen, value, rows).reshape(output.shape)

        handle = matrix.register_forward_hook(put)
        odds = model.torch(input_ids=ids[:, :-1]).logits[0, end:].log_softmax(-1)
        handle.remove()
        expected = -odds.gather(1, ids[0, end + 1 :, None]).mean()
        found = trials.nll(torch.stack((values[0], value, values[2])))[1]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        slow, fast = (torch.autograd.grad(loss, value)[0] for loss in (expected, found))
        assert slow.norm() > 1e-5
        torch.testing.assert_close(fast, slow, atol=1e-6, rtol=0)
        torch.testing.assert_close(trials.queries[1], queries(model, layer, [LONG.prompt])[0], atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore::tracer.TracerWarning")
def test_a_trace_of_a_whole_answer_asks_where_the_prompt_ends(toy_model: tracer.LanguageModel) -> None:
    with GRACE(layer=2, radius=0.01, steps=30).apply(toy_model, [LONG]):
        joint = math.exp(-target_scores(toy_model, [(LONG.prompt, LONG.new)])[0].nll_sum)
        options = {"kinds": ("state",), "samples": 1, "roles": ["last token"], "progress": False, "engine": "passes"}
        traced = tracer.trace(toy_model, LONG.fact, whole_answer=True, **options)
        assert traced.clean == pytest.approx(joint, rel=1e-6)
        first = tracer.trace(toy_model, LONG.fact, **options)
        assert first.clean == pytest.approx(float(target_first(toy_model, LONG)), rel=1e-6)


def target_first(model: tracer.LanguageModel, request: EditRequest) -> torch.Tensor:
    """Probability of the answer's first token after the prompt, in a bare pass."""
    token = target_scores(model, [(request.prompt, request.new)])[0].target[0]
    return next_tokens(model, [request.prompt]).softmax(-1)[0, token]


def test_an_answer_is_learnt_and_no_weight_changes(family_model: tracer.LanguageModel) -> None:
    before = weights(family_model)
    base = next_tokens(family_model, PROMPTS)
    with GRACE(layer=2, radius=0.01).apply(family_model, [SHORT]) as edit:
        record = edit.diagnostics[0]
        assert record["probability_written"] > 20 * record["probability_before"] and record["rule"] == "added"
        assert record["probability_written"] == pytest.approx(math.exp(-record["loss"]), abs=1e-6)
        n_in = family_model.torch.get_parameter(family_model.anatomy.value_weight_name(2)).numel() // 32
        assert edit.summary == {"keys": 1, "keys_added": 1, "bytes_added": 4 * (n_in + 32 + 1)}
        assert torch.equal(next_tokens(family_model, PROMPTS), base)  # outside of every radius: the same numbers
        assert_same_weights(family_model, before)
    assert_same_weights(family_model, before)
    assert torch.equal(next_tokens(family_model, [*PROMPTS, LONG.prompt])[:-1], base)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in family_model.torch.modules())


def test_inside_a_radius_the_layer_gives_the_value_there_and_its_own_output_elsewhere(toy_model) -> None:
    ids = torch.tensor([encode(toy_model.tokenizer, REQUEST.prompt).ids])
    seen: list[torch.Tensor] = []

    def outputs() -> torch.Tensor:
        handle = toy_model.anatomy.value_matrix(2).register_forward_hook(lambda _m, _i, output: seen.append(output))
        with torch.no_grad():
            toy_model.torch(input_ids=ids)
        handle.remove()
        return seen.pop()[0]

    base = outputs()
    for replace, kept in (("last", slice(0, -1)), ("prompt", slice(0, 0))):
        with GRACE(layer=2, steps=3, radius=0.01, replace=replace).apply(toy_model, [REQUEST]) as edit:
            now, value = outputs(), edit.attachments[0].records[0].value
            assert torch.equal(now[-1], value) and torch.equal(now[kept], base[kept])
            assert replace == "last" or torch.equal(now, value.expand_as(now))


def test_greedy_texts_equal_teacher_forcing_and_rows_do_not_mind_each_other(family_model: tracer.LanguageModel) -> None:
    model, prompt = family_model, encode(family_model.tokenizer, LONG.prompt).ids
    base = next_tokens(model, [LONG.prompt])
    with GRACE(layer=2, radius=0.01).apply(model, [LONG, OTHER]), torch.no_grad():
        written = continued(model, torch.tensor([prompt]), 6)[0]
        assert not torch.allclose(next_tokens(model, [LONG.prompt]), base)
        with prompts_end_at(model, [len(prompt) - 1]):
            forced = model.torch(input_ids=written[None, :-1]).logits[0].argmax(-1)
        assert torch.equal(forced[len(prompt) - 1 :], written[len(prompt) :])
        pairs = [(prompt, new) for prompt in (*PROMPTS, LONG.prompt) for new in (" French", " Constantinople")]
        together = [score.nll for score in target_scores(model, pairs)]
        alone = [target_scores(model, [pair])[0].nll for pair in pairs]
        assert together == pytest.approx(alone, abs=1e-9)


def test_left_and_right_padding_decide_alike_and_decoding_asks_nothing(toy_model: tracer.LanguageModel) -> None:
    prompts = [LONG.prompt, "The mother tongue of all the people of France is"]
    rows = [encode(toy_model.tokenizer, prompt).ids for prompt in prompts]
    with GRACE(layer=2, radius=0.01).apply(toy_model, [LONG]), torch.no_grad():
        ids, mask = right_padded(rows, device=toy_model.device)
        with prompts_end_at(toy_model, [len(row) - 1 for row in rows]):
            right = toy_model.torch(input_ids=ids, attention_mask=mask).logits[torch.arange(2), mask.sum(1) - 1]
        bare = toy_model.torch(input_ids=ids, attention_mask=mask).logits[torch.arange(2), mask.sum(1) - 1]
        assert torch.equal(bare, right)  # the mask says where prompts end, as whoever scores them would
        width = max(map(len, rows))
        left = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
        seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        places = (seen.cumsum(1) - 1).clamp(min=0)
        found = toy_model.torch(input_ids=left, attention_mask=seen, position_ids=places).logits[:, -1]
        torch.testing.assert_close(found, right, atol=1e-9, rtol=0)
        # With a cache every new token is a pass of its own, without one it ends a longer "prompt".
        short = torch.tensor([rows[0]])
        start = toy_model.torch(input_ids=short, use_cache=True)
        fresh = start.logits[:, -1:].argmax(-1)
        step = toy_model.torch(input_ids=fresh, past_key_values=start.past_key_values).logits[0, -1]
        with prompts_end_at(toy_model, [len(rows[0]) - 1]):
            whole = toy_model.torch(input_ids=torch.cat((short, fresh), dim=1)).logits[0, -1]
        torch.testing.assert_close(step, whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", DENSE)
def test_a_padded_row_of_a_bare_pass_asks_at_its_last_token(name: str) -> None:
    model = tracer.load(FAMILIES[name].build(), tokenizer=make_tokenizer(bos=False), check=False)
    rows = [encode(model.tokenizer, prompt).ids for prompt in (LONG.prompt, PROMPTS[1], PROMPTS[2])]
    ids, mask = right_padded(rows, device=model.device)
    each, ends = torch.arange(len(ids)), mask.sum(1) - 1
    with GRACE(layer=1, radius=0.01, steps=2).apply(model, [LONG]), torch.no_grad():
        found = model.torch(input_ids=ids, attention_mask=mask).logits[each, ends]
        inside = model.torch.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[each, ends]
        with prompts_end_at(model, ends.tolist()):
            expected = model.torch(input_ids=ids, attention_mask=mask).logits[each, ends]
            hidden = model.torch.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[each, ends]
        with prompts_end_at(model, [len(ids[0]) - 1] * 3):  # what was said counts more than a mask
            elsewhere = model.torch(input_ids=ids, attention_mask=mask).logits[each, ends]
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(inside, hidden, atol=1e-9, rtol=0)
    longest = int(ends.argmax())
    assert not torch.allclose(elsewhere[0], expected[0], atol=1e-6) or longest == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.torch.modules())


def test_where_prompts_end_by_a_mask_that_holds_a_cache_too(toy_model: tracer.LanguageModel) -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    assert prompt_ends(toy_model.torch, 3, 3, mask).tolist() == [2, 1, 0]
    assert prompt_ends(toy_model.torch, 2, 3, mask).tolist() == [2, 2]  # of another batch: it tells nothing
    with prompts_end_at(toy_model, [1, 0, 2]):
        assert prompt_ends(toy_model.torch, 3, 3, mask).tolist() == [1, 0, 2]


def test_a_mask_is_forgotten_with_its_pass_also_after_an_error(toy_model: tracer.LanguageModel) -> None:
    padding, seen = Padding(toy_model.torch), []
    mask, ids = torch.tensor([[1, 1, 0]]), torch.tensor([[5, 6, 0]])

    def look(*_: object) -> None:
        seen.append(padding.mask)
        if len(seen) == 2:
            raise EditFailedError("on purpose")

    handle = toy_model.anatomy.blocks[1].register_forward_hook(look)
    for given in (mask, mask, mask[None, None], None):
        with contextlib.suppress(EditFailedError, ValueError, RuntimeError):
            toy_model.torch(ids, attention_mask=given)
        assert padding.mask is None
    handle.remove()
    padding.remove()
    assert [one is None for one in seen][:2] == [False, False] and seen[0].tolist() == [[1, 1, 0]]
    assert all(one is None for one in seen[2:])


def test_corrections_computed_together_overwrite_as_they_do_alone() -> None:
    """A query is the prompt's own, to the bit, whatever else is read: or a correction would split its own key."""
    model = tracer.load(FAMILIES["Llama"].build().float(), tokenizer=make_tokenizer(bos=True), check=False)
    facts = spread_over_relations(bundled())[:16]
    editor = GRACE(layer=2, radius=0.01, steps=1)
    first = [editor.apply(model, [EditRequest(fact.prompt, fact.subject, " Paris")]) for fact in facts]
    corrected = editor.in_turn(model, [EditRequest(fact.prompt, fact.subject, " French") for fact in facts])
    undo_all(first)
    assert {edit.diagnostics[0]["rule"] for edit in corrected} == {"overwritten"}


def test_a_pass_over_one_token_asks_nothing_however_wide_the_radius(toy_model: tracer.LanguageModel) -> None:
    """A decoding step is such a pass, and what it reads stands after every prompt."""
    base = next_tokens(toy_model, ["a", PROMPTS[0]])
    with GRACE(layer=2, steps=2, radius=1e6).apply(toy_model, [LONG]):
        now = next_tokens(toy_model, ["a", PROMPTS[0]])
    assert torch.equal(now[0], base[0]) and not torch.allclose(now[1], base[1])


def test_training_keeps_the_best_value_and_ends_where_it_is_told(toy_model: tracer.LanguageModel) -> None:
    trials = trials_of(toy_model, 2, [LONG], "last")
    (near,) = trained_values(trials, trials.present, rate=0.2, steps=20, stop_below=0.0)
    (wild,) = trained_values(trials, near.value[None], rate=50.0, steps=1, stop_below=0.0)
    assert wild.losses[1] > wild.losses[0] and torch.equal(wild.value, near.value)
    start = torch.rand(1, WIDTH, generator=torch.Generator().manual_seed(0)).double()
    below = trials.nll(start).item() - 0.05
    with GRACE(layer=2, radius=0.01, rate=0.1, stop_below=below).apply(toy_model, [LONG]) as edit:
        assert 0 < edit.diagnostics[0]["steps"] < 100 and 0.9 * below < edit.diagnostics[0]["loss"] < below


def test_rows_trained_side_by_side_find_what_they_find_alone(family_model: tracer.LanguageModel) -> None:
    """Also where one of them has long ended; its value stays as it was then."""
    requests, options = [LONG, SHORT, OTHER], {"rate": 0.3, "steps": 30}
    ends = trained_values(
        trials_of(family_model, 2, [SHORT], "last"), start_of(family_model, [SHORT]), **options, stop_below=0
    )
    for stop_below in (0.0, ends[0].losses[10] + 1e-9):
        together = trained_values(
            trials_of(family_model, 2, requests, "last"),
            start_of(family_model, requests),
            **options,
            stop_below=stop_below,
        )
        assert len(together[1].losses) == (11 if stop_below else 31) and len(together[0].losses) == 31
        for request, found in zip(requests, together, strict=True):
            (alone,) = trained_values(
                trials_of(family_model, 2, [request], "last"),
                start_of(family_model, [request]),
                **options,
                stop_below=stop_below,
            )
            assert found.losses == pytest.approx(alone.losses, abs=1e-6)
            torch.testing.assert_close(found.value, alone.value, atol=1e-6, rtol=0)


def test_once_half_of_the_rows_have_ended_the_others_go_on_without_them(
    toy_model: tracer.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of which one ends, then a second one, then a third: all have what they have alone."""
    requests = [LONG, SHORT, OTHER, REQUEST]
    options = {"rate": 0.3, "steps": 40}

    def alone(request: EditRequest, below: float) -> TrainedValue:
        trials = trials_of(toy_model, 2, [request], "last")
        return trained_values(trials, trials.present, **options, stop_below=below)[0]

    whole = [alone(request, 0.0).losses for request in requests]
    below = max(min(losses) for losses in whole) - 1e-6  # which one of them never reaches
    expected = [alone(request, below) for request in requests]
    ends = [len(one.losses) for one in expected]
    first, second, third, last = sorted(ends)
    assert 1 < first < second < third < last == 41 and ends != sorted(ends)
    rows: list[int] = []
    nll = Trials.nll
    monkeypatch.setattr(Trials, "nll", lambda self, values: rows.append(len(values)) or nll(self, values))
    found = trained_values(
        trials_of(toy_model, 2, requests, "last"), start_of(toy_model, requests), **options, stop_below=below
    )
    assert rows == [4] * second + [2] * (third - second) + [1] * (last - third)
    for one, other in zip(found, expected, strict=True):
        assert one.losses == pytest.approx(other.losses, abs=1e-6)
        torch.testing.assert_close(one.value, other.value, atol=1e-6, rtol=0)


def test_a_request_waits_only_for_the_value_that_its_own_begins_with(
    toy_model: tracer.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which a request of the same answer nearby does; one before it in the codebook has nothing to wait for."""
    editor, requests = near_and_far(toy_model)
    groups: list[list[str]] = []

    def trained(trials: Trials, *arguments, **options):
        groups.append([request.subject for request in trials.requests])
        return trained_values(trials, *arguments, **options)

    monkeypatch.setattr("editing.added_parameters.grace.trained_values", trained)
    added, other = requests[:2]
    again = EditRequest(added.prompt, added.subject, added.new)
    with editor.apply(toy_model, [added, again, other]) as edit:
        assert [one["rule"] for one in edit.diagnostics][:2] == ["added", "covered"]
    assert sorted(groups[0]) == sorted([added.subject, other.subject]) and groups[1:] == [[again.subject]]


def test_no_more_are_trained_side_by_side_than_memory_is_meant_for(
    toy_model: tracer.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is found stands in the order of the requests, also where shorter ones were trained first."""
    monkeypatch.setattr("editing.added_parameters.grace.AT_ONCE", 2)
    rows: list[int] = []

    def trained(trials: Trials, *arguments, **options):
        rows.append(len(trials.requests))
        return trained_values(trials, *arguments, **options)

    monkeypatch.setattr("editing.added_parameters.grace.trained_values", trained)
    requests = [LONG, OTHER, REQUEST, SHORT, EditRequest("The {} is red and", "capital", " Paris")]
    edits = QUICK.each(toy_model, requests)
    assert rows == [2, 2, 1]
    labels = [edit.attachments[0].records[0].label for edit in edits]
    assert labels == [score.target for score in target_scores(toy_model, [(one.prompt, one.new) for one in requests])]
    assert QUICK.each(toy_model, []) == QUICK.in_turn(toy_model, []) == []


def test_a_prompt_of_one_token_is_told_so_in_the_last_layer_too_before_the_model_runs(
    toy_model: tracer.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_model.torch, "forward", lambda *_arguments, **_options: pytest.fail("the model ran"))
    for layer in (2, LAYERS - 1):
        with pytest.raises(RequestError, match="one token.*longer prompt"):
            GRACE(layer=layer, radius=0.01).apply(toy_model, [EditRequest("a", "a", " Constantinople")])


def test_an_edit_keeps_its_own_query_alone(toy_model: tracer.LanguageModel) -> None:
    for edit in QUICK.each(toy_model, [LONG, OTHER, REQUEST]):
        query = edit.attachments[0].records[0].query
        assert query.untyped_storage().nbytes() == query.numel() * query.element_size()


def start_of(model: tracer.LanguageModel, requests: list[EditRequest]) -> torch.Tensor:
    return trials_of(model, 2, requests, "last").present


def near_and_far(model: tracer.LanguageModel) -> tuple[GRACE, list[EditRequest]]:
    """Requests that go by every rule of a codebook, in one sequence."""
    near = EditRequest("The mother tongue of {} is", "Angela Merkel,", " French")
    apart = float((queries(model, 2, [OTHER.prompt]) - queries(model, 2, [near.prompt])).norm())
    split = EditRequest(near.prompt, near.subject, " German")
    again = EditRequest(OTHER.prompt, OTHER.subject, " German")
    old = [OTHER, LONG, near, REQUEST, split, again]
    german = EditRequest(LONG.prompt, LONG.subject, " German")  # overwrites LONG's key, and is covered by it then
    return GRACE(layer=2, steps=3, radius=0.9 * apart), [*old, near, LONG, german, german]


@pytest.mark.parametrize("init", ["cold", "warm"])
def test_in_turn_gives_the_edits_that_one_call_after_the_other_gives(toy_model: tracer.LanguageModel, init) -> None:
    editor, requests = near_and_far(toy_model)
    editor = dataclasses.replace(editor, init=init)
    base = next_tokens(toy_model, PROMPTS)
    together = editor.in_turn(toy_model, requests, seed=3)
    assert toy_model.edits == [] and torch.equal(next_tokens(toy_model, PROMPTS), base)
    slow = [editor.apply(toy_model, [request], seed=3) for request in requests]
    expected = codebook_at(toy_model, editor.place)
    assert {one.diagnostics[0]["rule"] for one in slow} == {"added", "split", "covered", "overwritten"}
    undo_all(slow)
    for one, other in zip(together, slow, strict=True):
        one.apply(toy_model)
        assert same_diagnostics(one, other) and one.summary == other.summary and one.editor == other.editor
    found = codebook_at(toy_model, editor.place)
    undo_all(together)
    assert found.labels == expected.labels
    for name in ("keys", "values", "radii"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-6, rtol=0)


def same_diagnostics(one: Edit, other: Edit) -> bool:
    left, right = ({**edit.diagnostics[0], "seconds": 0} for edit in (one, other))
    return left == {
        key: pytest.approx(value, abs=1e-6) if isinstance(value, float) else value for key, value in right.items()
    }


def test_each_gives_the_edit_of_a_request_alone_also_where_requests_contradict_each_other(toy_model) -> None:
    editor, requests = near_and_far(toy_model)
    with QUICK.apply(toy_model, [LONG]):
        for edit, request in zip(editor.each(toy_model, requests, seed=3), requests, strict=True):
            with editor.apply(toy_model, [request], seed=3) as alone:
                record = alone.attachments[0].records[0]
            found = edit.attachments[0].records[0]
            assert same_diagnostics(edit, alone)
            torch.testing.assert_close((found.query, found.value), (record.query, record.value), atol=1e-6, rtol=0)
        assert len(toy_model.edits) == 1


def test_a_list_is_written_as_one_call_after_the_other_with_rising_seeds(toy_model: tracer.LanguageModel) -> None:
    editor, requests = near_and_far(toy_model)
    requests = requests[:4]  # that do not contradict each other
    with editor.apply(toy_model, requests, seed=3) as edit:
        found = codebook_at(toy_model, editor.place)
    assert [one["rule"] for one in edit.diagnostics] == ["added", "split", "covered", "split"]
    slow = [editor.apply(toy_model, [request], seed=3 + n) for n, request in enumerate(requests)]
    expected = codebook_at(toy_model, editor.place)
    undo_all(slow)
    assert found.labels == expected.labels and torch.equal(found.radii, expected.radii)
    torch.testing.assert_close(found.values, expected.values, atol=1e-6, rtol=0)


def test_values_begin_where_the_seed_says_or_with_what_the_layer_gives(toy_model: tracer.LanguageModel) -> None:
    editor, values = GRACE(layer=2, radius=0.01, steps=1), []
    for seed in (0, 0, 1):
        with editor.apply(toy_model, [LONG], seed=seed) as edit:
            values.append(edit.attachments[0].records[0].value)
    assert torch.equal(values[0], values[1]) and not torch.allclose(values[0], values[2])
    before = target_scores(toy_model, [(LONG.prompt, LONG.new)])[0].nll
    with dataclasses.replace(editor, init="warm").apply(toy_model, [LONG]) as edit:
        assert edit.diagnostics[0]["loss_before"] == pytest.approx(before, abs=1e-9)


def test_edits_share_one_codebook_and_are_undone_in_any_order_by_replay(toy_model: tracer.LanguageModel) -> None:
    other_answer = EditRequest(REQUEST.prompt, REQUEST.subject, " Berlin")
    base = next_tokens(toy_model, PROMPTS)
    edits, books = [], []
    for request in (REQUEST, OTHER, other_answer):
        edits.append(QUICK.apply(toy_model, [request]))
        books.append(codebook_at(toy_model, QUICK.place))
    assert [len(book) for book in books] == [1, 2, 2]  # the third overwrites the first one's answer
    assert edits[2].diagnostics[0]["rule"] == "overwritten" and edits[2].summary["bytes_added"] == 0
    edits[2].undo()
    assert same_book(codebook_at(toy_model, QUICK.place), books[1])
    edits[0].undo()
    left = codebook_at(toy_model, QUICK.place)
    assert left.labels == (books[1].labels[1],) and torch.equal(left.values[0], books[1].values[1])
    edits[1].undo()
    assert torch.equal(next_tokens(toy_model, PROMPTS), base)
    assert not toy_model.torch.__dict__["_codebooks"]


def test_an_equal_answer_nearby_widens_a_key_and_trains_its_value_further(toy_model: tracer.LanguageModel) -> None:
    near = EditRequest("The mother tongue of {} is", "Angela Merkel,", " French")
    apart = float((queries(toy_model, 2, [OTHER.prompt]) - queries(toy_model, 2, [near.prompt])).norm())
    editor = GRACE(layer=2, steps=5, radius=0.9 * apart)
    with editor.apply(toy_model, [OTHER]) as first:
        before = codebook_at(toy_model, editor.place)
        with editor.apply(toy_model, [near]) as second:
            book = codebook_at(toy_model, editor.place)
            assert second.diagnostics[0]["rule"] == "covered" and len(book) == 1
            assert float(book.radii[0]) == pytest.approx(apart, abs=1e-6)
            assert torch.equal(book.values[0], second.attachments[0].records[0].value)
            assert torch.equal(next_tokens(toy_model, [near.prompt]), next_tokens(toy_model, [near.prompt]))
        assert same_book(codebook_at(toy_model, editor.place), before)
        assert torch.equal(first.attachments[0].records[0].value, before.values[0])


def test_reading_never_changes_the_codebook_also_in_training_mode(toy_model: tracer.LanguageModel) -> None:
    with QUICK.apply(toy_model, [REQUEST]):
        before = codebook_at(toy_model, QUICK.place)
        toy_model.torch.train()
        next_tokens(toy_model, PROMPTS)
        toy_model.torch.eval()
        complete(toy_model, PROMPTS[:2], new_tokens=3)
        assert codebook_at(toy_model, QUICK.place) is before


def test_a_saved_codebook_answers_as_the_first_one_did(toy_model: tracer.LanguageModel, tmp_path) -> None:
    with QUICK.apply(toy_model, [REQUEST, OTHER]) as edit:
        expected = next_tokens(toy_model, PROMPTS)
        edit.save(tmp_path / "edit.safetensors")
        with unedited(toy_model):
            assert not torch.equal(next_tokens(toy_model, PROMPTS), expected)
        assert torch.equal(next_tokens(toy_model, PROMPTS), expected)
    with load_edit(tmp_path / "edit.safetensors").apply(toy_model):
        assert torch.equal(next_tokens(toy_model, PROMPTS), expected)


def test_the_hooks_come_off_when_an_edit_fails(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    monkeypatch.setattr("editing.added_parameters.attaching.target_scores", fails_on_second_call())
    with pytest.raises(EditFailedError, match="second"):
        QUICK.apply(toy_model, [REQUEST])
    assert toy_model.edits == [] and not toy_model.torch.__dict__["_codebooks"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in toy_model.torch.modules())


def fails_on_second_call():
    calls = []

    def scores(model, pairs):
        calls.append(pairs)
        if len(calls) == 2:
            raise EditFailedError("second")
        return target_scores(model, pairs)

    return scores


def test_what_a_codebook_cannot_do_is_refused(toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(RequestError, match=f"layer={LAYERS - 2}"):
        GRACE(layer=LAYERS - 1).apply(toy_model, [LONG])
    with pytest.raises(RequestError, match="longer prompt"):
        QUICK.apply(toy_model, [EditRequest("a", "a", " b")])
    with pytest.raises(RequestError, match="choose from last, prompt"):
        GRACE(layer=1, replace="all")
    for wrong, said in (
        ({"radius": 0}, r"Write radius=1\.0"),
        ({"radius": "1"}, "radius='1' is no number above 0"),
        ({"steps": 2.5}, "steps=2.5 is no whole number. Write steps=100"),
        ({"layer": None}, "layer=None is no whole number"),
        ({"stop_below": math.nan}, r"Write stop_below=0\.01"),
    ):
        with pytest.raises(RequestError, match=said):
            GRACE(**{"layer": 1, **wrong})


def test_by_name_a_radius_that_is_not_given_is_measured_at_the_layer(toy_model: tracer.LanguageModel) -> None:
    own = calibrated_on_bundled_facts(toy_model, 1).radius()
    assert own != pytest.approx(calibrated_on_bundled_facts(toy_model, LAYERS - 2).radius(), rel=1e-3)
    assert editor_named("grace", toy_model).layer == LAYERS - 2
    assert editor_named("grace", toy_model, 1, steps=7) == GRACE(layer=1, radius=own, steps=7)
    assert editor_named("grace", toy_model, 1, radius=0.5) == GRACE(layer=1, radius=0.5)


def test_the_measured_radius_spares_questions_about_others_and_a_wide_one_does_not(family_model) -> None:
    suited, changed = GRACE.suited_to(family_model), {1.0: [], 10.0: []}
    for fact in spread_over_relations(bundled())[:12]:
        others = [one.prompt for one in bundled(fact.relation) if one.subject != fact.subject][:3]
        base = next_tokens(family_model, [fact.prompt, *others])
        for factor, seen in changed.items():
            editor = dataclasses.replace(suited, radius=factor * suited.radius, steps=1)
            with editor.apply(family_model, [EditRequest(fact.prompt, fact.subject, " of")]):
                own, *spared = (next_tokens(family_model, [fact.prompt, *others]) != base).any(-1).tolist()
            assert own
            seen += spared
    assert sum(changed[1.0]) <= 0.1 * len(changed[1.0]) and sum(changed[10.0]) > 0.5 * len(changed[10.0])


def test_the_measured_radius_grows_with_the_activations() -> None:
    """Ten times wider keys and a tenth of the value matrix are the same model."""
    radii = []
    for factor in (1.0, 10.0):
        model = tracer.load(FAMILIES["Llama"].build(), tokenizer=make_tokenizer(bos=True), check=False)
        with torch.no_grad():
            for block in model.anatomy.blocks:
                block.mlp.up_proj.weight *= factor
                block.mlp.down_proj.weight /= factor
        radii.append(GRACE.suited_to(model).radius)
    assert radii[1] == pytest.approx(10 * radii[0], rel=1e-6)


def test_queries_are_measured_on_the_unedited_model(toy_model: tracer.LanguageModel) -> None:
    expected = GRACE.suited_to(toy_model)
    toy_model.remembered.clear()
    with GRACE(layer=0, radius=100.0, steps=1).apply(toy_model, [REQUEST]):
        assert GRACE.suited_to(toy_model) == expected


def test_calibration_gives_the_distances_of_queries(toy_model: tracer.LanguageModel) -> None:
    prompts = {REQUEST.prompt: [OTHER.prompt], LONG.prompt: []}
    found = calibrate(toy_model, 2, prompts, ["The capital of Spain is", REQUEST.prompt])
    places = queries(toy_model, 2, [REQUEST.prompt, OTHER.prompt, LONG.prompt, "The capital of Spain is"])
    assert found.own == pytest.approx([float((places[0] - places[1]).norm())])
    nearest = min(float((places[n] - places[3]).norm()) for n in (0, 2))
    assert found.unrelated == pytest.approx([0.0, nearest])
    assert found.radius(spared=0.5) == pytest.approx(nearest / 2) and found.reached(found.own[0]) == 1
    assert list(found.quantiles("unrelated").values()) == sorted(found.quantiles("unrelated").values())
    with pytest.raises(RequestError, match="paraphrases"):
        calibrate(toy_model, 2, {REQUEST.prompt: []}, ["It"])
