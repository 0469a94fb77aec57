"""Barlow Twins: the arms' cross-correlation should be the identity."""

from __future__ import annotations

from torch import Tensor

from cass_scale.losses.batch import whole_batch
from cass_scale.losses.fp32 import fp32


def _standardised(x: Tensor) -> Tensor:
    # BatchNorm1d without affine part, as in the authors' code, its epsilon included.
    return (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + 1e-5).sqrt()


@fp32
def barlow(x: Tensor, y: Tensor, *, offdiagonal: float = 0.005) -> Tensor:
    """Barlow Twins: sum_k (1 - C_kk)^2 + l sum_{k != m} C_km^2, C = standardised(x)^T standardised(y) / B.

    x, y: outputs of the two arms [B, K]; C: their cross-correlation over the global batch [K, K];
    l: `offdiagonal`. The sum grows with K (about K at the start); Adam does not mind, clipping does.

    Every rank returns the same number, and DDP's mean of the gathered gradients is its gradient (factor 1).

    Zbontar et al. 2021, arXiv 2103.03230, algorithm 1 (equals lightly's).

    Raises:
        ConfigError: one image in the whole batch.
    """
    x, y = whole_batch(x, "barlow"), whole_batch(y, "barlow")
    correlation = _standardised(x).T @ _standardised(y) / len(x)
    diagonal = correlation.diagonal()
    others = correlation.square().sum() - diagonal.square().sum()
    return (1.0 - diagonal).square().sum() + offdiagonal * others
