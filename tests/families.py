"""Tiny seeded models of every family in the table, and the README's table of what was measured on them.

python tests/families.py --write README.md
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from conftest import llama_like, noise_of
from transformers import PreTrainedModel

import tracer
from tracer.passes import Passes
from tracer.sweep import Sweep

# Bounds in float64. GPT-Neo, GPT-J, Bloom and Gemma 2 (eager attention only) compute their scores or
# softmax in float32 whatever their weights are, and rounding there depends on how rows are batched.
EXACT, SINGLE = 1e-9, 1e-6


@dataclass(frozen=True)
class Family:
    """One row: a causal-LM class, its tiny configuration, and how near sweep and definition must be."""

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    bound: float = EXACT

    def build(self) -> PreTrainedModel:
        torch.manual_seed(0)
        architecture = getattr(transformers, self.architecture)
        return architecture(architecture.config_class(**self.options)).double().eval()


COMMON = {k: v for k, v in llama_like().items() if k not in ("head_dim",)}
FULL = {**COMMON, "num_key_value_heads": 4}  # as many key as query heads
TINY_GPT = {
    "vocab_size": 600,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
GPT = {**TINY_GPT, "n_layer": 4, "n_embd": 32, "n_head": 4, "n_positions": 96}
GPT_NEO = {
    **TINY_GPT,
    "hidden_size": 32,
    "num_layers": 4,
    "num_heads": 4,
    "max_position_embeddings": 24,  # shorter than a packed sequence
    "attention_types": [[["global", "local"], 2]],
    "window_size": 3,
}
NEOX = {k: v for k, v in FULL.items() if k != "num_key_value_heads"}
OPT = {
    **TINY_GPT,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "init_std": 0.3,
    "pad_token_id": 0,
    "word_embed_proj_dim": 32,
}
FALCON = {
    **TINY_GPT,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
}
EXPERTS = {"experts_implementation": "eager", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES: dict[str, Family] = {
    "GPT-2": Family("GPT2LMHeadModel", GPT),
    "GPT-Neo": Family("GPTNeoForCausalLM", GPT_NEO, SINGLE),
    "GPT-J": Family("GPTJForCausalLM", {**GPT, "rotary_dim": 4}, SINGLE),
    "GPT-NeoX, Pythia": Family("GPTNeoXForCausalLM", {**NEOX, "use_parallel_residual": True}),
    "GPT-NeoX, sequential": Family("GPTNeoXForCausalLM", {**NEOX, "use_parallel_residual": False}),
    "OPT": Family("OPTForCausalLM", OPT),
    "OPT-350m": Family("OPTForCausalLM", {**OPT, "word_embed_proj_dim": 20, "do_layer_norm_before": False}),
    "BLOOM": Family("BloomForCausalLM", {**TINY_GPT, "hidden_size": 32, "n_layer": 4, "n_head": 4}, SINGLE),
    "Falcon, multi-query": Family("FalconForCausalLM", {**FALCON, "multi_query": True, "parallel_attn": True}),
    "Falcon, new decoder": Family("FalconForCausalLM", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon, ALiBi": Family(
        "FalconForCausalLM", {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False}
    ),
    "Llama": Family("LlamaForCausalLM", COMMON),
    "Mistral": Family("MistralForCausalLM", {**COMMON, "sliding_window": 3}),
    "Mixtral": Family("MixtralForCausalLM", {**COMMON, "num_local_experts": 4, "experts_implementation": "eager"}),
    "Qwen2": Family("Qwen2ForCausalLM", COMMON),
    "Qwen2-MoE": Family("Qwen2MoeForCausalLM", {**COMMON, **EXPERTS, "shared_expert_intermediate_size": 16}),
    "Qwen3": Family("Qwen3ForCausalLM", COMMON),
    "Qwen3-MoE": Family("Qwen3MoeForCausalLM", {**COMMON, **EXPERTS}),
    "Gemma": Family("GemmaForCausalLM", llama_like()),
    "Gemma 2": Family("Gemma2ForCausalLM", {**llama_like(), "sliding_window": 3}, SINGLE),
    "Gemma 3": Family(
        "Gemma3ForCausalLM",
        {**llama_like(), "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "Phi": Family("PhiForCausalLM", COMMON),
    "Phi-3": Family("Phi3ForCausalLM", COMMON),
    "OLMo": Family("OlmoForCausalLM", FULL),
    "OLMo-2": Family("Olmo2ForCausalLM", COMMON),
    "StarCoder2": Family("Starcoder2ForCausalLM", COMMON),
    "StableLM": Family("StableLmForCausalLM", COMMON),
    "Granite": Family(
        "GraniteForCausalLM", {**COMMON, "residual_multiplier": 0.5, "logits_scaling": 2.0, "embedding_multiplier": 3.0}
    ),
    "Cohere": Family("CohereForCausalLM", {**COMMON, "logit_scale": 0.5}),
}
IDS = torch.tensor([[11, 87, 254, 33, 480, 129, 64, 300]])
SPAN = (2, 4)


def differences(model: tracer.LanguageModel) -> dict[str, float]:
    """The largest difference in probability between sweep and definition in each of the five maps."""
    noise = noise_of(2, SPAN[1] - SPAN[0], width=model.anatomy.embedding_size)
    passes, sweep = Passes(model, IDS, SPAN, noise), Sweep(model, IDS, SPAN, noise)
    answer, tokens = int(passes.clean_logits.argmax()), list(range(IDS.shape[1]))
    maps: dict[str, Callable[[Any], torch.Tensor]] = {
        "states": lambda engine: engine.state_map(answer, tokens),
        "MLP": lambda engine: engine.window_map("mlp", answer, tokens, 3),
        "attention": lambda engine: engine.window_map("attn", answer, tokens, 3),
        "severed mlp": lambda engine: engine.severed_map("mlp", answer, tokens),
        "severed attn": lambda engine: engine.severed_map("attn", answer, tokens),
    }
    found = {}
    for name, compute in maps.items():
        slow = compute(passes)
        assert slow.std() > 1e-3 * slow.mean(), name  # flat maps would agree by themselves
        found[name] = float((compute(sweep) - slow).abs().max())
    return found


COLUMNS = ("family", "states", "MLP", "attention", "severed", "engine", "largest difference")
BLOCK = re.compile(r"(?<=<!-- families -->\n).*?(?=<!-- /families -->)", re.DOTALL)


def row(name: str, found: dict[str, float]) -> tuple[str, ...]:
    """One line of the table: which maps are within the family's bound, and the largest difference of all."""
    bound = FAMILIES[name].bound
    severed = max(found["severed mlp"], found["severed attn"])
    each = [found["states"], found["MLP"], found["attention"], severed]
    worst = max(each)
    marks = ["yes" if difference <= bound else "no" for difference in each]
    engine = "sweep" if worst <= bound else "passes"
    return (name, *marks, engine, f"1e{math.ceil(math.log10(max(worst, 1e-17)))}")


def markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """The table between the README's markers."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rows_of(text: str) -> list[tuple[str, ...]]:
    """The rows of the table in a README."""
    (block,) = BLOCK.findall(text)
    lines = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in block.splitlines()]
    assert lines[0] == COLUMNS
    return lines[2:]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, required=True, help="the file whose table is written anew")
    path = parser.parse_args().write
    table = markdown([row(name, differences(tracer.load(family.build()))) for name, family in FAMILIES.items()])
    path.write_text(BLOCK.sub(lambda _: table, path.read_text(encoding="utf-8")), encoding="utf-8")
