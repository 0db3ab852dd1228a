"""The one place that knows module names: roles of a transformer -> its own modules.

A block adds two things to the residual stream, attention and MLP:
    h[l] = h[l-1] + a[l] + m[l]
A *site* is what a sub-layer adds. Where a family normalises after the sub-layer (Gemma 2 and 3),
that is the value after this norm, so `attention_site` and `mlp_site` may differ from the modules
that compute them. `tracer.anatomy.names` lists the names; types that are not there are searched (`structure`).

An encoder-decoder has two *stacks* of blocks. They are counted through: with E encoder blocks, layer E
is the decoder's first. A decoder's block adds a third thing, cross-attention to the encoder's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tracer.anatomy.missing_roles import has, missing_roles
from tracer.anatomy.names import FAMILIES, Names
from tracer.errors import AnatomyError, SiteError
from tracer.site import Kind

SubLayer = Literal["mlp", "attn", "cross"]


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after the other on the same tokens.

    Attributes:
        name: "encoder", "decoder", or "" where there is only one.
        names: its parts.
        layers: of the model, counted through.
    """

    name: str
    names: Names
    layers: range


class Anatomy:
    """The modules of one loaded model, by role. Layers count from 0.

    Attributes:
        names: the dotted paths in use.
        blocks: all blocks, in the order in which they run: an encoder's first.
        stacks: one, or encoder and decoder.
        after_encoder: what the encoder's last output goes through before the decoder reads it, in order.
        after_blocks: what comes between the last block and the head, in order.
        head: the output embedding, to the vocabulary.
        embedding_size: width of the token embedding; OPT-350m projects it to d_model.
        n_heads: attention heads (query heads) in a layer.
    """

    def __init__(self, model: PreTrainedModel, names: Names) -> None:
        self.names = names
        self.embedding = model.get_submodule(names.embedding)
        self.blocks: list[nn.Module] = []
        self.stacks: list[Stack] = []
        for name, of_stack in _named_stacks(names):
            first = len(self.blocks)
            self.blocks += model.get_submodule(of_stack.blocks).children()
            self.stacks.append(Stack(name, of_stack, range(first, len(self.blocks))))
        self.after_encoder = [model.get_submodule(path) for path in names.encoder.after_blocks] if names.encoder else []
        self.after_blocks = [model.get_submodule(path) for path in names.after_blocks if has(model, path)]
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Module)  # `anatomy_of` lists it among the missing roles
        self.head: nn.Module = head
        text = model.config.get_text_config()
        # Cohere, Granite
        self.logit_factor = (getattr(text, "logit_scale", None) or 1) / (getattr(text, "logits_scaling", None) or 1)
        if getattr(text, "scale_decoder_outputs", False):  # T5 with one matrix for input and output embeddings
            self.logit_factor *= int(text.hidden_size) ** -0.5
        self.logit_softcap: float | None = getattr(text, "final_logit_softcapping", None)
        self.family, self.n_layers, self.d_model = model.config.model_type, len(self.blocks), int(text.hidden_size)
        self.n_heads = int(text.num_attention_heads)
        self.embedding_size = int(next(self.embedding.parameters()).shape[-1])

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt and a decoder writes the answer."""
        return len(self.stacks) > 1

    @property
    def n_encoder_layers(self) -> int:
        """Layers below the decoder's first: 0 where there is no encoder."""
        return self.stacks[-1].layers.start

    def stack(self, layer: int) -> Stack:
        """The stack that a layer is part of."""
        self.check_layer(layer)
        return next(stack for stack in self.stacks if layer in stack.layers)

    def place(self, layer: int, token: int, n_encoder: int = 0) -> int | None:
        """Where a token of a row stands among those that block `layer` reads; None where it reads others.

        Args:
            layer: which block.
            token: in a row that holds the encoder's tokens first.
            n_encoder: how many these are; 0 in a model of one stack.
        """
        if not n_encoder:
            return token
        in_encoder = layer < self.n_encoder_layers
        if in_encoder != (token < n_encoder):
            return None
        return token if in_encoder else token - n_encoder

    def kinds_in(self, layer: int) -> tuple[Kind, ...]:
        """What block `layer` has, in the order in which it computes them: cross-attention is a decoder's alone."""
        crosses = self.stack(layer).names.cross_site is not None
        return ("attn", "cross", "mlp", "state") if crosses else ("attn", "mlp", "state")

    def block_path(self, layer: int) -> str:
        """The dotted path of block `layer`."""
        stack = self.stack(layer)
        return f"{stack.names.blocks}.{layer - stack.layers.start}"

    def site_path(self, kind: SubLayer, layer: int) -> str:
        """The dotted path of the module whose output block `layer` adds to the residual stream for `kind`."""
        names = self.stack(layer).names
        inside = {"mlp": names.mlp_site, "attn": names.attention_site, "cross": names.cross_site}[kind]
        if inside is None:
            raise SiteError(f"Layer {layer} has no cross-attention: that is in the decoder of an encoder-decoder.")
        return f"{self.block_path(layer)}.{inside}"

    def site_module(self, kind: SubLayer, layer: int) -> nn.Module:
        """The module whose output block `layer` adds to the residual stream for `kind`."""
        inside = self.site_path(kind, layer).removeprefix(f"{self.block_path(layer)}.")
        return self.blocks[layer].get_submodule(inside)

    def mlp_entrance(self, layer: int) -> nn.Module:
        """The module that the MLP's input enters.

        Raises:
            AnatomyError: the MLP is spread over the block, and it is not known where it begins.
        """
        names = self.stack(layer).names
        if names.mlp_entrance is None and names.mlp == names.value_matrix:
            raise AnatomyError(
                f"The MLP of model type {self.family!r} is no module of its own, and where it begins is not known. "
                "Write tracer.load(..., names=dataclasses.replace(model.anatomy.names, mlp_entrance=...))."
            )
        return self.blocks[layer].get_submodule(names.mlp_entrance or names.mlp)

    def value_matrix(self, layer: int) -> nn.Module:
        """The MLP's output projection, y = W k + b.

        Raises:
            AnatomyError: this family's MLPs have no such matrix.
        """
        return self.blocks[self.check_layer(layer)].get_submodule(self._value_matrix_name(layer))

    def value_weight_name(self, layer: int) -> str:
        """The parameter name of `value_matrix`'s weight in the model's state dict."""
        return f"{self.block_path(layer)}.{self._value_matrix_name(layer)}.weight"

    def head_matrix(self, layer: int) -> nn.Module:
        """The attention's output projection: its input is [..., head * size of a head].

        Raises:
            AnatomyError: it is not known for this family.
        """
        name = self.stack(layer).names.head_matrix
        if name is None:
            raise AnatomyError(
                f"Where the heads of model type {self.family!r} come together is not known. Write tracer.load(..., "
                f"names=dataclasses.replace(model.anatomy.names, head_matrix=...)), e.g. 'self_attn.o_proj'."
            )
        return self.blocks[layer].get_submodule(name)

    def _value_matrix_name(self, layer: int) -> str:
        name = self.stack(layer).names.value_matrix
        if name is None:
            raise AnatomyError(
                f"Model type {self.family!r} has no single MLP output matrix (in a mixture each expert has its own), "
                f"so there is none to edit. It can be traced; edit a model with dense MLPs."
            )
        return name

    def encoded(self, hidden: Tensor) -> Tensor:
        """What the decoder reads, from the encoder's last block's output."""
        for module in self.after_encoder:
            hidden = module(hidden)
        return hidden

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
    from tracer.anatomy.structure import names_by_structure  # which builds on this module

    known = names or FAMILIES.get(model.config.model_type)
    _check_stacks(model, known)
    if known is None:
        return Anatomy(model, names_by_structure(model))
    missing = missing_roles(model, known)
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


def _named_stacks(names: Names) -> list[tuple[str, Names]]:
    return [("", names)] if names.encoder is None else [("encoder", names.encoder), ("decoder", names)]


def _check_stacks(model: PreTrainedModel, names: Names | None) -> None:
    """Raises AnatomyError for an encoder-decoder whose encoder is not named: the search finds one stack alone."""
    if getattr(model.config, "is_encoder_decoder", False) and (names is None or names.encoder is None):
        known = ", ".join(sorted(name for name, found in FAMILIES.items() if found.encoder))
        raise AnatomyError(
            f"Model type {model.config.model_type!r} is an encoder-decoder that is not listed; listed are {known}. "
            f"Name the parts of both: tracer.load(..., names=tracer.Names(..., cross_site=..., "
            f"encoder=tracer.Names(...)))."
        )
