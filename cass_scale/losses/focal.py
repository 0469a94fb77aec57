"""Focal loss for fine-tuning, in the multi-label form the authors use for single labels too."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cass_scale.errors import ConfigError
from cass_scale.losses.fp32 import fp32

Weighting = Literal["none", "inverse", "official"]


@fp32
def focal(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, weight: Tensor | None = None) -> Tensor:
    """Sigmoid focal loss: mean over images and classes of w_c (1 - p_t)^g (-log p_t).

    logits, targets (one-hot or multi-hot, float) [B, C]; p_t: sigmoid(logit) where the target is 1, else one
    minus it; g: `gamma`; w: `weight` [C] on the columns. There is no alpha: alpha=1 in the balanced form of
    torchvision and MONAI would zero every negative term.

    Lin et al. 2017, arXiv 1708.02002, equation 4, as the authors' notebook uses it.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    miss = -torch.expm1(-entropy)  # 1 - p_t without cancellation
    loss = miss**gamma * entropy
    return (loss if weight is None else loss * weight).mean()


def class_weights(counts: Tensor, how: Weighting = "none") -> Tensor:
    """Weight of each class from its number of training images: [C] -> float32 [C].

    none: ones. inverse: N / (C count), scikit-learn's "balanced"; an absent class counts as 1. official:
    min-max of the counts to [0.2, 1], so the commonest class weighs most (the notebook's EDA.ipynb).

    Raises:
        ConfigError: unknown `how`.
    """
    n = counts.float()
    if how == "none":
        return torch.ones_like(n)
    if how == "inverse":
        return n.sum() / (len(n) * n.clamp(min=1.0))
    if how == "official":
        width = n.max() - n.min()
        return torch.where(width > 0, 0.2 + 0.8 * (n - n.min()) / width, torch.ones_like(n))
    raise ConfigError(f"class weights {how}: none, inverse and official work")
