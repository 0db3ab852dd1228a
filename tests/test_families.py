"""Every family: the sweep gives the definition's numbers, and a site is what a sub-layer adds."""

from __future__ import annotations

import contextlib
import functools
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from conftest import LAYERS, WIDTH, llama_like, make_tokenizer, noise_of
from families import COMMON, EXACT, EXPERTS, FAMILIES, GPT, IDS, SINGLE, SPAN, Family, differences, row, rows_of

import tracer
from editing import ROME, EditRequest
from editing.locate_then_edit.covariance import _accumulate
from editing.locate_then_edit.keys import read_keys
from editing.locate_then_edit.rows import request_rows
from editing.locate_then_edit.suffix import Suffix
from editing.scoring.generation import complete
from tracer.anatomy import anatomy_of, is_stored_transposed, names
from tracer.anatomy.structure import names_by_structure
from tracer.errors import AnatomyError
from tracer.sweep import Sweep
from tracer.sweep.recording import record
from tracer.sweep.self_test import self_test

README = Path(__file__).parents[1] / "README.md"
POST_NORM = "OPT-350m"  # normalises after the sum, so its block adds more than its two sites
SCALED = "Granite"  # multiplies both sites by a constant
MIXTURES = ("Mixtral", "Qwen2-MoE", "Qwen3-MoE")
# Gemma 2 in float64: where a window shows a padding token padding alone, its float32 softmax gives NaN.
DENSE = [name for name in FAMILIES if name not in (*MIXTURES, "Gemma 2")]
REQUEST = EditRequest("The Louvre is in", subject="The Louvre", new=" Rome")

