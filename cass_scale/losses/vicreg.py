"""Variance, invariance, covariance: no negatives, no collapse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cass_scale.losses.batch import whole_batch
from cass_scale.losses.fp32 import fp32


def _variance(x: Tensor) -> Tensor:
    return F.relu(1.0 - torch.sqrt(x.var(dim=0) + 1e-4)).mean()


def _covariance(x: Tensor) -> Tensor:
    rows, dims = x.shape
    x = x - x.mean(dim=0)
    squares = (x.T @ x / (rows - 1)).square()
    return (squares.sum() - squares.diagonal().sum()) / dims


@fp32
def vicreg(
    x: Tensor, y: Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Tensor:
    """VICReg: l s(x, y) + m (v(x) + v(y)) / 2 + n (c(x) + c(y)).

    x, y: outputs of the two arms [B, K]; s: mean squared difference; v: mean over dimensions of
    max(0, 1 - sqrt(var + 1e-4)); c: sum of squared off-diagonal covariances / K; l, m, n: `invariance`,
    `variance`, `covariance`.

    All three terms are of the global batch, so every rank returns the same number. Gathering sums the equal
    gradients of W ranks and DDP divides by W: the weights get the gradient of this number, with factor 1.

    Bardes et al. 2022, arXiv 2105.04906, section 4 and its code's halved variance term (equals lightly's).

    Raises:
        ConfigError: one image in the whole batch.
    """
    x, y = whole_batch(x, "vicreg"), whole_batch(y, "vicreg")
    spread = 0.5 * (_variance(x) + _variance(y))
    redundancy = _covariance(x) + _covariance(y)
    return invariance * F.mse_loss(x, y) + variance * spread + covariance * redundancy
