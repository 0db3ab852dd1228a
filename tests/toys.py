"""Models small or simple enough that effects can be computed by hand."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

WIDTH, VOCABULARY = 16, 50
IDS = torch.tensor([[11, 7, 25, 33, 48, 12]])


def gpt2(n_layers: int = 3, scale: float = 0.3, **options) -> PreTrainedModel:
    """A random float64 GPT-2."""
    torch.manual_seed(0)
    sizes = {"n_layer": n_layers, "n_embd": WIDTH, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": 32}
    config = GPT2Config(**sizes, initializer_range=scale, bos_token_id=1, eos_token_id=2, **options)
    return GPT2LMHeadModel(config).double().eval()


def llama(n_layers: int = 3, **options) -> PreTrainedModel:
    """A random float64 Llama whose four heads share two key heads."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": n_layers, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.3, **options)).double().eval()


def linear_gpt2(n_layers: int = 3) -> PreTrainedModel:
    """A GPT-2 whose logits are linear in its embeddings: no norms, no activation function, even attention."""
    model = gpt2(n_layers)
    for block in model.transformer.h:
        block.ln_1, block.ln_2, block.mlp.act = nn.Identity(), nn.Identity(), nn.Identity()
        with torch.no_grad():  # no queries and keys: every token looks at all before it alike
            block.attn.c_attn.weight[:, : 2 * WIDTH] = 0
            block.attn.c_attn.bias[: 2 * WIDTH] = 0
    model.transformer.ln_f = nn.Identity()
    return model
