"""Knowledge neurons: completeness of the attributions, who is chosen, and that only chosen columns change."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import assert_same_weights, make_tokenizer, weights
from families import FAMILIES
from test_edit import OTHER
from test_families import DENSE, POST_NORM

import tracer
from editing import EditingWarning, EditRequest, RequestError, load_edit
from editing.locate_then_edit.integrated_gradients import attributions, quadrature
from editing.locate_then_edit.kn import KN, PRESETS
from editing.locate_then_edit.knowledge_neurons import (
    Coarse,
    coarse_neurons,
    fitting_share,
    of_the_relation,
    probability,
    questions,
    refined,
)
from editing.locate_then_edit.value_slots import answer_embedding
from tracer.anatomy import is_stored_transposed
from tracer.errors import AnatomyError

REQUEST = EditRequest("The Space Needle is located in the city of", "The Space Needle", " Paris", true=" Rome")
QUICK = {"nodes": 4, "threshold": 0.5, "ways": {REQUEST.prompt: (), OTHER.prompt: ()}}
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")


def columns(model: tracer.LanguageModel, layer: int) -> torch.Tensor:
    """W as [d_model, d_mlp], whatever way it is stored."""
    module = model.anatomy.value_matrix(layer)
    return (module.weight.T if is_stored_transposed(module) else module.weight).detach().clone()


def answer_probability(model: tracer.LanguageModel, question, factor: float, layer: int) -> float:
    """P(y) of a one-token answer by a whole pass, one layer's neurons times `factor` at the last token."""

    def scale(_module, inputs):
        keys = inputs[0].clone()
        keys.reshape(1, -1, keys.shape[-1])[:, -1] *= factor
        return (keys,)

    handle = model.anatomy.value_matrix(layer).register_forward_pre_hook(scale)
    with torch.no_grad():
        logits = model.torch(torch.tensor([question.ids[: question.n_prompt]])).logits[0, -1]
    handle.remove()
    return float(logits.softmax(-1)[question.ids[question.n_prompt]])


@pytest.mark.parametrize("name", DENSE)
def test_attributions_add_up_to_what_a_layers_neurons_do(name: str) -> None:
    """Completeness, sum_i Attr_i = P(w) - P(0), in every layer of every family.

    ReLU has kinks, and eager float32 softmax (GPT-Neo and others) rounds: there the sum is less near.
    """
    model = tracer.load(FAMILIES[name].build(), tokenizer=make_tokenizer(bos=False), check=False)
    (question,) = questions(model, [REQUEST.prompt], None)
    found = attributions(model, question.ids, question.n_prompt, nodes=300)
    for layer, each in enumerate(found):
        difference = answer_probability(model, question, 1, layer) - answer_probability(model, question, 0, layer)
        assert float(each.sum()) == pytest.approx(difference, abs=5e-4 if "OPT" in name else 5e-6), layer
    assert max(abs(float(each.sum())) for each in found) > 1e-2


@pytest.mark.parametrize("name", ["Gemma 3", "OLMo-2"])
def test_twenty_points_are_enough_where_a_norm_follows(name: str) -> None:
    model = tracer.load(FAMILIES[name].build(), tokenizer=make_tokenizer(bos=False), check=False)
    (question,) = questions(model, [REQUEST.prompt], None)
    few, many = (attributions(model, question.ids, question.n_prompt, nodes=nodes) for nodes in (20, 100))
    for each, other in zip(few, many, strict=True):
        torch.testing.assert_close(each, other, atol=1e-3 * max(float(o.abs().max()) for o in many), rtol=0)


def test_the_left_sum_of_the_paper_is_near_only_in_the_limit(toy_model: tracer.LanguageModel) -> None:
    (question,) = questions(toy_model, [REQUEST.prompt], None)
    whole = answer_probability(toy_model, question, 1, 1) - answer_probability(toy_model, question, 0, 1)
    errors = {}
    for rule, nodes in (("gauss-legendre", 20), ("left", 20), ("left", 40)):
        found = attributions(toy_model, question.ids, question.n_prompt, nodes=nodes, rule=rule)[1]
        errors[rule, nodes] = abs(float(found.sum()) - whole)
    assert errors["gauss-legendre", 20] < 1e-6 < errors["left", 20]
    assert errors["left", 40] == pytest.approx(errors["left", 20] / 2, rel=0.1)


