"""An edit as a LoRA adapter: a folder that PEFT (and what reads its format) puts onto the unedited model.

An adapter adds (alpha / r) B A to W, y = W k. An edit's change out into^T is that with B = out, A = into^T
and alpha = r. All changes of one weight are joined and written in balanced factors, from the thin QR and
singular value decompositions
    out into^T = U S V^T,   B = U S^1/2,   A = S^1/2 V^T
A change that is not of low rank (fine-tuning's) keeps its `rank` largest singular values.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editing.change import Change, LowRank, Replacement
from editing.edit import Edit
from editing.errors import BaseModelError, EditFailedError, EditingWarning
from editing.request import check_model
from editing.setting_checks import whole
from tracer.anatomy import is_stored_transposed
from tracer.model import LanguageModel
from tracer.precision import wide_dtype
from tracer.storage import atomic_folder, write_json, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NEGLIGIBLE = 1e-13  # of the largest singular value: rounding of float64 products
LOST = 0.01


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that was written.

    Attributes:
        folder: where.
        ranks: of each changed module, by its name.
        lost: the share of each change's Frobenius norm that the rank leaves out.
    """

    folder: Path
    ranks: dict[str, int]
    lost: dict[str, float]


def to_peft(edit: Edit, folder: str | Path, *, model: LanguageModel | None = None, rank: int | None = None) -> Adapter:
    """Writes `edit` as a LoRA adapter into a new `folder`, atomically.

    `PeftModel.from_pretrained(base, folder)` puts it onto the weights that the edit was made for, and
    `merge_and_unload()` then gives the edited model. A changed bias becomes B's bias (`lora_bias`).

    Args:
        edit: applied or not.
        folder: a new one.
        model: the unedited model, where the edit is not applied.
        rank: at most this many singular values of each change; None: all of them, which is exact.

    Raises:
        EditFailedError: a change is not of low rank and no `rank` is given, or the folder exists.
        RequestError: `rank` is no whole number.
        BaseModelError: no model is there to tell how the weights are stored, or it is another one.
    """
    folder, base = Path(folder), edit.model or model
    if folder.exists():
        raise EditFailedError(f"{folder} is there already. Give a new folder.")
    if not edit.changes:
        raise EditFailedError("This edit changes no weight, so there is nothing to adapt.")
    if rank is not None and whole("rank", rank, 16) < 1:
        raise EditFailedError(f"rank={rank} keeps nothing. Write rank=16, or None for all.")
    if base is not None:
        check_model(base)
    else:
        raise BaseModelError("This edit is not applied. Write to_peft(edit, folder, model=model).")
    if edit.model is None and base.fingerprint() != edit.base:
        raise BaseModelError(f"This edit was made for weights {edit.base[:12]}; {base.name} has others.")
    names = sorted({change.weight.rpartition(".")[0] for change in edit.changes})
    tensors, ranks, lost = {}, {}, {}
    for name in names:
        out, into, lost[name] = _factors(edit, base, name, rank)
        ranks[name] = out.shape[1]
        tensors |= _named(name, out, into, _bias(edit, base, name), base)
    _warn(lost)
    with atomic_folder(folder) as temporary:
        write_json(temporary / CONFIG, _config(base, ranks, biased=any(key.endswith("bias") for key in tensors)))
        write_tensors(temporary / WEIGHTS, tensors, {"kind": "adapter", "base": edit.base, "title": edit.title})
    return Adapter(folder, ranks, lost)


def _changes(edit: Edit, weight: str) -> list[Change]:
    return [change for change in edit.changes if change.weight == weight]


def _before(edit: Edit, base: LanguageModel, weight: str) -> Tensor:
    """The parameter as it was before the edit, float64."""
    parameter = edit.before.get(weight, base.torch.get_parameter(weight))
    return parameter.detach().double().cpu()


