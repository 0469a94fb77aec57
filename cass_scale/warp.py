"""Geometry of views: maps [B, 3, 3] and the one interpolation that applies their product.

A map takes a point of the output to the point of the source that it shows, both as (x, y, 1) with x and y
from -1 to 1, edge to edge (`align_corners=False`), so that squashing to another size is the identity. `a @ b`
shows the image after a, then b. Maps are float64 until they are final: sines and products then round to the
same float32 for every batch size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _stack(*entries: Tensor | float) -> Tensor:
    like = next(e for e in entries if isinstance(e, Tensor))
    columns = [e if isinstance(e, Tensor) else torch.full_like(like, e) for e in entries]
    return torch.stack(columns, -1).view(-1, 3, 3)


def crop_map(left: Tensor, top: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """Show a box of the source, given in fractions of its sides, [B] each."""
    return _stack(width, 0.0, 2 * left + width - 1, 0.0, height, 2 * top + height - 1, 0.0, 0.0, 1.0)


def rotation_map(degrees: Tensor) -> Tensor:
    """Turn a square image about its centre; positive is clockwise as in torchvision's `affine`, [B]."""
    angle = degrees * (math.pi / 180)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _stack(cos, sin, 0.0, -sin, cos, 0.0, 0.0, 0.0, 1.0)


def flip_map(vflip: Tensor, hflip: Tensor) -> Tensor:
    """Mirror upside down and / or left to right: bool [B] each."""
    return _stack(1.0 - 2.0 * hflip.double(), 0.0, 0.0, 0.0, 1.0 - 2.0 * vflip.double(), 0.0, 0.0, 0.0, 1.0)


def perspective_map(shifts: Tensor, size: int) -> Tensor:
    """Pull the corners of a size x size image inwards by `shifts` [B, 4, 2] pixels (x, y).

    Corners are top left, top right, bottom right, bottom left, at pixel coordinates 0 and size - 1 as in
    torchvision's RandomPerspective. Closed form: Heckbert 1989, "Fundamentals of Texture Mapping", 2.2.3.
    """
    reach = max(size - 1, 1)
    x, y = (shifts / reach).unbind(2)
    x = torch.stack([x[:, 0], 1 - x[:, 1], 1 - x[:, 2], x[:, 3]], 1)
    y = torch.stack([y[:, 0], y[:, 1], 1 - y[:, 2], 1 - y[:, 3]], 1)
    p0, p1, p2, p3 = torch.stack([x, y], 2).unbind(1)
    along, across, skew = p1 - p2, p3 - p2, p0 - p1 + p2 - p3
    area = _cross(along, across)
    g, h = _cross(skew, across) / area, _cross(along, skew) / area
    one = torch.ones_like(area)
    first = torch.cat([p1 - p0 + g * p1, g], 1)
    second = torch.cat([p3 - p0 + h * p3, h], 1)
    third = torch.cat([p0, one], 1)
    pairs = ((second, third), (third, first), (first, second))
    to_square = torch.stack([torch.linalg.cross(a, b) for a, b in pairs], 1)  # the inverse, but for a factor
    unit = torch.eye(3, dtype=shifts.dtype, device=shifts.device)
    unit[:2] *= size / (2 * reach)
    unit[:2, 2] = size / (2 * reach)  # -1..1 to the square whose corners are the corner pixels' coordinates
    back = torch.eye(3, dtype=shifts.dtype, device=shifts.device)
    back[:2] *= 2 * reach / size
    back[:2, 2] = -1.0
    return back @ to_square @ unit


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[:, :1] * b[:, 1:] - a[:, 1:] * b[:, :1]


def flips(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bool [B] each: is the map exactly the identity or a flip; if so, is it upside down, left to right."""
    straight = (maps.abs() == torch.eye(3, device=maps.device)).flatten(1).all(1)
    return straight, straight & (maps[:, 1, 1] < 0), straight & (maps[:, 0, 0] < 0)


def mirror(images: Tensor, upside: Tensor, mirrored: Tensor) -> Tensor:
    """Flip the marked ones of square images [B, 3, S, S]: one gather, since choosing waits for a device."""
    line = torch.arange(images.shape[-1], device=images.device)
    y, x = (torch.where(flip[:, None], line.flip(0), line) for flip in (upside, mirrored))
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return images[sample, channel, y[:, None, :, None], x[:, None, None, :]]


def interpolate(pixels: Tensor, maps: Tensor, size: int) -> Tensor:
    """`pixels` float32 [B, 3, H, W] in 0..1 through float32 `maps`, black outside: [B, 3, size, size]."""
    grid = sampling_grid(maps, size)
    for axis, length in ((0, pixels.shape[3]), (1, pixels.shape[2])):
        if length < size:
            _keep_edge_(grid[..., axis], length, size)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def sampling_grid(maps: Tensor, size: int) -> Tensor:
    """Where each output pixel's centre lies in the source: [B, size, size, 2]."""
    centre = torch.arange(1 - size, size, 2, device=maps.device, dtype=maps.dtype) / size
    row, column = centre[None, :, None], centre[None, None, :]
    # Separate products and sums, not a matmul or addcmul: see colour.recolour.
    x, y, w = ((m[:, 0] * column + m[:, 2]) + m[:, 1] * row for m in maps[..., None, None].unbind(1))
    grid = torch.empty(*x.shape, 2, device=maps.device, dtype=maps.dtype)
    torch.div(x, w, out=grid[..., 0])
    torch.div(y, w, out=grid[..., 1])
    return grid


def _keep_edge_(grid: Tensor, length: int, size: int) -> None:
    """Let an enlarged source fade to black over one output pixel, not over one of its own larger pixels."""
    beyond = grid - grid.clamp(1 / size - 1, 1 - 1 / size)
    grid.clamp_(1 / length - 1, 1 - 1 / length).add_(beyond.mul_(size / length))


def shrink(pixels: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear reduction of float32 [B, 3, H, W] in 0..1 to [B, 3, height, width]."""
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True).clamp_(0, 1)
