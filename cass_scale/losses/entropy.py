"""Cross-entropy for fine-tuning, for exclusive classes and for several labels per image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cass_scale.losses.fp32 import fp32


@fp32
def cross_entropy(logits: Tensor, targets: Tensor, *, exclusive: bool, weight: Tensor | None = None) -> Tensor:
    """Mean over images of the softmax cross-entropy, or with `exclusive=False` over images and labels of the sigmoid's.

    logits, targets (one-hot or multi-hot, float) [B, C]; weight [C] on the columns.
    """
    if exclusive:
        return F.cross_entropy(logits, targets, weight=weight)
    return F.binary_cross_entropy_with_logits(logits, targets, weight=weight)