# In no table: these are found by what their modules do.
UNLISTED = {
    "CodeGen": Family("CodeGenForCausalLM", {**GPT, "rotary_dim": 4}, 1e-6),
    "Cohere 2": Family("Cohere2ForCausalLM", COMMON),
    "GLM-4, norms after": Family("Glm4ForCausalLM", llama_like()),
    "GPT-BigCode, one key head": Family("GPTBigCodeForCausalLM", GPT),
    "Helium": Family("HeliumForCausalLM", llama_like()),
    "OLMoE": Family("OlmoeForCausalLM", {**COMMON, **EXPERTS}),
}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MAMBA = {"mamba_dt_rank": 4, "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1}
REFUSED = {
    "Mamba": (Family("MambaForCausalLM", COMMON), r"attention: 4 of 4 blocks store no keys and values"),
    "Jamba": (
        Family("JambaForCausalLM", {**COMMON, **MAMBA, "num_experts": 2, "experts_implementation": "eager"}),
        r"attention: it does not run with keys and values alone",
    ),
    "RecurrentGemma": (
        Family("RecurrentGemmaForCausalLM", {**COMMON, "lru_width": 32, "attention_window_size": 4}),
        r"attention: 3 of 4 blocks store no keys and values, first model.layers.0 \(RecurrentGemmaDecoderLayer\)",
    ),
    "Qwen3-Next": (
        Family("Qwen3NextForCausalLM", {**COMMON, **EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16}),
        r"attention: it does not run with keys and values alone .*linear attention",
    ),
    "BERT": (
        Family("BertLMHeadModel", {"vocab_size": 600, "hidden_size": 32, "num_attention_heads": 4, "is_decoder": True}),
        r"attention site, MLP site: no two submodules add up.*names=tracer.Names",
    ),
}


# The sweep cannot run these blocks on some of their tokens: they count positions or keys by themselves.
BY_DEFINITION = {
    "MPT": (Family("MptForCausalLM", {"vocab_size": 600, "d_model": 32, "n_heads": 4, "n_layers": 2}), "MptBlock"),
    "Llama 4": (
        Family("Llama4ForCausalLM", {**llama_like(), "num_local_experts": 2, "intermediate_size_mlp": 48}),
        "Llama4TextDecoderLayer",
    ),
}


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@functools.cache
def opened(name: str) -> tracer.LanguageModel:
    """One model of each family for the tests that do not change it."""
    return tracer.load(FAMILIES[name].build(), tokenizer=make_tokenizer(bos=False))


def test_the_readme_says_what_sweep_and_definition_differ_by(name: str) -> None:
    found = row(name, differences(opened(name)))
    written = {line[0]: line for line in rows_of(README.read_text(encoding="utf-8"))}
    assert list(written) == list(FAMILIES)
    assert found[:6] == written[name][:6]
    assert found[5] == "sweep" and float(found[6]) <= FAMILIES[name].bound
    assert float(written[name][6]) <= FAMILIES[name].bound
    measured, said = float(found[6]), float(written[name][6])
    assert measured <= 100 * said and (said <= 100 * measured or FAMILIES[name].bound == SINGLE)


def test_the_two_sites_are_what_a_block_adds(name: str) -> None:
    model = opened(name)
    with torch.inference_mode():
        run = record(model, IDS)
    factor = getattr(model.torch.config, "residual_multiplier", 1.0)
    for layer in range(LAYERS):
        attn, mlp = run.added["attn"][layer], run.added["mlp"][layer]
        assert attn.shape == mlp.shape == (1, IDS.shape[1], WIDTH)
        found = run.inputs[layer] + factor * (attn + mlp)
        if name == POST_NORM:
            found = model.anatomy.blocks[layer].final_layer_norm(
                model.anatomy.blocks[layer].self_attn_layer_norm(run.inputs[layer] + attn) + mlp
            )
        torch.testing.assert_close(found, run.outputs[layer], atol=1e-12, rtol=0)


def test_the_search_finds_what_the_table_says(name: str) -> None:
    model = opened(name)
    if name in (POST_NORM, SCALED):
        with pytest.raises(AnatomyError, match=r"attention site, MLP site: no two .*norm or a factor"):
            names_by_structure(model.torch)
        return
    found, listed = names_by_structure(model.torch), model.anatomy.names
    assert (found.embedding, found.blocks) == (listed.embedding, listed.blocks)
    assert (found.attention_site, found.mlp_site) == (listed.attention_site, listed.mlp_site)
    assert found.value_matrix == listed.value_matrix
    assert anatomy_of(model.torch, found).after_blocks == model.anatomy.after_blocks


@pytest.mark.parametrize("unlisted", UNLISTED)
def test_a_type_that_is_not_listed_is_searched_and_traced(unlisted: str) -> None:
    model = tracer.load(UNLISTED[unlisted].build())
    assert model.torch.config.model_type not in names.FAMILIES
    assert max(differences(model).values()) <= UNLISTED[unlisted].bound


@pytest.mark.parametrize("unlisted", BY_DEFINITION)
def test_blocks_that_cannot_be_run_again_are_traced_by_the_definition(unlisted: str) -> None:
    family, block = BY_DEFINITION[unlisted]
    with pytest.warns(tracer.TracerWarning, match=rf"{block} of .* cannot be run again.*Traces .* use the definition"):
        model = tracer.load(family.build().float())
    fact, noise = tracer.TokenizedFact((11, 87, 254, 33), (1, 2)), tracer.GaussianNoise(3, 0.3)
    result = tracer.trace(model, fact, samples=2, corruption=noise, kinds=("mlp",), window=1)
    assert result.settings.engine == "passes" and result.restored["mlp"].std() > 0
    again = tracer.load(model.torch, check=False)
    with pytest.raises(AnatomyError, match=rf'{block} of .* cannot be run again.*engine="passes"'):
        tracer.trace(again, fact, samples=2, corruption=noise, kinds=("mlp",), window=1)


@pytest.mark.filterwarnings("ignore:Module .* has a submodule named 'output'")  # nnsight's
def test_a_family_that_the_definition_cannot_reach_is_refused() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    megatron = Family("MegatronBertForCausalLM", {"vocab_size": 600, **sizes, "is_decoder": True})
    with pytest.raises(AnatomyError, match=r"'megatron-bert'\) cannot be traced: nnsight does not reach its sites"):
        tracer.load(megatron.build())


def test_xglm_which_does_not_run_in_float64_is_traced_in_float32() -> None:
    sizes = {"vocab_size": 600, "d_model": 32, "ffn_dim": 48, "num_layers": 3, "attention_heads": 4, "init_std": 0.3}
    xglm = Family("XGLMForCausalLM", {**sizes, "max_position_embeddings": 96})
    with pytest.raises(AnatomyError, match=r"does not run on 5 tokens \(RuntimeError"):
        tracer.load(xglm.build())
    model = tracer.load(xglm.build().float())
    assert model.sweep_fault is None
    assert max(differences(model).values()) <= SINGLE


@pytest.mark.parametrize("refused", REFUSED)
def test_what_has_no_attention_in_every_block_is_refused(refused: str) -> None:
    family, said = REFUSED[refused]
    with pytest.raises(AnatomyError, match=said):
        tracer.load(family.build())


def test_the_search_leaves_no_hook_behind() -> None:
    for family in (FAMILIES["Llama"], REFUSED["Mamba"][0], REFUSED["Jamba"][0]):
        model = family.build()
        with contextlib.suppress(AnatomyError):
            names_by_structure(model)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_mixture_of_experts_has_no_value_matrix(mixture: str) -> None:
    model = opened(mixture)
    for ask in (model.anatomy.value_matrix, model.anatomy.value_weight_name):
        with pytest.raises(AnatomyError, match="no single MLP output matrix"):
            ask(0)
    with pytest.raises(AnatomyError, match="no single MLP output matrix"):
        ROME(layer=1).apply(model, [REQUEST])


def test_noise_has_the_width_of_the_embedding() -> None:
    model = opened(POST_NORM)
    assert (model.anatomy.embedding_size, model.d_model) == (20, WIDTH)
    result = tracer.trace(model, tracer.Fact("The Louvre is in", "The Louvre"), samples=2, severed=("mlp",))
    slow = tracer.trace(
        model, tracer.Fact("The Louvre is in", "The Louvre"), samples=2, severed=("mlp",), engine="passes"
    )
    for kind, restored in result.restored.items():
        assert abs(restored - slow.restored[kind]).max() < EXACT


@pytest.mark.parametrize("dense", DENSE)
def test_the_value_matrix_maps_the_key_to_the_output(dense: str) -> None:
    model = opened(dense)
    reading = read_keys(model, request_rows(model, [REQUEST], ("", "Yes. ")), 2)
    module = model.anatomy.value_matrix(2)
    weight = module.weight.T if is_stored_transposed(module) else module.weight
    bias = 0 if getattr(module, "bias", None) is None else module.bias
    torch.testing.assert_close(reading.keys @ weight.T + bias, reading.outputs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dense", DENSE)
def test_a_delta_in_the_replay_equals_one_in_a_whole_pass(dense: str) -> None:
    """Rows of different lengths: positions, masks, ALiBi and built-in masks follow each row's own tokens."""
    model, layer = opened(dense), 1
    rows = request_rows(model, [REQUEST], ("", "Yes. ", "It is so: "))
    delta = torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = Suffix(model, layer, rows).logits(delta[None, None])
        targets, essence = (logits.log_softmax(-1) for logits in found)
    each = torch.arange(len(rows.ids))

    def add(_module, _inputs, output):
        changed = output.clone()
        changed.view(*rows.ids.shape, -1)[each, rows.lookup] += delta
        return changed

    handle = model.anatomy.value_matrix(layer).register_forward_hook(add)
    try:
        with torch.no_grad():
            logits = model.torch(input_ids=rows.ids, attention_mask=rows.attention_mask).logits.log_softmax(-1)
    finally:
        handle.remove()
    bound = 10 * FAMILIES[dense].bound
    with torch.no_grad():
        turn = Suffix(model, layer, rows).of_some([0, 2]).logits(delta[None, None])[1].log_softmax(-1)
    torch.testing.assert_close(turn, essence, atol=bound, rtol=0)
    torch.testing.assert_close(targets, logits[rows.target_rows, rows.target_places], atol=bound, rtol=0)
    torch.testing.assert_close(essence[0], logits[-1, rows.lookup[-1]], atol=bound, rtol=0)


def test_flattened_keys_are_counted_like_others() -> None:
    """OPT's MLP sees [row * token, width]; padding must not be counted there either."""
    keys, real = torch.randn(3, 4, 5).double(), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    found = []
    for seen in (keys, keys.flatten(0, 1)):
        halves = [torch.zeros(5, 5, dtype=torch.float64) for _ in range(2)]
        _accumulate(halves, real)(torch.nn.Identity(), (seen,), seen)
        found.append(torch.stack(halves))
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)
    torch.testing.assert_close(found[0].sum(0), keys[real].T @ keys[real])


def test_a_mask_inside_the_model_is_left_alone_while_threads_replay() -> None:
    """GPT-Neo's local layers mask by a buffer; plain passes beside two sweeps must not see it changed."""
    model = opened("GPT-Neo")
    plain = model.torch(IDS).logits
    sweep = Sweep(model, IDS, SPAN, noise_of(2, SPAN[1] - SPAN[0]))
    alone = sweep.state_map(5, [2, 3, 7])
    with ThreadPoolExecutor(3) as pool:
        maps = [pool.submit(sweep.state_map, 5, [2, 3, 7]) for _ in range(4)]
        passes = [pool.submit(lambda: model.torch(IDS).logits) for _ in range(4)]
        for one in maps:  # how threads share the products moves the last bit
            torch.testing.assert_close(one.result(), alone, atol=1e-15, rtol=0)
        for one in passes:
            torch.testing.assert_close(one.result(), plain, atol=1e-12, rtol=0)


def gpt_neo_at_half_attention(*, as_a_method: bool) -> transformers.PreTrainedModel:
    """Every attention gives half of what it gave, by a method put in place of its forward, or a plain function."""
    model = FAMILIES["GPT-Neo"].build()
    for block in model.transformer.h:
        original = block.attn.forward

        def halved(module, *args, **kwargs):
            output, *rest = type(module).forward(module, *args, **kwargs)
            return 0.5 * output, *rest

        def halved_here(*args, original=original, **kwargs):
            output, *rest = original(*args, **kwargs)
            return 0.5 * output, *rest

        block.attn.forward = types.MethodType(halved, block.attn) if as_a_method else halved_here
    return model


def test_a_replaced_forward_stays_where_a_block_masks_in_a_buffer() -> None:
    plain, model = opened("GPT-Neo"), tracer.load(gpt_neo_at_half_attention(as_a_method=True))
    assert model.sweep_fault is None
    assert max(differences(model).values()) <= SINGLE
    assert (model.torch(IDS).logits - plain.torch(IDS).logits).abs().max() > 1e-3


def test_a_forward_bound_to_a_block_that_masks_in_a_buffer_is_not_passed_over() -> None:
    with pytest.warns(tracer.TracerWarning, match=r"GPTNeoAttention masks in a buffer.*types.MethodType"):
        model = tracer.load(gpt_neo_at_half_attention(as_a_method=False))
    with pytest.raises(AnatomyError, match="its forward was replaced"):
        Sweep(model, IDS, SPAN, noise_of(2, SPAN[1] - SPAN[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_trace(name: str, dtype: torch.dtype) -> None:
    model = tracer.load(FAMILIES[name].build().to(dtype))
    assert self_test(model) < 0.1
    noise = noise_of(2, SPAN[1] - SPAN[0], width=model.anatomy.embedding_size)
    assert torch.isfinite(Sweep(model, IDS, SPAN, noise).state_map(5, [2, 3, 7])).all()


@pytest.mark.parametrize("padded", ["OPT", "BLOOM", "GPT-Neo"])
def test_the_side_on_which_a_tokenizer_pads_does_not_matter(padded: str) -> None:
    fact, traces, texts = tracer.Fact("The Louvre is in", "The Louvre"), [], []
    for side in ("left", "right"):
        tokenizer = make_tokenizer(bos=False)
        tokenizer.padding_side = side
        model = tracer.load(FAMILIES[padded].build(), tokenizer=tokenizer)
        traces.append(tracer.trace(model, fact, samples=2).restored["state"])
        texts.append(complete(model, ["The Louvre is", "Rome"], new_tokens=3))
    assert (traces[0] == traces[1]).all() and texts[0] == texts[1]
