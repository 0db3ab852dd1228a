"""What stands between W and the residual stream in some families (Gemma 2 and 3, OLMo-2): a norm.

Behind it only the direction of W's output counts: |delta| / |z0| is the tangent of the angle by which a
value may turn, and its scale is free.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from editing.errors import EditFailedError
from tracer.model import LanguageModel

SMALLEST_GAIN = 1e-3  # of a norm's largest gain: smaller ones are not inverted


def has_norm(model: LanguageModel) -> bool:
    """Whether a norm stands between W and the residual stream (Gemma 2 and 3, OLMo-2)."""
    names = model.anatomy.names
    assert names.value_matrix is not None
    return names.value_matrix != names.mlp_site and not names.value_matrix.startswith(f"{names.mlp_site}.")


def after_norm(model: LanguageModel, layer: int, outputs: Tensor) -> Tensor:
    """What the stream receives of W's outputs [request, d_model], float64 on the CPU."""
    norm = model.anatomy.site_module("mlp", layer)
    weight: Any = next(norm.parameters())
    with torch.no_grad():
        return norm(outputs[:, None].to(weight.device, weight.dtype))[:, 0].double().cpu()


def before_norm(model: LanguageModel, layer: int, outputs: Tensor, residual: Tensor) -> Tensor:
    """The change of W's outputs after which the stream receives `residual` more.

    After a norm N(y) = g y / rms(y) it is rms(y) residual / g: then N has the wanted direction, and the wanted
    size as far as the stream's share can grow at all.

    Args:
        model: of a family where `has_norm`.
        layer: of W.
        outputs: y at the bare prompts, [request, d_model].
        residual: [request, d_model].

    Raises:
        EditFailedError: what stands between is no RMS norm.
    """
    gain = _gain(model.anatomy.site_module("mlp", layer), outputs)
    inverse = torch.where(gain.abs() < SMALLEST_GAIN * gain.abs().max(), 0, 1 / gain)
    return outputs.square().mean(-1, keepdim=True).sqrt() * residual * inverse


def _gain(norm: nn.Module, outputs: Tensor) -> Tensor:
    """What an RMS norm makes of ones, which is its gain; float64 [d_model]."""
    weight: Any = next(norm.parameters())
    ones = torch.ones(1, 1, outputs.shape[-1], dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        one, two, less = (norm(scale * ones) for scale in (1.0, 2.0, -1.0))
    if not (torch.allclose(one, two, rtol=1e-2) and torch.allclose(one, -less, rtol=1e-2)):
        raise EditFailedError(
            f"Between W and the residual stream stands {type(norm).__name__}, which is no RMS norm. Use ROME, which "
            f"writes the output of W itself."
        )
    return one[0, 0].double().cpu()
