"""Every family with a matrix to write to: what is asked for is what is written, and undo gives the bits back."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_same_weights, make_tokenizer, weights
from families import FAMILIES
from test_families import DENSE, POST_NORM

import tracer
from editing import EMMET, MEMIT, PMET, ROME, AlphaEdit, EditRequest
from editing.locate_then_edit.keys import read_keys
from editing.locate_then_edit.rows import request_rows
from tracer.errors import NumericsError

REQUESTS = [
    EditRequest("The Louvre is in", subject="The Louvre", new=" Rome"),
    EditRequest("The mother tongue of Angela Merkel is", subject="Angela Merkel", new=" French"),
]
QUICK = {"context_plan": (), "tokens": 200, "steps": 4, "ridge": 1e-4}
FIRM = (  # all of the residual is written, in one layer
    MEMIT(layers=(1,), strength=1e-9, **QUICK),
    EMMET(layer=1, slack=0.0, **QUICK),
    PMET(layers=(1,), strength=1e-9, **QUICK),
)
GEMMA_2 = "Gemma 2"  # its softmax is in float32, whose mask in a float64 model is minus infinity: NaN in padding
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")


def opened(family: str) -> tracer.LanguageModel:
    """A tiny model of the family, float64 where that gives numbers."""
    model = FAMILIES[family].build()
    return tracer.load(model.float() if family == GEMMA_2 else model, tokenizer=make_tokenizer(bos=True), check=False)


@pytest.mark.parametrize("family", [*DENSE, GEMMA_2])
def test_rome_makes_the_matrix_give_the_value_at_the_key_and_undo_is_exact(family: str) -> None:
    model, editor = opened(family), ROME(layer=1, **QUICK)
    before = weights(model)
    (value,) = editor.values(model, REQUESTS[:1], 0)
    with editor.apply(model, REQUESTS[:1]):
        written = read_keys(model, request_rows(model, REQUESTS[:1], ("",)), 1).outputs[0, 0].double()
    close = 1e-4 if family == GEMMA_2 else 1e-9
    torch.testing.assert_close(written, value.wanted, atol=close * float(value.wanted.norm()), rtol=0)
    assert_same_weights(model, before)


@pytest.mark.parametrize("family", [name for name in (*DENSE, GEMMA_2) if name != POST_NORM])
def test_methods_for_many_facts_close_the_gap_and_undo_is_exact(family: str) -> None:
    model = opened(family)
    before = weights(model)
    for editor in FIRM:
        with editor.apply(model, REQUESTS) as edit:
            for record in edit.diagnostics:
                gap = (1e-4 + 1e-3 * (family == GEMMA_2)) * record["residual_before"]
                assert record["residual_after"] < gap, type(editor).__name__
        assert_same_weights(model, before)


def test_a_norm_after_the_sum_keeps_the_gap_open_but_undo_is_exact() -> None:
    model = opened(POST_NORM)
    before = weights(model)
    for editor in (*FIRM, AlphaEdit(layers=(1,), **QUICK)):
        with editor.apply(model, REQUESTS) as edit:
            assert not torch.equal(model.torch.get_parameter(edit.changes[0].weight), before[edit.changes[0].weight])
        assert_same_weights(model, before)


@pytest.mark.parametrize("family", [name for name in (*DENSE, GEMMA_2) if name != POST_NORM])
def test_alphaedit_moves_towards_the_values_in_every_family_and_undo_is_exact(family: str) -> None:
    """What lies outside the null space is not written, so the gap need not close."""
    model = opened(family)
    before = weights(model)
    with AlphaEdit(layers=(1,), **QUICK).apply(model, REQUESTS) as edit:
        for record in edit.diagnostics:
            assert record["residual_after"] < record["residual_before"]
    assert_same_weights(model, before)


def test_a_layer_that_puts_out_nan_is_said_before_anything_is_written() -> None:
    model = tracer.load(FAMILIES[GEMMA_2].build(), tokenizer=make_tokenizer(bos=True), check=False)
    longer = EditRequest("Everybody knows that the mother tongue of Angela Merkel is", "Angela Merkel", " French")
    before = weights(model)
    for editor in (ROME(layer=3, **QUICK), MEMIT(layers=(2, 3), **QUICK), AlphaEdit(layers=(3,), **QUICK)):
        with pytest.raises(NumericsError, match='dtype="float32"'):
            editor.apply(model, [REQUESTS[0], longer]).undo()
    assert_same_weights(model, before)


def test_dead_neurons_do_not_keep_facts_from_being_written() -> None:
    """ReLU models have neurons that never fire: their key statistics are singular."""
    model = opened("OPT")
    matrix = model.torch.get_parameter("model.decoder.layers.1.fc1.bias")
    with torch.no_grad():
        matrix[:16] = -1e3  # a third of the neurons
    for editor in (ROME(layer=1, **QUICK), MEMIT(layers=(1,), **QUICK), EMMET(layer=1, **QUICK)):
        moment = editor.statistics(model, 0, False)[1]
        assert moment.report()["dead_neurons"] >= 16
        with editor.apply(model, REQUESTS) as edit:
            written = edit.changes[0].into
            assert torch.isfinite(written).all() and written[:16].abs().max() == 0
            assert all(record["probability_written"] > record["probability_before"] for record in edit.diagnostics)
