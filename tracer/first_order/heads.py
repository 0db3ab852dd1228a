"""Where attention heads and MLPs read the residual stream, and what each head adds to it.

Known for families that normalise before each sub-layer and add its output as it is:
    h' = h + sum over heads of z[head] W_out[head] + b,    h'' = h' + MLP(norm(h'))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from tracer.anatomy import Anatomy, is_stored_transposed
from tracer.errors import AnatomyError
from tracer.model import LanguageModel

Role = Literal["q", "k", "v"]
PROJECTIONS: tuple[Role, ...] = ("q", "k", "v")


@dataclass(frozen=True)
class HeadNames:
    """Where a family's blocks keep these parts: dotted paths relative to a block.

    Attributes:
        attention_norm, mlp_norm: what is applied to the residual stream before each sub-layer.
        projections: to queries, keys and values; one name three times where they are one matrix, in this order.
    """

    attention_norm: str
    mlp_norm: str
    projections: tuple[str, str, str]


GPT2 = HeadNames("ln_1", "ln_2", ("attn.c_attn", "attn.c_attn", "attn.c_attn"))
LLAMA = HeadNames(
    "input_layernorm",
    "post_attention_layernorm",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
)
HEAD_NAMES = {"gpt2": GPT2, **dict.fromkeys(("gemma", "llama", "mistral", "qwen2", "qwen3", "starcoder2"), LLAMA)}


class Heads:
    """The parts of a model's heads.

    Attributes:
        n_heads: query heads a layer.
        n_key_heads: key and value heads a layer; each serves n_heads / n_key_heads query heads.
        d_head: width of one head.

    Raises:
        AnatomyError: a family whose heads are not known to read and write as above.
    """

    def __init__(self, model: LanguageModel) -> None:
        model.check_decoder_only("Attribution of edges (attribute_edges, path_patch)")
        model.check_whole("Edges")
        self.anatomy: Anatomy = model.anatomy
        names, config = HEAD_NAMES.get(self.anatomy.family), model.torch.config.get_text_config()
        if names is None:
            raise AnatomyError(
                f"How single heads of model type {self.anatomy.family!r} read and write is not known, or is more than "
                f"a slice of a matrix. Families with edges: {', '.join(sorted(HEAD_NAMES))}."
            )
        self.names = names
        self.n_heads = self.anatomy.n_heads
        self.n_key_heads: int = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_head: int = getattr(config, "head_dim", None) or self.anatomy.d_model // self.n_heads

    def norm(self, layer: int, sub_layer: Literal["attn", "mlp"]) -> nn.Module:
        """What is applied to the residual stream before a sub-layer."""
        name = self.names.attention_norm if sub_layer == "attn" else self.names.mlp_norm
        return self.anatomy.blocks[layer].get_submodule(name)

    def output(self, layer: int) -> nn.Module:
        """Takes the heads' values [row, token, head * d_head] back to the residual stream."""
        return self.anatomy.head_matrix(layer)

    def projection(self, layer: int, role: Role) -> nn.Module:
        """To queries, keys or values."""
        return self.anatomy.blocks[layer].get_submodule(self.names.projections[PROJECTIONS.index(role)])

    def count(self, role: Role) -> int:
        """How many heads of this role a layer has."""
        return self.n_heads if role == "q" else self.n_key_heads

    def columns(self, role: Role, head: int) -> slice:
        """Where a head's queries, keys or values stand in what `projection` returns."""
        begin = head * self.d_head
        if len(set(self.names.projections)) == 1:
            begin += sum(self.count(earlier) for earlier in PROJECTIONS[: PROJECTIONS.index(role)]) * self.d_head
        return slice(begin, begin + self.d_head)

    def reading(self, layer: int, role: Role, head: int) -> Tensor:
        """A head's rows of the projection, [d_head, d_model]."""
        module = self.projection(layer, role)
        weight = _weight(module)
        return weight[self.columns(role, head)]

    def writing(self, layer: int) -> Tensor:
        """What each head's values are multiplied by, [head, d_head, d_model]."""
        return _weight(self.output(layer)).T.unflatten(0, (self.n_heads, self.d_head))


def _weight(module: nn.Module) -> Tensor:
    """The module's weight, [out, in], however its class stores it."""
    weight = module.get_parameter("weight").detach()
    return weight.T if is_stored_transposed(module) else weight
