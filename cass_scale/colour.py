"""Colour of views as one 3x4 matrix per image.

Let y be the luma of a pixel x and c = x - y its chroma. All four jitters are affine in x and keep grey grey:
brightness scales x, contrast moves x towards the image's mean luma, saturation scales c, hue turns c. Such
maps commute: a chain of jitters in any order, torchvision's random one too, is one product of factors and one
sum of angles.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

# ITU-R BT.601, as PIL's mode L; torchvision writes 0.2989 for the first, so its weights sum to 0.9999.
LUMA = (0.299, 0.587, 0.114)
# Chroma axes I and Q of NTSC's YIQ (the FCC's 1953 matrix); each row sums to 0, so grey has no chroma.
CHROMA = ((0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@cache  # a copy from host memory waits for the device: once per process, not once per step
def _axes(device: torch.device) -> tuple[Tensor, Tensor]:
    """Projection on luma and quarter turn of chroma: two [3, 3]. HSV's hue turns from I towards -Q."""
    to_yiq = torch.tensor([LUMA, *CHROMA], dtype=torch.float64)
    turn = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    quarter = torch.linalg.inv(to_yiq) @ turn @ to_yiq
    return to_yiq[0].expand(3, 3).to(device), quarter.to(device)


def mean_luma(images: Tensor) -> Tensor:
    """Mean luma of uint8 or float32 (0..1) images [B, 3, H, W]: float64 [B] in 0..1.

    Rows of bytes have whole sums below 2**24, exact in float32 for every batch size, thread count and device.
    """
    whole = images.dtype == torch.uint8
    sums = images.sum(3, dtype=torch.float32 if whole else torch.float64).sum(2, dtype=torch.float64)
    luma = sums[:, 0] * LUMA[0] + sums[:, 1] * LUMA[1] + sums[:, 2] * LUMA[2]
    return luma / (images.shape[2] * images.shape[3] * (255 if whole else 1))


def colour_matrix(factors: Tensor, mean: Tensor) -> Tensor:
    """float32 [B, 3, 4] for pixels in 0..1, from the image's mean luma [B] and `factors` [B, 4]:

    brightness, contrast, saturation, and hue in turns.
    """
    luma, quarter = _axes(factors.device)
    b, c, s, hue = factors.double()[..., None, None].unbind(1)
    angle = hue * (2 * math.pi)
    chroma = torch.eye(3, dtype=torch.float64, device=luma.device) - luma
    linear = b * c * (luma + s * (torch.cos(angle) * chroma + torch.sin(angle) * quarter))
    return torch.cat([linear, (b * (1 - c) * mean[:, None, None]).expand(-1, 3, 1)], 2).float()


def to_unit(images: Tensor) -> Tensor:
    """uint8, uint16 or float32 (0..1) images as new float32 in 0..1."""
    pixels = images.to(torch.float32, copy=True)
    if images.dtype == torch.uint16:
        return pixels.div_(65535)
    return pixels.mul_(1 / 255) if images.dtype == torch.uint8 else pixels


def recolour(images: Tensor, matrix: Tensor) -> Tensor:
    """`matrix` [B, 3, 4] on uint8 or float32 (0..1) images [B, 3, H, W]: new float32 in 0..1.

    A row with the matrix of no change has the bits of `to_unit`.
    """
    # Not a matmul: TF32, autocast and reduced precision may round its pixels to 11 or 8 bits. Not addcmul: it
    # may fuse in a full vector and not in the rest of a row, and then the last bit depends on the batch.
    scale = 1 / 255 if images.dtype == torch.uint8 else 1.0
    linear, offset = (matrix[:, :, :3] * scale)[..., None, None, None], matrix[:, :, 3, None, None, None]
    pixels = images.float()
    out, term = torch.empty_like(pixels), torch.empty_like(pixels[:, :1])
    for i in range(3):
        plane = torch.mul(linear[:, i, 0], pixels[:, 0:1], out=out[:, i : i + 1])
        for j in (1, 2):
            plane += torch.mul(linear[:, i, j], pixels[:, j : j + 1], out=term)
        plane += offset[:, i]
    return out.clamp_(0, 1)
