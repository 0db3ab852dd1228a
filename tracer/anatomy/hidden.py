"""The hidden states in what a module returns: alone or leading a tuple, rows and tokens apart or flattened."""

from __future__ import annotations

from torch import Tensor


def hidden_of(output: Tensor | tuple) -> Tensor:
    """The hidden states in what a module returned: some return a tensor, some a tuple led by it."""
    return output if isinstance(output, Tensor) else output[0]


def by_token(hidden: Tensor, rows: int) -> Tensor:
    """`hidden` as [row, token, ...]: a view, where a sub-layer flattens rows and tokens (OPT's MLP)."""
    return hidden.unflatten(0, (rows, -1)) if hidden.dim() == 2 else hidden


def with_hidden(output: Tensor | tuple, hidden: Tensor) -> Tensor | tuple:
    """`output` with its hidden states replaced; the counterpart of `hidden_of`."""
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])
