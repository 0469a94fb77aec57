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
FULL_SCALE = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}


@cache  # a copy from host memory waits for the device: once per process, not once per step
def _axes(device: torch.device) -> tuple[Tensor, Tensor]:
    """Projection on luma and quarter turn of chroma: two [3, 3]. HSV's hue turns from I towards -Q."""
    to_yiq = torch.tensor([LUMA, *CHROMA], dtype=torch.float64)
    turn = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    quarter = torch.linalg.inv(to_yiq) @ turn @ to_yiq
    return to_yiq[0].expand(3, 3).to(device), quarter.to(device)


def mean_luma(images: Tensor) -> Tensor:
    """Mean luma of uint8, uint16 or float32 (0..1) images [B, 3, H, W]: float64 [B] in 0..1.

    Integers are summed as integers: the same bits for every batch size, thread count and device.
    """
    integer = images.dtype != torch.float32
    rows = images.sum(3, dtype=torch.int32 if integer else torch.float64)
    sums = rows.sum(2, dtype=torch.int64 if integer else torch.float64).double()
    scale = FULL_SCALE[images.dtype] * images.shape[2] * images.shape[3]
    return (sums[:, 0] * LUMA[0] + sums[:, 1] * LUMA[1] + sums[:, 2] * LUMA[2]) / scale


def colour_matrix(
    brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, mean: Tensor
) -> Tensor:
    """float32 [B, 3, 4] for pixels in 0..1, from factors, turns of hue and the mean luma, all [B]."""
    luma, quarter = _axes(brightness.device)
    b, c, s, mean = (v.double()[:, None, None] for v in (brightness, contrast, saturation, mean))
    angle = hue.double()[:, None, None] * (2 * math.pi)
    chroma = torch.eye(3, dtype=torch.float64, device=luma.device) - luma
    linear = b * c * (luma + s * (torch.cos(angle) * chroma + torch.sin(angle) * quarter))
    return torch.cat([linear, (b * (1 - c) * mean).expand(-1, 3, 1)], 2).float()


def apply_colour(images: Tensor, matrix: Tensor) -> Tensor:
    """`matrix` [B, 3, 4] on uint8, uint16 or float32 (0..1) images [B, 3, H, W]: a new float32 in 0..1."""
    to_unit = 1 / FULL_SCALE[images.dtype]
    if images.device.type != "cpu":
        return _transform(images.float(), matrix, to_unit)
    # Choosing rows would wait for a device; on a CPU it saves work. The rows left out would be multiplied by
    # `to_unit`, 0 and 0 in `_transform`, so the bits are the same.
    plain = torch.eye(3, 4)
    changed = (matrix != plain).flatten(1).any(1).nonzero()[:, 0]
    if len(changed) == len(images):
        return _transform(images.float(), matrix, to_unit)
    out = images.to(torch.float32, copy=True).mul_(to_unit)
    out[changed] = _transform(images[changed].float(), matrix[changed], to_unit)
    return out


def _transform(pixels: Tensor, matrix: Tensor, to_unit: float) -> Tensor:
    # Not a matmul: TF32, autocast and reduced precision may round its pixels to 11 or 8 bits. Not addcmul: it
    # may fuse in a full vector and not in the rest of a row, and then the last bit depends on the batch.
    m = matrix.clone()
    m[:, :, :3] *= to_unit
    out = m[:, :, 0, None, None] * pixels[:, 0:1]
    term = torch.empty_like(out)
    for channel in (1, 2):
        out += torch.mul(m[:, :, channel, None, None], pixels[:, channel : channel + 1], out=term)
    out += m[:, :, 3, None, None]
    return out.clamp_(0, 1)
