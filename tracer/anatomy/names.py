"""Where each family of transformers keeps its parts: a table of dotted paths.

Model types that are not listed are searched for their parts (`tracer.anatomy.structure`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Names:
    """Where a family keeps its parts: dotted paths, those from `mlp` on relative to a block.

    Attributes:
        after_blocks: modules between the last block and the head, in order: the final norm, an output
            projection. One that a model of the family lacks is left out; its own logits check that.
        mlp: the module that computes each token by itself, or as much of it as is a module.
        mlp_entrance: the module that the MLP's input enters, where that is not `mlp`.
        mlp_site, attention_site: modules whose output is added to the residual stream, as it is or
            (Granite) times a constant, which changes no map.
        value_matrix: the MLP's output weight; its input is the key of an associative memory. None
            where there is no such matrix: a mixture's experts are parts of one tensor.
        head_matrix: the attention's output weight; its input is all heads side by side.
        cross_site: what the cross-attention adds, in the decoder of an encoder-decoder.
        encoder: the same for the encoder's blocks; `embedding` is where the encoder's tokens are embedded.
    """

    embedding: str
    blocks: str
    after_blocks: tuple[str, ...]
    mlp: str
    attention_site: str
    mlp_site: str
    value_matrix: str | None = None
    head_matrix: str | None = None
    mlp_entrance: str | None = None
    cross_site: str | None = None
    encoder: Names | None = None


GPT2 = Names(
    embedding="transformer.wte",
    blocks="transformer.h",
    after_blocks=("transformer.ln_f",),
    mlp="mlp",
    attention_site="attn",
    mlp_site="mlp",
    value_matrix="mlp.c_proj",
    head_matrix="attn.c_proj",
)
GPT_NEOX = Names(
    embedding="gpt_neox.embed_in",
    blocks="gpt_neox.layers",
    after_blocks=("gpt_neox.final_layer_norm",),
    mlp="mlp",
    attention_site="attention",
    mlp_site="mlp",
    value_matrix="mlp.dense_4h_to_h",
    head_matrix="attention.dense",
)
# OPT's MLP is no module of its own: fc1 is where it begins, fc2 where it ends.
OPT = Names(
    embedding="model.decoder.embed_tokens",
    blocks="model.decoder.layers",
    after_blocks=("model.decoder.final_layer_norm", "model.decoder.project_out"),
    mlp="fc2",
    attention_site="self_attn",
    mlp_site="fc2",
    value_matrix="fc2",
    head_matrix="self_attn.out_proj",
    mlp_entrance="fc1",
)
FALCON = replace(
    GPT_NEOX,
    embedding="transformer.word_embeddings",
    blocks="transformer.h",
    after_blocks=("transformer.ln_f",),
    attention_site="self_attention",
    head_matrix="self_attention.dense",
)
# Bloom's sub-layers return their sum with the residual stream; what they add is what their last matrix gives.
BLOOM = replace(FALCON, attention_site="self_attention.dense", mlp_site="mlp.dense_4h_to_h")
LLAMA = Names(
    embedding="model.embed_tokens",
    blocks="model.layers",
    after_blocks=("model.norm",),
    mlp="mlp",
    attention_site="self_attn",
    mlp_site="mlp",
    value_matrix="mlp.down_proj",
    head_matrix="self_attn.o_proj",
)
POST_NORM = replace(LLAMA, attention_site="post_attention_layernorm", mlp_site="post_feedforward_layernorm")
MIXTURE = replace(LLAMA, value_matrix=None)
# Of T5's blocks only the modules inside `layer` return what is added; the sub-layers return their sum with the stream.
T5_ENCODER = Names(
    embedding="encoder.embed_tokens",
    blocks="encoder.block",
    after_blocks=("encoder.final_layer_norm",),
    mlp="layer.1.DenseReluDense",
    attention_site="layer.0.SelfAttention",
    mlp_site="layer.1.DenseReluDense",
    value_matrix="layer.1.DenseReluDense.wo",
    head_matrix="layer.0.SelfAttention.o",
)
T5 = replace(
    T5_ENCODER,
    blocks="decoder.block",
    after_blocks=("decoder.final_layer_norm",),
    mlp="layer.2.DenseReluDense",
    mlp_site="layer.2.DenseReluDense",
    value_matrix="layer.2.DenseReluDense.wo",
    cross_site="layer.1.EncDecAttention",
    encoder=T5_ENCODER,
)

FAMILIES: dict[str, Names] = {
    "bloom": BLOOM,
    "falcon": FALCON,
    "gpt_neox": GPT_NEOX,
    "gpt_neo": replace(GPT2, head_matrix="attn.attention.out_proj"),
    "gpt2": GPT2,
    "gptj": replace(GPT2, value_matrix="mlp.fc_out", head_matrix="attn.out_proj"),
    "opt": OPT,
    "phi": replace(
        LLAMA, after_blocks=("model.final_layernorm",), value_matrix="mlp.fc2", head_matrix="self_attn.dense"
    ),
    "starcoder2": replace(LLAMA, value_matrix="mlp.c_proj"),
    **dict.fromkeys(("cohere", "gemma", "granite", "llama", "mistral", "olmo", "phi3"), LLAMA),
    **dict.fromkeys(("qwen2", "qwen3", "stablelm"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2"), POST_NORM),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), MIXTURE),
    **dict.fromkeys(("mt5", "t5"), T5),
}