def test_a_quadrature_integrates_polynomials() -> None:
    points, weights = quadrature(3, "gauss-legendre")
    for power in range(6):
        assert float(weights @ points**power) == pytest.approx(1 / (power + 1), abs=1e-14)
    points, weights = quadrature(4, "left")
    assert points.tolist() == [0, 0.25, 0.5, 0.75] and weights.tolist() == [0.25] * 4


def test_an_answer_of_several_tokens_is_the_mean_over_its_tokens(family_model: tracer.LanguageModel) -> None:
    (question,) = questions(family_model, [REQUEST.prompt], " Constantinople")
    assert len(question.answer_ids) > 1
    whole = attributions(family_model, question.ids, question.n_prompt, nodes=3)
    parts = [
        attributions(family_model, question.ids[: at + 1], at, nodes=3)
        for at in range(question.n_prompt, len(question.ids))
    ]
    for layer, each in enumerate(whole):
        mean = torch.stack([part[layer] for part in parts]).mean(0)
        torch.testing.assert_close(each, mean, atol=1e-12, rtol=0)


def test_an_answer_not_given_is_what_the_model_predicts(toy_model: tracer.LanguageModel) -> None:
    first, second = questions(toy_model, [REQUEST.prompt, "In other words, it is in"], None)
    ids = toy_model.tokenizer(REQUEST.prompt, return_tensors="pt").input_ids
    assert list(first.answer_ids) == toy_model.torch(ids).logits[0, -1:].argmax(-1).tolist()
    assert second.answer_ids == first.answer_ids


def test_coarse_neurons_exceed_a_share_of_the_largest_attribution(toy_model: tracer.LanguageModel) -> None:
    asked = questions(toy_model, [REQUEST.prompt], " Rome")
    found = attributions(toy_model, asked[0].ids, asked[0].n_prompt, nodes=4)
    coarse = coarse_neurons(toy_model, asked, threshold=0.3, nodes=4, rule="gauss-legendre")
    largest = max(float(each.max()) for each in found)
    expected = {(layer, at) for layer, each in enumerate(found) for at in range(len(each)) if each[at] > 0.3 * largest}
    assert coarse.neurons == (frozenset(expected),) and 0 < len(expected) < 50
    assert coarse.attribution[min(expected)] == float(found[min(expected)[0]][min(expected)[1]])


def test_refined_neurons_are_shared_by_prompts() -> None:
    a, b, c = (0, 1), (0, 2), (3, 4)
    ten = [{a, b}] * 6 + [{a}] + [{c}] * 3
    assert refined(ten, 0.7) == {a}
    assert refined(ten, 0.6) == {a, b}
    assert refined(ten, 0.1) == {a, b, c}
    assert refined([{a, b}, {a}, {a, c}, {c}], 0.5) == {a}  # in half of them, but at least three
    assert refined([{a, b}, {a}], 0.1) == {a}  # all, where there are fewer than three
    assert refined([{a, b}], 0.9) == {a, b}


