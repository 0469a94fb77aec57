"""Contrast between the arms: the same image against the other images of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cass_scale import dist
from cass_scale.losses.batch import whole_batch
from cass_scale.losses.fp32 import fp32


@fp32
def infonce(x: Tensor, y: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Symmetric InfoNCE: 1/2 (CE(x -> y) + CE(y -> x)), CE(x -> y) = -mean_i log softmax_j(x_i . y_j / t)[i].

    x, y: outputs of the two arms [B, K], L2-normalised here; i: image of this rank; j: image of the global
    batch; t: temperature. The negatives are the other arm's outputs only, never an arm's own.

    Each rank returns the mean over its own rows. Gathering sums the gradients of all ranks and DDP averages
    over ranks, so the weights get the gradient of the mean over the global batch: no factor is missing.

    Oord et al. 2018, arXiv 1807.03748, in the two-encoder form of CLIP, arXiv 2103.00020, figure 3; t as in
    SimCLR's code (0.1).

    Raises:
        ConfigError: one image in the whole batch.
    """
    x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    all_x, all_y = whole_batch(x, "infonce"), whole_batch(y, "infonce")
    target = torch.arange(len(x), device=x.device) + (len(x) * dist.rank() if dist.active() else 0)
    forth = F.cross_entropy(x @ all_y.T / temperature, target)
    back = F.cross_entropy(y @ all_x.T / temperature, target)
    return 0.5 * (forth + back)
