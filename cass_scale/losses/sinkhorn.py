"""Balanced soft targets of one arm, predicted by the other: SwAV's swapped prediction, between two arms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cass_scale import dist
from cass_scale.losses.batch import whole_batch
from cass_scale.losses.fp32 import fp32


def _scores(x: Tensor) -> Tensor:
    # Outputs stand for scores against K prototypes. Without the centring, equal scores in all K columns would
    # be within reach: softmax uniform, loss ln K, no gradient: where SwAV is known to get stuck.
    return F.normalize(x - x.mean(dim=1, keepdim=True), dim=1)


@torch.no_grad()
def balanced_targets(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Sinkhorn-Knopp on exp(scores / epsilon), scores [B, K]: rows sum to 1, columns to about B / K.

    Rows come last and are exact, columns come closer with every iteration. K > B is fine: images share
    themselves out over columns. In logarithms, because exp(1 / 0.05) is 5e8.
    """
    log = scores / epsilon
    for _ in range(iterations):
        log = log - log.logsumexp(dim=0, keepdim=True)
        log = log - log.logsumexp(dim=1, keepdim=True)
    return log.exp()


@fp32
def sinkhorn(x: Tensor, y: Tensor, *, temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Swapped prediction: 1/2 (CE(Q(x), y) + CE(Q(y), x)), CE(q, z) = -mean_i sum_k q_ik log p(z)_ik.

    x, y: outputs of the two arms [B, K]; s: the same centred over K and L2-normalised; p: softmax(s / t);
    t: `temperature`; Q: `balanced_targets` of s over the global batch, without gradient; `epsilon`: their
    softness. The loss starts near ln K.

    Each rank returns the mean over its own rows, so DDP's mean of gradients is that of the global batch.

    Caron et al. 2020 (SwAV), arXiv 2006.09882, equations 2 and 3, and its defaults; the K outputs of an
    arm take the place of its prototypes.

    Raises:
        ConfigError: one image in the whole batch.
    """
    x, y = _scores(x), _scores(y)
    first = len(x) * dist.rank() if dist.active() else 0
    for_y, for_x = (
        balanced_targets(whole_batch(s.detach(), "sinkhorn"), epsilon=epsilon, iterations=iterations) for s in (x, y)
    )
    mine = slice(first, first + len(x))
    forth = F.cross_entropy(y / temperature, for_y[mine])
    back = F.cross_entropy(x / temperature, for_x[mine])
    return 0.5 * (forth + back)
