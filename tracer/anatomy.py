"""The one place that knows module names: roles of a transformer -> its own modules.

A block adds two things to the residual stream, attention and MLP:
    h[l] = h[l-1] + a[l] + m[l]
A *site* is what a sub-layer adds. Where a family normalises after the sub-layer (Gemma 2 and 3),
that is the value after this norm, so `attention_site` and `mlp_site` may differ from the modules
that compute them. Model types that are not listed here are searched for their parts (`structure`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tracer.errors import AnatomyError, SiteError

SubLayer = Literal["mlp", "attn"]


@dataclass(frozen=True)
class Names:
    """Where a family keeps its parts: dotted paths, those from `mlp` on relative to a block.

    Attributes:
        after_blocks: modules between the last block and the head, in order: the final norm, an output
            projection. One that a model of the family lacks is left out; its own logits check that.
        mlp: the module that computes each token by itself, or as much of it as is a module.
        mlp_site, attention_site: modules whose output is added to the residual stream, as it is or
            (Granite) times a constant, which changes no map.
        value_matrix: the MLP's output weight; its input is the key of an associative memory. None
            where there is no such matrix: a mixture's experts are parts of one tensor.
        head_matrix: the attention's output weight; its input is all heads side by side.
    """

    embedding: str
    blocks: str
    after_blocks: tuple[str, ...]
    mlp: str
    attention_site: str
    mlp_site: str
    value_matrix: str | None = None
    head_matrix: str | None = None


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
# OPT's MLP is no module of its own: fc2 is where it ends.
OPT = Names(
    embedding="model.decoder.embed_tokens",
    blocks="model.decoder.layers",
    after_blocks=("model.decoder.final_layer_norm", "model.decoder.project_out"),
    mlp="fc2",
    attention_site="self_attn",
    mlp_site="fc2",
    value_matrix="fc2",
    head_matrix="self_attn.out_proj",
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
}


class Anatomy:
    """The modules of one loaded model, by role. Layers count from 0.

    Attributes:
        names: the dotted paths in use.
        blocks: the decoder blocks, in order.
        after_blocks: what comes between the last block and the head, in order.
        head: the output embedding, to the vocabulary.
        embedding_size: width of the token embedding; OPT-350m projects it to d_model.
        n_heads: attention heads (query heads) in a layer.
    """

    def __init__(self, model: PreTrainedModel, names: Names) -> None:
        self.names = names
        self.embedding = model.get_submodule(names.embedding)
        self.blocks = list(model.get_submodule(names.blocks).children())
        self.after_blocks = [model.get_submodule(path) for path in names.after_blocks if _has(model, path)]
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Module)  # `anatomy_of` lists it among the missing roles
        self.head: nn.Module = head
        text = model.config.get_text_config()
        # Cohere, Granite
        self.logit_factor = (getattr(text, "logit_scale", None) or 1) / (getattr(text, "logits_scaling", None) or 1)
        self.logit_softcap: float | None = getattr(text, "final_logit_softcapping", None)
        self.family, self.n_layers, self.d_model = model.config.model_type, len(self.blocks), int(text.hidden_size)
        self.n_heads = int(text.num_attention_heads)
        self.embedding_size = int(next(self.embedding.parameters()).shape[-1])

    def site_module(self, kind: SubLayer, layer: int) -> nn.Module:
        """The module whose output block `layer` adds to the residual stream for `kind`."""
        name = self.names.mlp_site if kind == "mlp" else self.names.attention_site
        return self.blocks[self.check_layer(layer)].get_submodule(name)

    def value_matrix(self, layer: int) -> nn.Module:
        """The MLP's output projection, y = W k + b.

        Raises:
            AnatomyError: this family's MLPs have no such matrix.
        """
        return self.blocks[self.check_layer(layer)].get_submodule(self._value_matrix_name())

    def value_weight_name(self, layer: int) -> str:
        """The parameter name of `value_matrix`'s weight in the model's state dict."""
        return f"{self.names.blocks}.{self.check_layer(layer)}.{self._value_matrix_name()}.weight"

    def head_matrix(self, layer: int) -> nn.Module:
        """The attention's output projection: its input is [..., head * size of a head].

        Raises:
            AnatomyError: it is not known for this family.
        """
        if self.names.head_matrix is None:
            raise AnatomyError(
                f"Where the heads of model type {self.family!r} come together is not known. Write tracer.load(..., "
                f"names=dataclasses.replace(model.anatomy.names, head_matrix=...)), e.g. 'self_attn.o_proj'."
            )
        return self.blocks[self.check_layer(layer)].get_submodule(self.names.head_matrix)

    def _value_matrix_name(self) -> str:
        if self.names.value_matrix is None:
            raise AnatomyError(
                f"Model type {self.family!r} has no single MLP output matrix (in a mixture each expert has its own), "
                f"so there is none to edit. It can be traced; edit a model with dense MLPs."
            )
        return self.names.value_matrix

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits from the last block's output."""
        return self.logits(self.before_head(hidden))

    def before_head(self, hidden: Tensor) -> Tensor:
        """The head's input, from the last block's output."""
        for module in self.after_blocks:
            hidden = module(hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits from the head's input."""
        return self.scaled(self.head(hidden))

    def scaled(self, logits: Tensor) -> Tensor:
        """The head's output, scaled and soft-capped where the family does that."""
        logits = logits if self.logit_factor == 1 else logits * self.logit_factor
        return torch.tanh(logits / self.logit_softcap) * self.logit_softcap if self.logit_softcap else logits

    def check_layer(self, layer: int) -> int:
        """Returns `layer`, or raises SiteError if this model does not have it."""
        if not 0 <= layer < self.n_layers:
            raise SiteError(
                f"Layer {layer} is outside this model, which has layers 0 to {self.n_layers - 1}. "
                f"For its last layer write {self.n_layers - 1}."
            )
        return layer


def anatomy_of(model: PreTrainedModel, names: Names | None = None) -> Anatomy:
    """Finds a model's parts: by the `names` given, else by its family, else by what its modules do.

    Raises:
        AnatomyError: a role's module is not there; lists every missing role.
    """
    from tracer.structure import names_by_structure  # which builds on this module

    known = names or FAMILIES.get(model.config.model_type)
    if known is None:
        return Anatomy(model, names_by_structure(model))
    missing = _missing_roles(model, known)
    if missing:
        raise AnatomyError(
            f"The names {'given' if names else 'known'} do not fit this model of type {model.config.model_type!r}. "
            f"Not found: {', '.join(missing)}. Write tracer.load(..., names=tracer.Names(embedding=..., ...))."
        )
    return Anatomy(model, known)


def is_stored_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored [in, out] (Conv1D) rather than [out, in] (Linear).

    Decided by the module's type: the shape of a square matrix tells nothing.
    """
    if isinstance(module, Conv1D):
        return True
    if isinstance(module, nn.Linear):
        return False
    raise AnatomyError(f"{type(module).__name__} is neither Linear nor Conv1D, so its orientation is unknown.")


def _missing_roles(model: PreTrainedModel, names: Names) -> list[str]:
    """The roles whose dotted path leads nowhere in this model, or to something else."""
    outside = (("embedding", names.embedding), ("blocks", names.blocks))
    missing = [f"{role} ({path})" for role, path in outside if not _has(model, path)]
    own = model.get_input_embeddings()
    if _has(model, names.embedding) and model.get_submodule(names.embedding) is not own:
        path = next((path for path, module in model.named_modules() if module is own), "no module of it")
        missing.append(f"embedding ({names.embedding} does not embed the tokens; get_input_embeddings() is {path})")
    if model.get_output_embeddings() is None:
        missing.append("head (get_output_embeddings() is None)")
    blocks = dict(model.get_submodule(names.blocks).named_children()) if _has(model, names.blocks) else {}
    if _has(model, names.blocks) and not blocks:
        missing.append(f"blocks ({names.blocks} holds no modules)")
    sites = (("MLP", names.mlp), ("attention site", names.attention_site), ("MLP site", names.mlp_site))
    for role, path in (*sites, ("value matrix", names.value_matrix), ("head matrix", names.head_matrix)):
        absent = [name for name, block in blocks.items() if path and not _has(block, path)]
        missing += [f"{role} ({names.blocks}.{name}.{path})" for name in absent[:1]]
    return missing


def _has(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True
