"""Are the parts of a model what their names say? One watched pass over a few tokens tells.

Both engines read and write the sites that `Names` names, so they agree on wrong ones too: only the
block's own sum (`tracer.anatomy.block`) shows that a map would be of something else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from tracer.anatomy.block import Block
from tracer.anatomy.names import FAMILIES, Names
from tracer.anatomy.structure import names_by_structure
from tracer.anatomy.watch import Watched, watch
from tracer.errors import AnatomyError


def check_parts(model: PreTrainedModel, names: Names, *, given: bool) -> None:
    """Raises AnatomyError where a site is not called once in each block, or names given are of other parts.

    Args:
        model: in eval mode: with dropout nothing adds up.
        names: of its parts.
        given: by hand; those that are listed or found have been checked.
    """
    watched = _watched(model)
    blocks = [
        (f"{stack.blocks}.{number}", stack)
        for stack in (names.encoder, names)
        if stack is not None
        for number, _ in enumerate(model.get_submodule(stack.blocks).children())
    ]
    for path, stack in blocks:
        problems = list(_not_called(watched, path, stack))
        if given and not problems and names.encoder is None:  # what a decoder with cross-attention adds has three parts
            problems = list(_other_parts(Block(model, watched, path), names))
        if problems:
            raise AnatomyError(
                f"{path} of this model of type {model.config.model_type!r} is not as its "
                f"{'names given' if given else 'names'} say: {'; '.join(problems)}. {_advice(model, given)}"
            )


def _watched(model: PreTrainedModel) -> Watched:
    if getattr(model.config, "is_encoder_decoder", False):  # whose own cache has two parts
        return watch(model, cache=False)
    try:
        return watch(model, cache=True)
    except Exception:  # whatever an unknown model does with such a cache; then attention is not told from MLP
        return watch(model, cache=False)


def _not_called(watched: Watched, path: str, names: Names) -> Iterator[str]:
    """Roles of one block whose module does not run once."""
    if not watched.once(path) or path not in watched.inputs:
        yield f"blocks={names.blocks!r} holds what is not handed a hidden state of every token, once in a pass"
    for role in ("attention_site", "mlp_site", "cross_site"):
        name = getattr(names, role)
        if name is not None and not watched.once(f"{path}.{name}"):
            yield f"{role}={name!r} is not called once in a pass with a hidden state of every token"


def _other_parts(block: Block, names: Names) -> Iterator[str]:
    """Roles of one block whose module does something else, and what."""
    sites = f"attention_site={names.attention_site!r} and mlp_site={names.mlp_site!r}"
    if not torch.isfinite(block.watched.outputs[block.path]).all():
        return  # nothing adds up; each trace says so
    if names.attention_site == names.mlp_site:
        yield f"{sites} are one module"
    elif not block.passes_on(names.attention_site, names.mlp_site):
        yield f"{sites} do not add up to what the block adds to its input"
    elif block.attention is not None and not block.is_attention(names.attention_site, names.mlp_site):
        yield f"{sites} are each the other's: swap them"
    holds = names.mlp == names.mlp_site or names.mlp_site.startswith(f"{names.mlp}.")
    if not holds and not block.leads_to(names.mlp, names.mlp_site):
        yield f"mlp={names.mlp!r} is not what computes mlp_site={names.mlp_site!r}"
    for role, site in (("value_matrix", names.mlp_site), ("head_matrix", names.attention_site)):
        name = getattr(names, role)
        if name is not None and not block.leads_to(name, site):
            yield f"{role}={name!r} does not give what {site!r} adds (write {role}=None if no matrix does)"


def _advice(model: PreTrainedModel, given: bool) -> str:
    """What to write instead."""
    if not given:
        return "Does a setting bypass it (slow_but_exact=True in Bloom)? Load the model without that setting."
    if model.config.model_type in FAMILIES:
        return "This type is known: leave names out."
    try:
        return f"By what its modules do write names=tracer.{names_by_structure(model)}, or leave names out."
    except AnatomyError:
        return "Name modules of a block whose outputs are added to its input; to trace these as they are, check=False."
