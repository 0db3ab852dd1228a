"""Encoder-decoders (T5): what is read where, traces and their laws, scores, texts, FT-L and KN."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_gpt2
from encoder_decoders import LAYERS, LIES_IN, WAYS, WIDTH, tiny_t5
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

import tracer
from editing import EditRequest
from editing.editors import editor_named
from editing.fine_tuning.ft import FT
from editing.locate_then_edit.integrated_gradients import attributions
from editing.locate_then_edit.kn import KN
from editing.locate_then_edit.knowledge_neurons import probability, questions
from editing.scoring.generation import answers, complete
from editing.scoring.scores import target_scores
from tracer.cli import app
from tracer.corrupt import GaussianNoise, ReplaceSubject
from tracer.errors import AnatomyError, FactError, ModelSourceError, SiteError, StudyError
from tracer.forward_pass import forward
from tracer.passes import Passes
from tracer.site import Site
from tracer.studies.report import average_rows
from tracer.sweep.self_test import self_test
from tracer.sweep.two_stacks import TwoStackSweep

FACT = tracer.Fact(WAYS[0].format("Paris"), subject="Paris", answer="France")


@pytest.fixture
def trained(knowing: tracer.LanguageModel) -> tracer.LanguageModel:
    return knowing


@pytest.fixture(params=[False, True], ids=["classic", "gated"])
def random_t5(request: pytest.FixtureRequest, closing: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    return tracer.load(tiny_t5(len(closing), gated=request.param).double(), tokenizer=closing)


def test_the_encoder_reads_the_prompt_and_the_decoder_the_sentinel(trained: tracer.LanguageModel) -> None:
    found, words = FACT.preflight(trained), trained.tokenizer
    encoder = tuple(words(FACT.prompt).input_ids)
    assert encoder[-1] == 2, "what closes the text is the encoder's too"
    assert found.token_ids == (*encoder, 0, words.convert_tokens_to_ids("<extra_id_0>"))
    assert found.n_encoder == len(encoder)
    assert found.answer_ids == tuple(words(" France", add_special_tokens=False).input_ids)
    begin, end = found.subject_span
    assert words.decode(found.token_ids[begin:end]).strip() == "Paris"
    assert "(decoder)" in str(found)


def test_without_a_sentinel_the_decoder_answers_at_once(random_t5: tracer.LanguageModel) -> None:
    asked = tracer.Fact("Where is France?", subject="France", answer="Paris").preflight(random_t5, warn=False)
    assert asked.token_ids[asked.n_encoder :] == (0,)
    assert asked.answer_ids == tuple(random_t5.tokenizer("Paris", add_special_tokens=False).input_ids)


def test_tokens_of_a_sentence_piece_are_found_around_sentinels_that_take_blanks() -> None:
    words = Tokenizer(models.Unigram())
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False)
    texts = [f"{way.format(city)} {country}" for way in WAYS for city, country in LIES_IN.items()]
    words.train_from_iterator(texts * 3, trainer)
    words.add_special_tokens([AddedToken("<extra_id_0>", lstrip=True, rstrip=True, special=True, normalized=False)])
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    model = tracer.load(tiny_t5(len(tokenizer)), tokenizer=tokenizer, check=False)
    found = FACT.preflight(model, warn=False)
    begin, end = found.subject_span
    assert tokenizer.decode(found.token_ids[begin:end]).strip() == "Paris"
    sentinel, *expected = tokenizer("<extra_id_0> France", add_special_tokens=False).input_ids
    assert found.token_ids[found.n_encoder :] == (0, sentinel)
    assert found.answer_ids == tuple(expected)
    assert tokenizer.decode(found.answer_ids).strip() == "France"


def test_a_model_of_spans_gets_its_sentinel_in_both_stacks(trained: tracer.LanguageModel) -> None:
    spans = tracer.load(trained.torch, tokenizer=trained.tokenizer, decoder_starts="<extra_id_0>", check=False)
    written = tracer.Fact("The country of Paris is <extra_id_0>", subject="Paris", answer="France").preflight(trained)
    added = tracer.Fact("The country of Paris is", subject="Paris", answer="France").preflight(spans)
    assert (added.token_ids, added.answer_ids) == (written.token_ids, written.answer_ids)


def test_unembedding_and_definition_give_the_models_own_logits(random_t5: tracer.LanguageModel) -> None:
    fact = FACT.preflight(random_t5, warn=False)
    ids = torch.tensor([fact.token_ids])
    run = forward(random_t5, ids, keep=True, n_encoder=fact.n_encoder)
    with torch.inference_mode():
        split = ids.split([fact.n_encoder, ids.shape[1] - fact.n_encoder], dim=1)
        own = random_t5.torch(input_ids=split[0], decoder_input_ids=split[1]).logits[0, -1]
        unembedded = random_t5.anatomy.unembed(run.kept["state"][-1][0, -1])
    torch.testing.assert_close(run.logits[0], own, rtol=0, atol=1e-12)
    torch.testing.assert_close(unembedded, own, rtol=0, atol=1e-12)


def test_mt5_passes_the_self_test() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 4}
    model = MT5ForConditionalGeneration(MT5Config(vocab_size=64, decoder_start_token_id=0, **sizes)).double()
    opened = tracer.load(model)
    assert opened.sweep_fault is None
    assert self_test(opened) < 1e-9


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_the_sweep_gives_the_numbers_of_the_definition(random_t5: tracer.LanguageModel, direction: str) -> None:
    ids = torch.tensor([[11, 87, 254, 33, 480, 2, 0, 600, 7]])
    noise = torch.from_numpy(9.0 * np.random.RandomState(1).randn(2, 2, WIDTH))
    options = {"n_encoder": 6, "direction": direction, "answer_length": 2}
    slow, fast = (kind(random_t5, ids, (1, 3), noise, **options) for kind in (Passes, TwoStackSweep))
    answer, tokens = (5, 7), [1, 4, 7, 8, (1, 2), (4, 7)]
    maps: dict[str, Callable] = {"state": lambda engine: engine.state_map(answer, tokens)}
    for kind in ("mlp", "attn", "cross"):
        maps[f"window {kind}"] = lambda engine, kind=kind: engine.window_map(kind, answer, tokens, 2)
        maps[f"severed {kind}"] = lambda engine, kind=kind: engine.severed_map(kind, answer, tokens)
    for name, compute in maps.items():
        expected, found = compute(slow), compute(fast)
        known = ~expected.isnan()
        assert torch.equal(known, ~found.isnan()), name
        assert expected[known].std() > 1e-3 * expected[known].mean(), name
        assert float((found - expected)[known].abs().max()) < 1e-9, name


def test_a_token_has_sites_in_its_own_stack_alone(trained: tracer.LanguageModel) -> None:
    found = tracer.trace(trained, FACT, kinds=("state", "mlp", "attn", "cross"), window=1, samples=2)
    in_encoder = np.arange(len(found.tokens)) < found.fact.n_encoder
    layers = np.arange(2 * LAYERS + 1) < LAYERS
    for kind, effect in found.indirect_effect.items():
        expected = in_encoder[:, None] == layers
        if kind == "cross":
            expected &= ~layers
        np.testing.assert_array_equal(~np.isnan(effect), expected, err_msg=kind)
    with pytest.raises(SiteError, match=r"state\[0\]@9 is nowhere: the encoder reads tokens 0 to 8"):
        ids = torch.tensor([range(10)])
        forward(trained, ids, held={Site("state", 0, 9): torch.zeros(WIDTH)}, n_encoder=9)


def test_the_map_finds_the_encoders_subject_and_then_the_decoders_last_token(trained: tracer.LanguageModel) -> None:
    other = ReplaceSubject(("Milan",))
    found = tracer.trace(trained, FACT, kinds=("state",), groups=("subject",), corruption=other, samples=1)
    effect, (begin, end) = found.indirect_effect["state"], found.subject_span
    assert found.clean > 0.9 and found.total_effect > 0.8
    assert begin <= int(np.nanargmax(effect[:, 0])) < end
    assert found.group_effect["state"][0, 0] > 0.8 * found.total_effect
    assert effect[-1, -1] == pytest.approx(found.total_effect)


def test_a_replaced_subject_gives_the_other_prompts_answer(trained: tracer.LanguageModel) -> None:
    found = tracer.trace(trained, FACT, kinds=("state",), corruption=ReplaceSubject(("Milan",)), samples=1)
    other = target_scores(trained, [(WAYS[0].format("Milan"), "France")])[0]
    assert len(found.fact.answer_ids) == len(other.target)
    with torch.inference_mode():
        read = trained.tokenizer(WAYS[0].format("Milan"), return_tensors="pt").input_ids
        written = torch.tensor([found.fact.token_ids[found.fact.n_encoder :]])
        logits = trained.torch(input_ids=read, decoder_input_ids=written).logits
    by_hand = logits[0, -1].softmax(-1)[found.answer_id]
    assert found.corrupted == pytest.approx(float(by_hand), abs=1e-12)


def test_no_noise_has_no_effect_and_the_whole_encoder_has_all_of_it(trained: tracer.LanguageModel) -> None:
    still = tracer.trace(trained, FACT, corruption=GaussianNoise(0.0, 1.0), samples=1, severed=("cross",), window=2)
    for effect in still.indirect_effect.values():
        np.testing.assert_allclose(effect[~np.isnan(effect)], 0, atol=1e-12)
    encoder = tuple(range(still.fact.n_encoder))
    found = tracer.trace(trained, FACT, kinds=("state",), groups=(encoder,), samples=2)
    np.testing.assert_allclose(found.group_effect["state"][0, :LAYERS], found.total_effect, atol=1e-12)


def test_the_encoder_acts_through_cross_attention_alone(trained: tracer.LanguageModel) -> None:
    fact = FACT.preflight(trained)
    decoder = tuple(range(fact.n_encoder, len(fact.token_ids)))
    cut = tracer.Severed("cross", tokens=decoder)
    found = tracer.trace(trained, fact, kinds=("state",), severed=(cut,), samples=2)
    severed, whole = (found.indirect_effect[name][: fact.n_encoder, :LAYERS] for name in (cut.name, "state"))
    assert np.abs(whole).max() > 0.1
    np.testing.assert_allclose(severed, 0, atol=1e-12)


def test_averages_and_places_count_the_layers_of_a_tokens_stack(trained: tracer.LanguageModel) -> None:
    facts = [dataclasses.replace(FACT, prompt=WAYS[0].format(c), subject=c, answer=a) for c, a in LIES_IN.items()]
    average = tracer.average(trained, facts, kinds=("state", "mlp"), window=1, samples=2)
    assert average.n == len(facts)
    place = tracer.locate(average, kind="state", role="last subject token")
    assert place.layer < LAYERS and len(place.ranking) == LAYERS
    last = tracer.locate(average, kind="state", role="last token")
    assert last.layer == 2 * LAYERS
    with pytest.raises(StudyError, match="its own stack"):
        tracer.paired_test(average, "state", "mlp")
    further = average.indirect_effect["state"][tracer.ROLES.index("further tokens")]
    assert not np.isnan(further).any(), "the encoder's and the decoder's further tokens, each in its layers"
    known = average.to_frame().dropna(subset=["effect"])
    table = tracer.average_frame(average)
    assert len(table) == len(known) and set(table.n) <= set(known.n)
    np.testing.assert_allclose(table.effect, known.effect, atol=1e-12)
    rows = average_rows(average.effects["state"])["rows"]
    assert [row is not None for row in rows] == [role in set(known.role) for role in tracer.ROLES]
    last = rows[tracer.ROLES.index("last token")]
    assert last["effect"][0] is None and last["effect"][-1] is not None


def test_heatmaps_name_both_stacks(trained: tracer.LanguageModel) -> None:
    found = tracer.trace(trained, FACT, kinds=("state", "cross"), window=1, samples=2)
    axes = tracer.plot_trace(found).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["E0", "E1", "D0", "D1", "D2"]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows[found.subject_span[0]] == "P*"
    assert rows[-1] == "decoder: <extra_id_0>"
    assert tracer.hover_trace(found).layout.xaxis.ticktext == ("E0", "E1", "D0", "D1", "D2")


def test_scores_are_the_models_own_loss(trained: tracer.LanguageModel) -> None:
    pairs = [(WAYS[0].format("Paris"), "France"), (WAYS[1].format("Milan"), "Italy"), (WAYS[0].format("Bonn"), "a b c")]
    for (prompt, target), score in zip(pairs, target_scores(trained, pairs), strict=True):
        read = trained.tokenizer(prompt, return_tensors="pt").input_ids
        labels = trained.tokenizer(f"<extra_id_0> {target}", add_special_tokens=False, return_tensors="pt").input_ids
        inputs = torch.tensor([[0, *labels[0, :-1].tolist()]])
        labels[0, 0] = -100  # the sentinel is given, not scored
        with torch.inference_mode():
            loss = trained.torch(input_ids=read, decoder_input_ids=inputs, labels=labels).loss
        assert score.nll == pytest.approx(float(loss), abs=1e-10)
        assert score.target == tuple(labels[0, 1:].tolist())


def test_a_target_is_exact_where_greedy_decoding_writes_it(trained: tracer.LanguageModel) -> None:
    for city, country in LIES_IN.items():
        prompt = WAYS[1].format(city)
        (score,) = target_scores(trained, [(prompt, country)])
        assert score.tf_exact
        read = trained.tokenizer(prompt, return_tensors="pt").input_ids
        written = torch.tensor([[0, *trained.tokenizer("<extra_id_0>", add_special_tokens=False).input_ids]])
        for token in score.target:  # greedily, everything computed anew
            best = trained.torch(input_ids=read, decoder_input_ids=written).logits[:, -1:].argmax(-1)
            assert int(best) == token
            written = torch.cat((written, best), dim=1)
        assert complete(trained, [prompt], new_tokens=6)[0].strip() == country
    prompts = [way.format(city) for way in WAYS for city in LIES_IN]
    assert [text.strip() for text in answers(trained, prompts)] == [*LIES_IN.values()] * 2


@pytest.mark.filterwarnings("ignore:The change is")  # a ball that wide
@pytest.mark.parametrize("layer", [0, LAYERS + 1], ids=["encoder", "decoder"])
def test_ft_l_edits_inside_its_ball_and_undoes_bit_for_bit(trained: tracer.LanguageModel, layer: int) -> None:
    before = {name: value.clone() for name, value in trained.torch.state_dict().items()}
    request = EditRequest(FACT.prompt, "Paris", "Italy")
    old = target_scores(trained, [(FACT.prompt, "Italy")])[0].prob
    editor = FT(layer=layer, loss="prompt_last", radius=0.5, rate=5e-2, steps=50)
    name = trained.anatomy.value_weight_name(layer)
    with editor.apply(trained, [request]):
        after = {key: value.clone() for key, value in trained.torch.state_dict().items()}
        new = target_scores(trained, [(FACT.prompt, "Italy")])[0].prob
    assert {key for key, value in after.items() if not torch.equal(value, before[key])} == {name}
    assert float((after[name] - before[name]).abs().max()) <= 0.5
    assert old < 0.05 and new > 0.5
    for key, value in trained.torch.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.filterwarnings("ignore::editing.EditingWarning")
@pytest.mark.parametrize("layer", [0, LAYERS + 1], ids=["encoder", "decoder"])
def test_fine_tuning_side_by_side_finds_what_each_finds_alone(trained: tracer.LanguageModel, layer: int) -> None:
    requests = [EditRequest(FACT.prompt, "Paris", "Italy"), EditRequest(WAYS[1].format("Milan"), "Milan", "Japan")]
    editor = FT(layer=layer, rate=1e-2, steps=5)
    for request, edit in zip(requests, editor.each(trained, requests), strict=True):
        with editor.apply(trained, [request]) as alone:
            pass
        assert edit.diagnostics[0]["loss"] == pytest.approx(alone.diagnostics[0]["loss"], rel=1e-4)


def test_the_loss_of_fine_tuning_is_the_models_own(trained: tracer.LanguageModel) -> None:
    from editing.fine_tuning.descent import batch_of

    requests = [EditRequest(FACT.prompt, "Paris", "Italy"), EditRequest(WAYS[1].format("Milan"), "Milan", "a b c")]
    scores = target_scores(trained, [(request.prompt, request.new) for request in requests])
    for layer in (0, LAYERS):
        found = batch_of(trained, layer, requests, "target_new").nll().tolist()
        np.testing.assert_allclose(found, [score.nll for score in scores], atol=1e-10)


def test_attributions_add_up_to_what_the_layer_does(trained: tracer.LanguageModel) -> None:
    (question,) = questions(trained, [FACT.prompt], "Italy")
    one = dataclasses.replace(question, ids=question.ids[: question.n_prompt + 1])
    found = attributions(trained, one.ids, one.n_prompt, one.n_encoder, nodes=200)
    for layer in range(2 * LAYERS + 1):
        if layer < LAYERS:
            assert not found[layer].any(), "an encoder predicts nothing"
            continue
        silenced = probability(trained, one, [(layer, n) for n in range(len(found[layer]))], factor=0.0)
        whole = probability(trained, one) - silenced
        assert float(found[layer].sum()) == pytest.approx(whole, abs=2e-6)  # relu has kinks on the way
    with pytest.raises(SiteError, match="neurons of layers 2 to 4"):
        probability(trained, one, [(0, 3)], factor=0.0)


@pytest.mark.filterwarnings("ignore::editing.EditingWarning")
def test_kn_writes_decoder_columns_and_undoes(trained: tracer.LanguageModel) -> None:
    before = {name: value.clone() for name, value in trained.torch.state_dict().items()}
    editor = KN(ways={FACT.prompt: [WAYS[1].format("Paris")]}, add=0.5, subtract=0.5)
    edit = editor.apply(trained, [EditRequest(FACT.prompt, "Paris", "Italy", true="France")])
    neurons = edit.diagnostics[0]["neurons"]
    assert neurons and all(layer >= LAYERS for layer, *_ in neurons)
    changed = {key for key, value in trained.torch.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {trained.anatomy.value_weight_name(layer) for layer, *_ in neurons}
    record = edit.diagnostics[0]
    assert record["old_probability_written"] < record["old_probability_before"]
    edit.undo()
    for key, value in trained.torch.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_folder_opens_as_the_same_encoder_decoder(trained: tracer.LanguageModel, tmp_path: Path) -> None:
    trained.torch.save_pretrained(tmp_path)
    trained.tokenizer.save_pretrained(tmp_path)
    found = tracer.load(tmp_path, dtype="float64", device="cpu", check=False)
    assert found.is_encoder_decoder and found.n_layers == 2 * LAYERS + 1
    pair = [(FACT.prompt, "France")]
    assert target_scores(found, pair)[0].nll == pytest.approx(target_scores(trained, pair)[0].nll, abs=1e-12)


def test_what_the_decoder_reads_first_is_an_option_and_part_of_what_a_study_is(
    trained: tracer.LanguageModel, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    trained.torch.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)
    asked = ["tokens", "--prompt", "The country of Paris is", "--subject", "Paris", "--answer", "France", "--json"]
    ran = [
        CliRunner().invoke(app, [*asked, "--model", str(folder), *starts])
        for starts in ([], ["--decoder-starts", "<extra_id_0>"])
    ]
    plain, spans = (json.loads(one.stdout)["token_ids"] for one in ran)
    sentinel = trained.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    assert spans.count(sentinel) == 2 and sentinel not in plain
    plan = tracer.Plan(kinds=("state",), samples=1)
    tracer.run_study(trained, [FACT], tmp_path / "study", plan=plan, progress=False)
    other = tracer.load(trained.torch, tokenizer=trained.tokenizer, decoder_starts="<extra_id_0>", check=False)
    with pytest.raises(StudyError, match="model.decoder_starts"):
        tracer.run_study(other, [FACT], tmp_path / "study", plan=plan, progress=False)


REFUSED: dict[str, Callable[[tracer.LanguageModel], object]] = {
    "trace_heads": lambda model: tracer.trace_heads(model, FACT),
    "trace_neurons": lambda model: tracer.trace_neurons(model, FACT, [(0, 0)]),
    "attribute": lambda model: tracer.attribute(model, FACT),
    "attribute_neurons": lambda model: tracer.attribute_neurons(model, FACT),
    "attribute_edges": lambda model: tracer.attribute_edges(model, FACT),
    "attribute_queries_and_keys": lambda model: tracer.attribute_queries_and_keys(model, FACT),
}


@pytest.mark.parametrize("wanted", REFUSED)
def test_what_cannot_take_an_encoder_decoder_says_so_before_it_runs(
    trained: tracer.LanguageModel, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained.torch, "forward", None)
    with pytest.raises(AnatomyError, match=rf"{wanted}.* works on decoder-only models.*tracer.trace"):
        REFUSED[wanted](trained)


@pytest.mark.parametrize("name", ["rome", "memit", "pmet", "emmet", "alphaedit"])
def test_editors_of_decoders_say_so_before_they_run(
    trained: tracer.LanguageModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained.torch, "forward", None)
    editor = editor_named(name, trained, 1)
    with pytest.raises(AnatomyError, match="works on decoder-only models"):
        editor.apply(trained, [EditRequest(FACT.prompt, "Paris", "Italy")])


def test_cross_attention_and_decoder_texts_belong_to_encoder_decoders(closing: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    decoder = tracer.load(tiny_gpt2(), tokenizer=closing, check=False)
    fact = tracer.Fact("France is in", subject="France")
    with pytest.raises(SiteError, match="has no cross-attention"):
        tracer.trace(decoder, fact, kinds=("cross",))
    with pytest.raises(ModelSourceError, match="leave out decoder_starts"):
        tracer.load(decoder.torch, tokenizer=closing, decoder_starts="<extra_id_0>")
    with pytest.raises(FactError, match="n_encoder"):
        tracer.trace(decoder, tracer.TokenizedFact((5, 6, 7, 0), (1, 2), n_encoder=3))


def test_ids_alone_must_say_what_the_encoder_reads(trained: tracer.LanguageModel) -> None:
    with pytest.raises(FactError, match=r"TokenizedFact\(\.\.\., n_encoder="):
        tracer.trace(trained, tracer.TokenizedFact((5, 6, 7, 0), (1, 2)))
    with pytest.raises(FactError, match="the encoder reads the subject"):
        tracer.TokenizedFact((5, 6, 7, 0), (1, 3), n_encoder=2)


def test_an_encoder_decoder_that_is_not_listed_is_refused() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 16}
    model = BartForConditionalGeneration(BartConfig(vocab_size=40, **sizes, **heads))
    with pytest.raises(AnatomyError, match="'bart' is an encoder-decoder that is not listed; listed are mt5, t5"):
        tracer.load(model)
