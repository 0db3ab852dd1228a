"""The linear algebra of the editors: which change D of W answers keys K with residuals R.

With C = E[k k^T] over other text, K [d_mlp, n] and R [d_model, n], all float64:
    MEMIT      D = R K^T (lambda C + K K^T)^-1                                Meng et al. 2023, eq. 14
    EMMET      D = R (K^T C^-1 K + mu I)^-1 K^T C^-1                          Gupta et al. 2024
    AlphaEdit  D = R K^T P (K K^T P + Kp Kp^T P + g I)^-1,  P = U U^T         Fang et al. 2025, eq. 14
All are products of two thin matrices, out [d_model, rank] and into [d_mlp, rank]; with n keys fewer than
d_mlp nothing larger than [n, n] is solved beside the one factorisation of C.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from editing.errors import EditFailedError
from editing.locate_then_edit.covariance import SecondMoment

Keys = Float[Tensor, "d_mlp key"]
Residuals = Float[Tensor, "d_model key"]
Factors = tuple[Float[Tensor, "d_model rank"], Float[Tensor, "d_mlp rank"]]


def ridge_update(moment: SecondMoment, keys: Keys, residuals: Residuals, strength: float) -> Factors:
    """MEMIT's: least squares that also answers old keys with 0; `strength` is its lambda, > 0."""
    n_neurons, n = keys.shape
    if n > n_neurons:
        inner = strength * moment.regularised + keys @ keys.T
        return _wide(torch.cholesky_solve(keys @ residuals.T, _cholesky(inner)))
    solved = moment.solve(keys) / strength  # Q = (lambda C)^-1 K
    inner = _eye(n) + keys.T @ solved
    return torch.cholesky_solve(residuals.T, _cholesky(inner)).T, solved


def cosines(moment: SecondMoment, keys: Keys) -> Float[Tensor, "key key"]:
    """Of the angles between keys, in the geometry of C^-1."""
    inner = keys.T @ moment.solve(keys)
    lengths = inner.diagonal().sqrt()
    return inner / lengths / lengths[:, None]


def exact_update(moment: SecondMoment, keys: Keys, residuals: Residuals, slack: float) -> Factors:
    """EMMET's: answers every key with its residual, old keys disturbed least.

    Args:
        moment: C.
        keys: K; duplicates are answered with the mean of their residuals.
        residuals: R.
        slack: mu, relative to the mean of K^T C^-1 K's diagonal; 0: exactly.
    """
    solved = moment.solve(keys)  # Q = C^-1 K
    inner = keys.T @ solved
    inner = inner + slack * inner.diagonal().mean() * _eye(len(inner))
    return residuals @ torch.linalg.pinv(inner, rtol=1e-12, hermitian=True), solved


def null_space_update(
    kept: Float[Tensor, "d_mlp direction"],
    keys: Keys,
    residuals: Residuals,
    earlier: Float[Tensor, "d_mlp earlier"],
    strength: float,
) -> Factors:
    """AlphaEdit's: changes only directions that old keys hardly use, and answers earlier edits' keys with 0.

    Args:
        kept: U, orthonormal directions that may change.
        keys: K.
        residuals: R.
        earlier: Kp, keys of earlier edits.
        strength: g, > 0.
    """
    inside, before = kept.T @ keys, kept.T @ earlier  # G [r, n], and U^T Kp
    n_kept, n = inside.shape
    if max(n, before.shape[1]) > n_kept:
        inner = inside @ inside.T + before @ before.T + strength * _eye(n_kept)
        return _wide(kept @ torch.cholesky_solve(inside @ residuals.T, _cholesky(inner)))
    solved = inside / strength  # A^-1 G, with A = U^T Kp Kp^T U + g I
    if before.shape[1]:
        small = strength * _eye(before.shape[1]) + before.T @ before
        solved = solved - before @ torch.cholesky_solve(before.T @ inside, _cholesky(small)) / strength
    inner = _eye(n) + inside.T @ solved
    return torch.cholesky_solve(residuals.T, _cholesky(inner)).T, kept @ solved


def _wide(change: Float[Tensor, "d_mlp d_model"]) -> Factors:
    """D^T as factors of rank d_model."""
    return _eye(change.shape[1]), change


def _eye(size: int) -> Float[Tensor, "size size"]:
    return torch.eye(size, dtype=torch.float64)


def _cholesky(matrix: Float[Tensor, "size size"]) -> Float[Tensor, "size size"]:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise EditFailedError("The keys of these requests cannot be told apart. Edit fewer of them at once.")
    return factor
