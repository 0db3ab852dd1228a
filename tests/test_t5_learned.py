"""MEND and KnowledgeEditor on an encoder-decoder: gradients of both stacks, drift of the decoder, training, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoder_decoders import LAYERS, LIES_IN, WAYS, tiny_t5
from remembering import same_states, states
from test_mend import with_new_network
from transformers import PreTrainedTokenizerFast

import tracer
from editing import KE, MEND, EditRequest, RequestError, TrainingPlan, TrainingRecord, load_edit
from editing.meta_learning.learned import Learned
from editing.meta_learning.matrices import feed_forward_weights, lowest_layer, sizes
from editing.meta_learning.side_terms import SideTerm, edited
from editing.meta_learning.texts import texts_of
from editing.scoring.generation import complete
from editing.scoring.scores import target_scores

CITIES = [city for city in LIES_IN if city != "Paris"]
ASKED = [
    EditRequest(WAYS[0].format(city), city, new) for city in CITIES for new in LIES_IN.values() if new != LIES_IN[city]
]
EDITORS: dict[str, Learned] = {
    "MEND": MEND(blocks=1, rank=32, rate=3e-3, step=3e-2, step_rate=1e-2),
    "KE": KE(
        **{"blocks": 1, "hidden": 16, "condition": 32, "inner": 16, "answer_tokens": 3},
        **{"rate": 1e-2, "warm_up": 5, "margin": 0.3, "largest": 10.0},
    ),
}


@pytest.fixture(params=[False, True], ids=["classic", "gated"])
def random_t5(request: pytest.FixtureRequest, closing: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    return tracer.load(tiny_t5(len(closing), gated=request.param).double(), tokenizer=closing, check=False)


def records() -> list[TrainingRecord]:
    """Both ways to ask for each city, each other country, and another city that must stay where it is."""
    found = []
    for at, city in enumerate(LIES_IN):
        for new in LIES_IN.values():
            for way, other in (WAYS, WAYS[::-1]):
                neighbour = [one for one in LIES_IN if one != city][(at + len(found)) % 3]
                texts = (way.format(city), city, new, (other.format(city),), way.format(neighbour), LIES_IN[neighbour])
                found += [TrainingRecord(*texts)] if new != LIES_IN[city] else []
    return found


def labelled_loss(model: tracer.LanguageModel, request: EditRequest) -> torch.Tensor:
    """The model's own loss of the answer behind the sentinel, which is given."""
    read = model.tokenizer(request.prompt, return_tensors="pt").input_ids
    labels = model.tokenizer(f"<extra_id_0> {request.new}", add_special_tokens=False, return_tensors="pt").input_ids
    written = torch.tensor([[0, *labels[0, :-1].tolist()]])
    labels[0, 0] = -100
    return model.torch(input_ids=read, decoder_input_ids=written, labels=labels).loss


@pytest.mark.filterwarnings("ignore::editing.EditingWarning")
def test_without_norms_an_untrained_edit_is_one_gradient_step_in_both_stacks(random_t5: tracer.LanguageModel) -> None:
    """The shorter request is padded in both stacks."""
    requests = [
        EditRequest(WAYS[0].format("Paris"), "Paris", "Italy"),
        EditRequest(WAYS[1].format("the old city of Bonn"), "Bonn", "a much longer answer"),
    ]
    editor = with_new_network(MEND(blocks=1, rank=4, step=0.01, normalise=False), random_t5)
    stacks = [name.partition(".")[0] for name in editor.weights]
    assert stacks.count("encoder") == stacks.count("decoder") == len(stacks) / 2
    assert not any("Attention" in name for name in editor.weights) and lowest_layer(random_t5, editor.weights) == 1
    parameters = [random_t5.torch.get_parameter(name) for name in editor.weights]
    total = sum(labelled_loss(random_t5, request) for request in requests)
    wanted = dict(zip(editor.weights, torch.autograd.grad(total, parameters), strict=True))
    with editor.apply(random_t5, requests) as edit:
        for change in edit.changes:
            assert wanted[change.weight].abs().max() > 1e-6
            torch.testing.assert_close(change.out @ change.into.T, -0.01 * wanted[change.weight], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [1, LAYERS], ids=["from the encoder", "from the decoder"])
