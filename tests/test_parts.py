"""Names given by hand are of the parts they say, or the error says which are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import llama_like, tiny_gemma3, tiny_llama
from families import FAMILIES, Family
from transformers import HeliumConfig, HeliumForCausalLM

import tracer
from tracer.anatomy.names import FAMILIES as LISTED
from tracer.anatomy.names import LLAMA, POST_NORM, Names
from tracer.anatomy.parts import check_parts
from tracer.anatomy.structure import names_by_structure
from tracer.errors import AnatomyError

WRONG = {
    "one module": ({"attention_site": "mlp"}, "are one module"),
    "queries": ({"attention_site": "self_attn.q_proj"}, "attention_site='self_attn.q_proj' and .* do not add up"),
    "inside the MLP": ({"mlp_site": "mlp.act_fn"}, "mlp_site='mlp.act_fn' do not add up"),
    "a norm": ({"mlp_site": "post_attention_layernorm"}, "do not add up"),
    "swapped": ({"attention_site": "mlp", "mlp_site": "self_attn"}, "each the other's: swap them"),
    "MLP": ({"mlp": "input_layernorm"}, "mlp='input_layernorm' is not what computes"),
    "value matrix": ({"value_matrix": "self_attn.o_proj"}, "value_matrix='self_attn.o_proj' does not give what 'mlp'"),
    "head matrix": ({"head_matrix": "self_attn.v_proj"}, "head_matrix='self_attn.v_proj' does not give"),
    "block itself": ({"attention_site": ""}, "attention_site='' is not called once"),
}
NOT_THERE = {
    "embedding": ({"embedding": "model.norm"}, r"model.norm does not embed .* get_input_embeddings\(\) is model.embed"),
    "other blocks": ({"blocks": "model.layers.0"}, r"MLP \(model.layers.0.self_attn.mlp\)"),
    "empty blocks": ({"blocks": "model.rotary_emb"}, r"blocks \(model.rotary_emb holds no modules\)"),
    "head matrix": ({"head_matrix": "self_attn.out"}, r"head matrix \(model.layers.0.self_attn.out\)"),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_every_name_in_the_table_is_of_the_part_it_says(name: str, dtype: torch.dtype) -> None:
    model = FAMILIES[name].build().to(dtype)
    check_parts(model, LISTED[model.config.model_type], given=True)


@pytest.mark.parametrize("wrong", [*WRONG, *(f"{name} not there" for name in NOT_THERE)])
def test_names_of_other_parts_are_refused(wrong: str) -> None:
    changed, said = NOT_THERE[wrong.removesuffix(" not there")] if wrong.endswith("not there") else WRONG[wrong]
    with pytest.raises(AnatomyError, match=said):
        tracer.load(tiny_llama(), names=replace(LLAMA, **changed))


def test_a_matrix_before_the_norm_is_no_site_but_may_be_the_value_matrix() -> None:
    inside = replace(POST_NORM, mlp_site="mlp")
    with pytest.raises(AnatomyError, match="do not add up"):
        tracer.load(tiny_gemma3(), names=inside)
    assert tracer.load(tiny_gemma3(), names=POST_NORM).anatomy.names == POST_NORM


def test_the_error_says_what_the_search_finds() -> None:
    model = HeliumForCausalLM(HeliumConfig(**llama_like()))
    with pytest.raises(AnatomyError) as caught:
        tracer.load(model, names=replace(LLAMA, attention_site="self_attn.q_proj"))
    found = names_by_structure(model)
    assert f"names=tracer.{found}" in str(caught.value)
    assert eval(f"{found}", {"Names": Names}) == found


def test_names_that_do_not_add_up_can_be_insisted_on() -> None:
    odd = replace(LLAMA, attention_site="self_attn.q_proj", head_matrix=None)
    assert tracer.load(tiny_llama(), names=odd, check=False).anatomy.names == odd


def test_a_site_that_a_setting_goes_round_is_named() -> None:
    options = {"vocab_size": 600, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    sliced = Family("BloomForCausalLM", {**options, "pretraining_tp": 2, "slow_but_exact": True})
    for check in (True, False):
        with pytest.raises(AnatomyError, match=r"mlp_site='mlp.dense_4h_to_h' is not called once.*slow_but_exact"):
            tracer.load(sliced.build(), check=check)