def _factors(edit: Edit, base: LanguageModel, module: str, rank: int | None) -> tuple[Tensor, Tensor, float]:
    """B [out, r] and A [r, in] of all changes of one module's weight, and the share they leave out."""
    weight = f"{module}.weight"
    changes = _changes(edit, weight)
    low = [change for change in changes if isinstance(change, LowRank)]
    if changes and len(low) == len(changes):
        return _of_product(torch.cat([c.out for c in low], 1), torch.cat([c.into for c in low], 1), rank)
    if rank is None:
        raise EditFailedError(
            f"{edit.method} replaces {module} as a whole, which no adapter of low rank does exactly. "
            f"Write to_peft(edit, folder, rank=16) for the nearest one, or edit.merge(folder) for the whole model."
        )
    u, singular, vh = torch.linalg.svd(_dense(edit, base, module, changes), full_matrices=False)
    return _truncated(u, singular, vh, rank)


def _dense(edit: Edit, base: LanguageModel, module: str, changes: Sequence[Change]) -> Tensor:
    """What the changes add to W altogether, [out, in]."""
    before = _before(edit, base, f"{module}.weight")
    transposed = is_stored_transposed(base.torch.get_submodule(module))
    before = before.T if transposed else before
    total = torch.zeros_like(before)
    for change in changes:
        if isinstance(change, LowRank):
            total += change.out.cpu() @ change.into.cpu().T
        elif isinstance(change, Replacement):
            values = change.values.double().cpu()
            total = (values.T if transposed else values) - before
    return total


def _of_product(out: Tensor, into: Tensor, rank: int | None) -> tuple[Tensor, Tensor, float]:
    """Balanced factors of out into^T without ever forming it."""
    left, small = torch.linalg.qr(out.double().cpu())
    right, other = torch.linalg.qr(into.double().cpu())
    u, singular, vh = torch.linalg.svd(small @ other.T, full_matrices=False)
    return _truncated(left @ u, singular, vh @ right.T, rank)


def _truncated(u: Tensor, singular: Tensor, vh: Tensor, rank: int | None) -> tuple[Tensor, Tensor, float]:
    """U S^1/2 and S^1/2 V^T of the largest singular values, and the share of the norm in the others."""
    there = max(1, int((singular > NEGLIGIBLE * singular[0]).sum()))
    kept = there if rank is None else min(there, rank)
    root = singular[:kept].sqrt()
    lost = float(singular[kept:].norm() / singular.norm()) if kept < there else 0.0
    return u[:, :kept] * root, root[:, None] * vh[:kept], lost


def _bias(edit: Edit, base: LanguageModel, module: str) -> Tensor | None:
    """What is added to the module's bias; None where the edit changes no bias at all."""
    if not any(change.weight.endswith(".bias") for change in edit.changes):
        return None
    name = f"{module}.bias"
    before = _before(edit, base, name)
    values = [change.values.double().cpu() for change in _changes(edit, name) if isinstance(change, Replacement)]
    return (values[-1] if values else before) - before


def _named(module: str, out: Tensor, into: Tensor, bias: Tensor | None, base: LanguageModel) -> dict[str, Tensor]:
    """The tensors under PEFT's names; in 16 bits they would lose what the weights do not, so in 32."""
    dtype = wide_dtype(base.torch.get_parameter(f"{module}.weight").dtype)
    prefix = f"base_model.model.{module}"
    tensors = {f"{prefix}.lora_A.weight": into, f"{prefix}.lora_B.weight": out}
    tensors |= {} if bias is None else {f"{prefix}.lora_B.bias": bias}
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def _config(base: LanguageModel, ranks: dict[str, int], *, biased: bool) -> dict[str, Any]:
    """PEFT's settings; alpha = r in every module, so that B A is added as it is."""
    largest = max(ranks.values())
    pattern = {name: rank for name, rank in ranks.items() if rank != largest}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "target_modules": list(ranks),
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "fan_in_fan_out": is_stored_transposed(base.torch.get_submodule(next(iter(ranks)))),
        "bias": "none",
        "lora_bias": biased,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }


def _warn(lost: dict[str, float]) -> None:
    worst = max(lost, key=lost.__getitem__)
    if lost[worst] > LOST:
        warnings.warn(
            f"The adapter leaves out {lost[worst]:.0%} of the change of {worst}. Write a larger rank.",
            EditingWarning,
            stacklevel=3,
        )
