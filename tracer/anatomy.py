"""The one place that knows module names: roles of a transformer -> its own modules.

A block adds two things to the residual stream, attention and MLP:
    h[l] = h[l-1] + a[l] + m[l]
A *site* is what a sub-layer adds. Where a family normalises after the sub-layer (Gemma 2 and 3),
that is the value after this norm, so `attention_site` and `mlp_site` may differ from the modules
that compute them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tracer.errors import AnatomyError, SiteError

SubLayer = Literal["mlp", "attn"]


@dataclass(frozen=True)
class Names:
    """Where a family keeps its parts: dotted paths, the last five relative to a block.

    Attributes:
        value_matrix: the MLP's output weight; its input is the key of an associative memory.
        mlp_site, attention_site: modules whose output is added to the residual stream.
    """

    embedding: str
    blocks: str
    final_norm: str
    attention: str
    mlp: str
    value_matrix: str
    attention_site: str
    mlp_site: str


GPT2 = Names(
    embedding="transformer.wte",
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn",
    mlp="mlp",
    value_matrix="mlp.c_proj",
    attention_site="attn",
    mlp_site="mlp",
)
LLAMA = Names(
    embedding="model.embed_tokens",
    blocks="model.layers",
    final_norm="model.norm",
    attention="self_attn",
    mlp="mlp",
    value_matrix="mlp.down_proj",
    attention_site="self_attn",
    mlp_site="mlp",
)
GEMMA_POST_NORM = Names(
    embedding="model.embed_tokens",
    blocks="model.layers",
    final_norm="model.norm",
    attention="self_attn",
    mlp="mlp",
    value_matrix="mlp.down_proj",
    attention_site="post_attention_layernorm",
    mlp_site="post_feedforward_layernorm",
)

FAMILIES: dict[str, Names] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "gemma2": GEMMA_POST_NORM,
    "gemma3_text": GEMMA_POST_NORM,
}


class Anatomy:
    """The modules of one loaded model, by role. Layers count from 0.

    Attributes:
        names: the dotted paths in use.
        blocks: the decoder blocks, in order.
        head: the output embedding, d_model -> vocab.
        embedding_size: width of the token embeddings; d_model in most families.
    """

    def __init__(self, model: PreTrainedModel, names: Names) -> None:
        self.names = names
        self.embedding: nn.Module = _module(model, names.embedding)
        self.blocks: list[nn.Module] = list(_module(model, names.blocks).children())
        self.final_norm: nn.Module = _module(model, names.final_norm)
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Module)  # `anatomy_of` lists it among the missing roles
        self.head: nn.Module = head
        text = model.config.get_text_config()
        self.logit_softcap: float | None = getattr(text, "final_logit_softcapping", None)
        self.n_layers = len(self.blocks)
        self.d_model = int(text.hidden_size)
        self.embedding_size = int(next(self.embedding.parameters()).shape[-1])

    def site_module(self, kind: SubLayer, layer: int) -> nn.Module:
        """The module whose output block `layer` adds to the residual stream for `kind`."""
        name = self.names.mlp_site if kind == "mlp" else self.names.attention_site
        return _module(self.blocks[self.check_layer(layer)], name)

    def value_matrix(self, layer: int) -> nn.Module:
        """The MLP's output projection, y = W k + b."""
        return _module(self.blocks[self.check_layer(layer)], self.names.value_matrix)

    def value_weight_name(self, layer: int) -> str:
        """The parameter name of `value_matrix`'s weight in the model's state dict."""
        return f"{self.names.blocks}.{self.check_layer(layer)}.{self.names.value_matrix}.weight"

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits from the last block's output: final norm, then `logits`."""
        return self.logits(self.final_norm(hidden))

    def logits(self, normed: Tensor) -> Tensor:
        """Logits from the final norm's output: head, soft-capping where the family has it."""
        return self.capped(self.head(normed))

    def capped(self, logits: Tensor) -> Tensor:
        """The head's output, soft-capped where the family does that."""
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
    """Finds a model's parts by its family, or by the `names` given.

    Raises:
        AnatomyError: the family is unknown or a role's module is not there; lists every missing role.
    """
    family = model.config.model_type
    known = names or FAMILIES.get(family)
    candidate = known or LLAMA
    missing = _missing_roles(model, candidate)
    if known is None or missing:
        found = f"Not found under {'those' if known else 'Llama-like'} names: {', '.join(missing)}."
        if not missing:
            found = "All roles are there under Llama-like names: if they fit, write names=tracer.anatomy.LLAMA."
        raise AnatomyError(
            f"{'The names given do not fit' if names else 'No names are known for'} model type {family!r}. {found} "
            f"Known types: {', '.join(sorted(FAMILIES))}. For another model write "
            f"tracer.load(..., names=tracer.Names(embedding=..., blocks=..., ...))."
        )
    return Anatomy(model, candidate)


def is_stored_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored [in, out] (Conv1D) rather than [out, in] (Linear).

    Decided by the module's type: the shape of a square matrix tells nothing.
    """
    if isinstance(module, Conv1D):
        return True
    if isinstance(module, nn.Linear):
        return False
    raise AnatomyError(f"{type(module).__name__} is neither Linear nor Conv1D, so its orientation is unknown.")


def hidden_of(output: Tensor | tuple) -> Tensor:
    """The hidden states in what a module returned: some return a tensor, some a tuple led by it."""
    return output if isinstance(output, Tensor) else output[0]


def with_hidden(output: Tensor | tuple, hidden: Tensor) -> Tensor | tuple:
    """`output` with its hidden states replaced; the counterpart of `hidden_of`."""
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


def _module(root: nn.Module, path: str) -> nn.Module:
    return root.get_submodule(path)


def _missing_roles(model: PreTrainedModel, names: Names) -> list[str]:
    """The roles whose dotted path leads nowhere in this model."""
    missing = [
        f"{role} ({path})"
        for role, path in (
            ("embedding", names.embedding),
            ("blocks", names.blocks),
            ("final norm", names.final_norm),
        )
        if not _has(model, path)
    ]
    if model.get_output_embeddings() is None:
        missing.append("head (get_output_embeddings() is None)")
    blocks = list(_module(model, names.blocks).children()) if _has(model, names.blocks) else []
    if not blocks:
        return missing
    inside = {
        "attention": names.attention,
        "MLP": names.mlp,
        "value matrix": names.value_matrix,
        "attention site": names.attention_site,
        "MLP site": names.mlp_site,
    }
    for role, path in inside.items():
        absent = [index for index, block in enumerate(blocks) if not _has(block, path)]
        if absent:
            missing.append(f"{role} ({names.blocks}.{absent[0]}.{path})")
    return missing


def _has(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True