def test_the_share_moves_until_a_fact_keeps_few_neurons() -> None:
    many = [(0, n) for n in range(8)]
    sets = tuple(frozenset(many[: 8 - n // 2]) for n in range(10))  # 8 8 7 7 6 6 5 5 4 4
    fact = Coarse(sets, {})
    assert len(refined(sets, 0.7)) == 5 and fitting_share([fact], 0.7, (2, 5)) == 0.7
    assert fitting_share([fact], 0.4, (2, 5)) == pytest.approx(0.65)
    assert fitting_share([fact], 0.4, None) == 0.4
    empty = Coarse((frozenset(),) * 10, {})
    assert fitting_share([empty], 0.7, (2, 5)) == pytest.approx(0.4)  # six moves
    assert fitting_share([Coarse((frozenset(many),), {})], 0.7, (2, 5)) == 0.7  # one prompt: no share helps


def test_neurons_of_the_relation_are_those_of_many_other_facts() -> None:
    others = [{(0, 1)}, {(0, 1), (2, 2)}] + [set()] * 8
    assert of_the_relation(others, 0.1) == {(0, 1)}
    assert of_the_relation([], 0.1) == set()


@pytest.mark.parametrize("variant", ["update", "erase"])
def test_only_the_columns_of_the_chosen_neurons_change(family_model: tracer.LanguageModel, variant: str) -> None:
    before, old = weights(family_model), [columns(family_model, layer) for layer in range(family_model.n_layers)]
    edit = KN(variant=variant, **QUICK).apply(family_model, [REQUEST])
    chosen = {(layer, at) for layer, at, _ in edit.diagnostics[0]["neurons"]}
    changed = set()
    for layer, was in enumerate(old):
        now = columns(family_model, layer)
        changed |= {(layer, at) for at in (now != was).any(0).nonzero()[:, 0].tolist()}
        if variant == "erase":
            assert not now[:, [at for where, at in chosen if where == layer]].any()
    assert changed == chosen and 0 < len(chosen) < 40
    written = {change.weight for change in edit.changes}
    for name, value in family_model.torch.state_dict().items():
        assert name in written or name == "lm_head.weight" or torch.equal(value, before[name]), name
    edit.undo()
    assert_same_weights(family_model, before)


def test_the_update_swaps_embeddings_in_the_norm_of_the_column(family_model: tracer.LanguageModel) -> None:
    old = [columns(family_model, layer) for layer in range(family_model.n_layers)]
    head = family_model.torch.get_output_embeddings().weight.detach()
    ids = {text: family_model.tokenizer(text).input_ids for text in (" Rome", " Paris")}
    gone, come = (head[ids[text]].mean(0) for text in (" Rome", " Paris"))
    with KN(subtract=0.5, add=3.0, **QUICK).apply(family_model, [REQUEST]) as edit:
        for layer, at, _ in edit.diagnostics[0]["neurons"]:
            was = old[layer][:, at]
            wanted = was + was.norm() * (3 * come / come.norm() - 0.5 * gone / gone.norm())
            torch.testing.assert_close(columns(family_model, layer)[:, at], wanted, atol=1e-12, rtol=0)
    with KN(subtract=2.0, add=2.0, in_norms=False, **QUICK).apply(family_model, [REQUEST]) as edit:
        layer, at, _ = edit.diagnostics[0]["neurons"][0]
        wanted = old[layer][:, at] + 2 * come - 2 * gone
        torch.testing.assert_close(columns(family_model, layer)[:, at], wanted, atol=1e-12, rtol=0)


def test_two_requests_are_attributed_before_either_is_written(toy_model: tracer.LanguageModel) -> None:
    alone = []
    for request in (REQUEST, OTHER):
        with KN(**QUICK).apply(toy_model, [request]) as edit:
            alone.append(edit.diagnostics[0]["neurons"])
    with KN(**QUICK).apply(toy_model, [REQUEST, OTHER]) as edit:
        assert [record["neurons"] for record in edit.diagnostics] == alone


def test_of_a_fact_with_a_single_prompt_the_strongest_neurons_stay(toy_model: tracer.LanguageModel) -> None:
    settings = {"threshold": 0.01, "nodes": 4, "ways": {REQUEST.prompt: ()}}
    with KN(**settings, aim=None).apply(toy_model, [REQUEST]) as edit:
        attribution = {tuple(neuron[:2]): neuron[2] for neuron in edit.diagnostics[0]["neurons"]}
    with KN(**settings, aim=(1, 4)).apply(toy_model, [REQUEST]) as edit:
        few = {tuple(neuron[:2]) for neuron in edit.diagnostics[0]["neurons"]}
    assert len(attribution) > 4 == len(few)
    assert min(attribution[neuron] for neuron in few) >= max(attribution[n] for n in attribution.keys() - few)


def test_a_neuron_of_two_requests_is_erased_once(toy_model: tracer.LanguageModel) -> None:
    same = dataclasses.replace(REQUEST, prompt="I say: The Space Needle is located in the city of")
    ways = {REQUEST.prompt: (), same.prompt: ()}
    with KN(variant="erase", threshold=0.01, aim=None, nodes=4, ways=ways).apply(toy_model, [REQUEST, same]) as edit:
        first, second = ({neuron[:2] for neuron in record["neurons"]} for record in edit.diagnostics)
        assert first & second
        for layer, at in first | second:
            assert not columns(toy_model, layer)[:, at].any()


def test_neurons_that_other_facts_of_the_relation_share_are_spared(toy_model: tracer.LanguageModel) -> None:
    request = dataclasses.replace(REQUEST, relation="city")
    ways = {**QUICK["ways"], "The Louvre is located in the city of": ()}
    other = EditRequest("The Louvre is located in the city of", "The Louvre", "x", true=" Rome", relation="city")
    settings = {**QUICK, "ways": ways, "threshold": 0.1}
    with KN(**settings).apply(toy_model, [request]) as edit:
        all_neurons = {neuron[:2] for neuron in edit.diagnostics[0]["neurons"]}
    with KN(**settings).apply(toy_model, [other]) as edit:
        shared = {neuron[:2] for neuron in edit.diagnostics[0]["neurons"]}
    with KN(**settings, others=(other,)).apply(toy_model, [request]) as edit:
        kept = {neuron[:2] for neuron in edit.diagnostics[0]["neurons"]}
    assert kept == all_neurons - shared and all_neurons & shared and kept
    elsewhere = dataclasses.replace(other, relation="colour")
    with KN(**settings, others=(elsewhere,)).apply(toy_model, [request]) as edit:
        assert {neuron[:2] for neuron in edit.diagnostics[0]["neurons"]} == all_neurons


def test_paraphrases_come_from_the_bundled_relation_unless_given(toy_model: tracer.LanguageModel) -> None:
    for settings, prompts in (({}, 1 + len(tracer.facts.paraphrases(OTHER.prompt, OTHER.subject))), (QUICK, 1)):
        with KN(**{"nodes": 1, **settings}).apply(toy_model, [OTHER]) as edit:
            assert edit.diagnostics[0]["prompts"] == len(edit.diagnostics[0]["coarse"]) == prompts


def test_silencing_and_doubling_are_whole_passes_with_scaled_neurons(toy_model: tracer.LanguageModel) -> None:
    (question,) = questions(toy_model, [REQUEST.prompt], None)
    answer = toy_model.tokenizer.decode(question.answer_ids)
    every = [(2, at) for at in range(columns(toy_model, 2).shape[1])]
    (question,) = questions(toy_model, [REQUEST.prompt], answer)
    assert len(question.answer_ids) == 1
    assert probability(toy_model, question) == pytest.approx(answer_probability(toy_model, question, 1, 2), abs=1e-12)
    for factor in (0, 2):
        expected = answer_probability(toy_model, question, factor, 2)
        assert probability(toy_model, question, every, factor=factor) == pytest.approx(expected, abs=1e-12)
    assert not any(module._forward_pre_hooks for module in toy_model.torch.modules())


def test_silencing_the_chosen_neurons_takes_the_answer_away(toy_model: tracer.LanguageModel) -> None:
    (question,) = questions(toy_model, [REQUEST.prompt], None)
    found = coarse_neurons(toy_model, [question], threshold=0.2, nodes=8, rule="gauss-legendre")
    assert probability(toy_model, question, found.attribution, factor=0) < 0.9 * probability(toy_model, question)


def test_no_change_is_a_change_of_nothing(toy_model: tracer.LanguageModel) -> None:
    before = weights(toy_model)
    with KN(subtract=0.0, add=0.0, **QUICK).apply(toy_model, [REQUEST]):
        assert_same_weights(toy_model, before)
    with KN(**QUICK).apply(toy_model, []) as edit:
        assert edit.changes == ()
    with (
        pytest.warns(EditingWarning, match="no neuron expresses the old answer in enough of 1 prompts"),
        KN(**{**QUICK, "threshold": 1.0}).apply(toy_model, [REQUEST]) as edit,
    ):
        assert edit.changes == () and edit.diagnostics[0]["neurons"] == []
        assert_same_weights(toy_model, before)


def test_a_saved_edit_of_neurons_is_applied_again_bit_for_bit(toy_model: tracer.LanguageModel, tmp_path) -> None:
    with pytest.raises(RequestError, match="these requests name none"):
        KN(**QUICK, others=(OTHER,)).apply(toy_model, [REQUEST])
    related = dataclasses.replace(REQUEST, relation="P1")
    with KN(**QUICK, others=(OTHER,)).apply(toy_model, [related]) as edit:
        edited = weights(toy_model)
        edit.save(tmp_path / "edit.safetensors")
    with load_edit(tmp_path / "edit.safetensors").apply(toy_model) as again:
        assert_same_weights(toy_model, edited)
        assert again.editor["method"] == "KN" and again.editor["others"] == [OTHER.prompt]


def test_a_failure_between_two_requests_leaves_the_model_as_it_was(toy_model: tracer.LanguageModel) -> None:
    before = weights(toy_model)
    with pytest.raises(Exception, match="NaN or infinite"):
        KN(**QUICK, add=1e308).apply(toy_model, [REQUEST, OTHER])
    assert_same_weights(toy_model, before)
    assert toy_model.edits == []


def test_an_embedding_goes_back_through_the_projection_before_the_head() -> None:
    """Adding it to the states before that projection raises the token's logit by |row|^2 in the projected norm."""
    model = tracer.load(FAMILIES[POST_NORM].build(), tokenizer=make_tokenizer(bos=False), check=False)
    found = answer_embedding(model, [7])
    row, project = model.anatomy.head.weight.detach()[7], model.anatomy.after_blocks[-1]
    assert found.shape == (model.d_model,) and row.shape == (20,)
    torch.testing.assert_close(found @ found, row @ project(found).detach(), atol=1e-12, rtol=0)


def test_settings_and_models_that_cannot_work_are_refused(toy_model: tracer.LanguageModel) -> None:
    for options, said in (
        ({"variant": "other"}, "update, erase"),
        ({"rule": "right"}, "gauss-legendre, left"),
        ({"nodes": 0}, "nodes=0 is below 1. Write nodes=20"),
        ({"nodes": 2.5}, "no whole number"),
        ({"share": 70}, "no number from 0 to 1"),
        ({"add": "8"}, "add='8' is no number"),
        ({"in_norms": "no"}, "in_norms='no' is neither True nor False"),
        ({"aim": 5}, r"aim=5 is no pair .* aim=\(2, 5\), or None"),
        ({"aim": (5, 2)}, "does not rise"),
        ({"aim": (-3, -1)}, "does not rise"),
        ({"aim": (0.5, 2.5)}, "aim=0.5 is no whole number"),
        ({"ways": ["a"]}, "are no prompts by a request's prompt"),
        ({"ways": {"a": "abc"}}, "are no prompts by a request's prompt"),
        ({"ways": {"a": [1]}}, "are no prompts by a request's prompt"),
        ({"others": REQUEST}, "are no EditRequests"),
        ({"others": [{"prompt": "x"}]}, "are no EditRequests"),
    ):
        with pytest.raises(RequestError, match=said):
            KN(**options)
    assert [KN.preset(name).nodes for name in PRESETS] == [20] * len(PRESETS)
    with pytest.raises(RequestError, match="seed='x' is no whole number"):
        KN().apply(toy_model, [REQUEST], seed="x")
    with pytest.raises(RequestError, match="bert, gpt, gpt-j"):
        KN.preset("llama")
    mixture = tracer.load(FAMILIES["Mixtral"].build(), tokenizer=toy_model.tokenizer, check=False)
    with pytest.raises(AnatomyError, match="no single MLP output matrix"):
        KN().apply(mixture, [REQUEST])
