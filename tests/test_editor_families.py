"""Every family with a matrix to write to: what is asked for is what is written, and undo gives the bits back."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tokenizer
from families import FAMILIES
from test_families import DENSE, POST_NORM

import tracer
from editing import MEMIT, ROME, EditRequest

REQUESTS = [
    EditRequest("The Louvre is in", subject="The Louvre", new=" Rome"),
    EditRequest("The mother tongue of Angela Merkel is", subject="Angela Merkel", new=" French"),
]
QUICK = {"context_plan": (), "tokens": 200, "steps": 4, "ridge": 1e-4}
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")


@pytest.mark.parametrize("dense", DENSE)
def test_the_gap_is_closed_and_undo_is_exact(dense: str) -> None:
    model = tracer.load(FAMILIES[dense].build(), tokenizer=make_tokenizer(bos=True), check=False)
    before = {name: tensor.clone() for name, tensor in model.torch.state_dict().items()}
    for editor in (ROME(layer=1, **QUICK), MEMIT(layers=(1,), strength=1e-9, **QUICK)):
        with editor.apply(model, REQUESTS) as edit:
            assert not torch.equal(model.torch.get_parameter(edit.changes[0].weight), before[edit.changes[0].weight])
            for record in edit.diagnostics if dense != POST_NORM else ():
                assert record.get("residual_after", 0.0) < 1e-4 * record.get("residual_before", 1.0)
        for name, tensor in model.torch.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def test_dead_neurons_do_not_keep_facts_from_being_written() -> None:
    """ReLU models have neurons that never fire: their key statistics are singular."""
    model = tracer.load(FAMILIES["OPT"].build(), tokenizer=make_tokenizer(bos=True), check=False)
    matrix = model.torch.get_parameter("model.decoder.layers.1.fc1.bias")
    with torch.no_grad():
        matrix[:16] = -1e3  # a third of the neurons
    for editor in (ROME(layer=1, **QUICK), MEMIT(layers=(1,), **QUICK)):
        moment = editor.statistics(model, 0, False)[1]
        assert moment.report()["dead_neurons"] >= 16
        with editor.apply(model, REQUESTS) as edit:
            written = edit.changes[0].into
            assert torch.isfinite(written).all() and written[:16].abs().max() == 0
            assert all(record["probability_written"] > record["probability_before"] for record in edit.diagnostics)
