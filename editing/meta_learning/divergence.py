"""KL(p || q) of two distributions given as logits, with the gradient towards q alone.

KL = sum_w p_w (log p_w - log q_w)      dKL/d(logit of q) = q - p
Over a vocabulary the numbers between are large: they are made and dropped a few rows at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 16


def divergence(before: Tensor, now: Tensor) -> Tensor:
    """Of each row in nats, [row], from logits [row, vocab] before and now."""
    return _Divergence.apply(before, now)  # pyright: ignore[reportReturnType]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, before: Tensor, now: Tensor) -> Tensor:
        """KL(p_before || p_now) of each row of logits [row, vocab], ROWS at a time; [row]."""
        found, apart = now.new_empty(len(now)), torch.empty_like(now) if ctx.needs_input_grad[1] else None
        for begin in range(0, len(now), ROWS):
            some = slice(begin, begin + ROWS)
            log_p, log_q = before[some].log_softmax(-1), now[some].log_softmax(-1)
            p = log_p.exp()
            found[some] = (log_p.sub_(log_q).mul_(p)).sum(-1)
            if apart is not None:
                torch.sub(log_q.exp_(), p, out=apart[some])
        if apart is not None:
            ctx.save_for_backward(apart)
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor]:
        (apart,) = ctx.saved_tensors
        return None, upstream[0][:, None] * apart
