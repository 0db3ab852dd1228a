"""Do the names of a model's parts lead anywhere in it?"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tracer.anatomy.names import Names


def missing_roles(model: PreTrainedModel, names: Names) -> list[str]:
    """The roles whose dotted path leads nowhere in this model, or to something else."""
    outside = (("embedding", names.embedding), ("blocks", names.blocks))
    missing = [f"{role} ({path})" for role, path in outside if not has(model, path)]
    own = model.get_input_embeddings()
    if has(model, names.embedding) and not _same_embedding(model.get_submodule(names.embedding), own):
        path = next((path for path, module in model.named_modules() if module is own), "no module of it")
        missing.append(f"embedding ({names.embedding} does not embed the tokens; get_input_embeddings() is {path})")
    if model.get_output_embeddings() is None:
        missing.append("head (get_output_embeddings() is None)")
    if names.encoder:
        missing += _missing_in_blocks(model, names.encoder)
    return missing + _missing_in_blocks(model, names)


def _missing_in_blocks(model: PreTrainedModel, names: Names) -> list[str]:
    missing = []
    blocks = dict(model.get_submodule(names.blocks).named_children()) if has(model, names.blocks) else {}
    if has(model, names.blocks) and not blocks:
        missing.append(f"blocks ({names.blocks} holds no modules)")
    parts = (("MLP", names.mlp), ("MLP entrance", names.mlp_entrance))
    sites = (("attention site", names.attention_site), ("MLP site", names.mlp_site))
    matrices = (("value matrix", names.value_matrix), ("head matrix", names.head_matrix))
    for role, path in (*parts, *sites, *matrices, ("cross-attention site", names.cross_site)):
        absent = [name for name, block in blocks.items() if path and not has(block, path)]
        missing += [f"{role} ({names.blocks}.{name}.{path})" for name in absent[:1]]
    return missing


def _same_embedding(module: nn.Module, own: nn.Module) -> bool:
    """One module, or (T5's encoder) another with the very same weight."""
    shared = getattr(module, "weight", None) is getattr(own, "weight", module)
    return module is own or (shared and type(module) is type(own))


def has(root: nn.Module, path: str) -> bool:
    """Whether a dotted path leads to a module."""
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True