def test_the_drift_is_the_divergence_at_the_decoders_tokens(random_t5: tracer.LanguageModel, layer: int) -> None:
    """Of two texts of other lengths, one change each; padding counts for nothing."""
    pairs = [(WAYS[0].format("Paris"), "France"), (WAYS[1].format("all the cities of Bonn"), "a b c d")]
    (weight,) = [name for name in feed_forward_weights(random_t5, 1) if name.startswith("decoder") and "wo" in name]
    n, m = sizes(random_t5, [weight])[weight]
    generator = torch.Generator().manual_seed(0)
    term = SideTerm(*(torch.randn(2, 1, width, generator=generator, dtype=torch.float64) for width in (m, n)))
    module = random_t5.torch.get_submodule(weight.removesuffix(".weight"))
    texts = texts_of(random_t5, layer, pairs).kept()
    with edited({weight: module}, {weight: term}):
        found = texts.drift()
    for row, pair in enumerate(pairs):
        rows: list[torch.Tensor] = []
        for scale in (0.0, 1.0):
            own = SideTerm(scale * term.out[row : row + 1], term.into[row : row + 1])
            with edited({weight: module}, {weight: own}), torch.no_grad():
                read = random_t5.tokenizer(pair[0], return_tensors="pt").input_ids
                labels = random_t5.tokenizer(f"<extra_id_0> {pair[1]}", add_special_tokens=False).input_ids
                written = torch.tensor([[0, *labels[:-1]]])
                rows.append(random_t5.torch(input_ids=read, decoder_input_ids=written).logits[0].log_softmax(-1))
        wanted = (rows[0].exp() * (rows[0] - rows[1])).sum(-1).mean()
        assert found[row].item() == pytest.approx(wanted.item(), abs=1e-10) and wanted > 1e-4


@pytest.mark.parametrize("name", EDITORS)
def test_a_trained_editor_writes_facts_and_spares_others(
    knowing: tracer.LanguageModel, name: str, tmp_path: Path
) -> None:
    """Of the cities it learnt on: every answer is said, in other words too; nearly all other cities stay."""
    about: dict[bool, list[TrainingRecord]] = {True: [], False: []}
    for record in records():
        about[record.subject in CITIES].append(record)
    plan = TrainingPlan(steps=40, batch=8, together=8, every=20)
    editor = EDITORS[name].fit(knowing, about[True], held_out=about[False], plan=plan)
    editor.save(tmp_path / "editor.safetensors")
    again, before = type(editor).load(tmp_path / "editor.safetensors"), states(knowing)
    stay, kept = [], 0
    for request in ASKED:
        others = [
            (way.format(city), country) for way in WAYS for city, country in LIES_IN.items() if city != request.subject
        ]
        said = [(way.format(request.subject), request.new) for way in WAYS]
        with editor.apply(knowing, [request]) as edit:
            written = target_scores(knowing, [*said, *others])
            assert all(score.tf_exact for score in written[:2])
            assert complete(knowing, [request.prompt], new_tokens=6)[0].strip() == request.new
            kept += sum(score.tf_exact for score in written[2:])
            stay += others
        assert same_states(knowing, before)
    assert kept > 0.8 * len(stay)
    edit.save(tmp_path / "edit.safetensors")
    with load_edit(tmp_path / "edit.safetensors").apply(knowing):
        assert target_scores(knowing, [*said, *others]) == written
    with again.apply(knowing, [ASKED[-1]]):
        assert target_scores(knowing, [*said, *others]) == written
    assert same_states(knowing, before)


def test_more_blocks_than_a_stack_has_are_refused(knowing: tracer.LanguageModel) -> None:
    with pytest.raises(RequestError, match=f"blocks=3, but .* has {LAYERS}"):
        feed_forward_weights(knowing, 3)
    with pytest.raises(RequestError, match="is in no block"):
        lowest_layer(knowing, ["shared.weight"])
