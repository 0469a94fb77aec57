"""What is done to finished views: a Gaussian blur with a width of its own for each image, and solarisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cass_scale.types import Blur


def gaussian_kernels(blur: Blur, sigma: Tensor) -> Tensor:
    """float32 [B, taps] that sum to 1, as torchvision's, from `sigma` float64 [B] in pixels; 0: leave it as it is."""
    reach = blur.taps // 2
    at = torch.arange(-reach, reach + 1, device=sigma.device, dtype=sigma.dtype)
    weights = torch.exp(-0.5 * (at / sigma[:, None].clamp(min=1e-3)).square())
    return (weights / weights.sum(1, keepdim=True)).float()


def convolve(views: Tensor, kernels: Tensor) -> Tensor:
    """float32 [B, 3, S, S] with each image's symmetric kernel [B, taps], along both axes, mirrored at the edges.

    A kernel of one and zeros gives the image's own bits.
    """
    reach, size = kernels.shape[1] // 2, views.shape[2]
    weights = kernels[:, :, None, None, None]
    for axis, sides in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        padded = F.pad(views, sides, mode="reflect")
        views = padded.narrow(axis, reach, size) * weights[:, reach]
        # Not a convolution, whose products TF32 may round: see colour.recolour.
        for away in range(1, reach + 1):
            both = padded.narrow(axis, reach - away, size) + padded.narrow(axis, reach + away, size)
            views += both.mul_(weights[:, reach - away])
    return views


def solarise(views: Tensor, on: Tensor) -> Tensor:
    """Invert the brighter half of the pixels of views float32 in 0..1 [B, 3, S, S] where `on` [B], as PIL does."""
    return torch.where(on[:, None, None, None] & (views >= 0.5), 1 - views, views)
