"""Slow twin of cass_scale.views: one image at a time, one torchvision call per step, plain Python numbers.

It reads the same table of draws (columns written out again here), and applies each step on its own, in order:
resize, then per stage jitter and distortion, then the flips. No hue and no random crop: these have own tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torchvision.transforms.functional as TF
from torch import Tensor
from torchvision.transforms import InterpolationMode

from cass_scale import rng
from cass_scale.types import Crop, Jitter, Stage

J = Jitter(0.2, 0.2, 0.2)
OFFICIAL = Crop(
    48,
    stages=(Stage(0.3, J, perspective=0.2, perspective_p=0.5), Stage(0.3, J, degrees=10)),
    vflip=0.3,
    hflip=0.3,
)


@dataclass(frozen=True)
class StageDraw:
    factors: tuple[float, float, float] | None  # brightness, contrast, saturation
    corners: list[list[int]] | None  # where the four corners go, as torchvision's endpoints
    angle: float | None


@dataclass(frozen=True)
class Draw:
    stages: tuple[StageDraw, ...]
    vflip: bool
    hflip: bool


def corners(shifts: list[int], size: int) -> list[list[int]]:
    """torchvision's endpoints from eight inward shifts: x, y of top left, top right, bottom right, ..."""
    last = size - 1
    a, b, c, d, e, f, g, h = shifts
    return [[a, b], [last - c, d], [last - e, last - f], [g, last - h]]


def draw_stage(stage: Stage, u: list[float], size: int) -> StageDraw:
    on = u[0] < stage.p
    recolour = distort = on
    if stage.choose == "one":
        recolour, distort = on and u[1] < 0.5, on and u[1] >= 0.5
    factors = points = angle = None
    if stage.jitter and recolour:
        j = stage.jitter
        factors = tuple(
            1 - w + 2 * w * x for w, x in zip((j.brightness, j.contrast, j.saturation), u[2:5], strict=True)
        )
    if stage.perspective and distort and u[6] < stage.perspective_p:
        most = int(stage.perspective * (size // 2))
        points = corners([int(x * (most + 1)) for x in u[7:15]], size)
    if stage.degrees and distort:
        angle = (2 * u[15] - 1) * stage.degrees
    return StageDraw(factors, points, angle)


def draw(crop: Crop, sample: int, *, seed: int, epoch: int, view: int) -> Draw:
    n = 24 + 16 * len(crop.stages)
    u = rng.uniform(seed, epoch, torch.tensor([sample]), view, n)[0].tolist()
    stages = [draw_stage(s, u[24 + 16 * i : 40 + 16 * i], crop.size) for i, s in enumerate(crop.stages)]
    return Draw(tuple(stages), u[22] < crop.vflip, u[23] < crop.hflip)


def apply(image: Tensor, drawn: Draw, size: int) -> Tensor:
    """float image [3, H, W] in 0..1 -> [3, size, size]."""
    image = TF.resize(image, [size, size], antialias=False)
    last = size - 1
    start = [[0, 0], [last, 0], [last, last], [0, last]]
    for stage in drawn.stages:
        if stage.factors:
            image = TF.adjust_brightness(image, stage.factors[0])
            image = TF.adjust_contrast(image, stage.factors[1])
            image = TF.adjust_saturation(image, stage.factors[2])
        if stage.corners:
            image = TF.perspective(image, start, stage.corners, InterpolationMode.BILINEAR)
        if stage.angle is not None:
            image = TF.affine(image, stage.angle, [0, 0], 1.0, [0.0], InterpolationMode.BILINEAR)
    image = TF.vflip(image) if drawn.vflip else image
    return TF.hflip(image) if drawn.hflip else image


def noise(b: int, h: int = 48, w: int = 48, dtype: torch.dtype = torch.uint8) -> Tensor:
    top = 65536 if dtype == torch.uint16 else 256
    return torch.randint(0, top, (b, 3, h, w), generator=torch.Generator().manual_seed(b + h)).to(dtype)


def smooth(b: int, size: int) -> Tensor:
    """Float images of low frequencies in 0.3..0.7, so that interpolations and clamps agree closely."""
    x = torch.linspace(0, 2 * math.pi, size)
    k = torch.arange(1, 3 * b + 1, dtype=torch.float32).view(b, 3, 1, 1)
    return 0.5 + 0.1 * torch.sin(x + k) + 0.1 * torch.cos(x[:, None] - 2 * k)
