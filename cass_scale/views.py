"""Views of images: batched, on the images' device, from a description and not from code.

A view is sampled (`sample_crop`: a pure function of seed, epoch, sample id and view number) and then applied
(`apply_crop`: one colour matrix, one warp). What differs from the same chain of torchvision transforms:

- pixels are clamped to 0..1 once, after all colour, not after each factor: the factors' order has no effect;
- contrast turns about the mean luma of the whole source, not of the crop or of the already distorted image;
- hue turns chroma about the luma axis (YIQ), which is linear, where torchvision turns HSV's hexagon;
- there is one interpolation, bilinear, where torchvision resizes, warps, and rotates to the nearest pixel;
- boxes of random crops have real, not whole, coordinates.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cass_scale import filters, rng
from cass_scale.colour import colour_matrix, mean_luma, recolour, to_unit
from cass_scale.types import ARMS, Blur, Crop, Jitter, Stage, ViewSpec
from cass_scale.warp import (
    crop_map,
    flip_map,
    flips,
    interpolate,
    mirror,
    perspective_map,
    rotation_map,
    shrink,
)

# The table of draws. Each use has its own columns, so no option shifts the numbers of another one.
TRIES = 10  # as torchvision's RandomResizedCrop
AREA, ASPECT, LEFT, TOP, VFLIP, HFLIP = 0, TRIES, 20, 21, 22, 23
CROP_DRAWS, STAGE_DRAWS = 24, 16
GREY, BLUR, SIGMA, SOLARISE, FINISH_DRAWS = 0, 1, 2, 3, 4  # a table of its own
# Columns within a stage's block. CORNERS are eight: x, y of top left, top right, bottom right, bottom left.
APPLY, CHOOSE, BRIGHTNESS, CONTRAST, SATURATION, HUE, PERSPECTIVE, CORNERS, ANGLE = 0, 1, 2, 3, 4, 5, 6, 7, 15

BLOCK_PIXELS = 300_000  # two images of 384 x 384: their floats and a grid fit in the cache of one core
SHRINK_ABOVE = 1.5  # source pixels per output pixel that one bilinear tap can read without visible aliasing


class CropParams(NamedTuple):
    """What was drawn for each of B samples; `apply_crop` needs nothing else."""

    maps: Tensor  # float32 [B, 3, 3]: point of the output -> point of the source, see `warp`
    factors: Tensor  # float64 [B, 4]: products for brightness, contrast, saturation; sum for hue in turns
    kernels: Tensor | None = None  # float32 [B, taps]: blur of the finished view
    solarised: Tensor | None = None  # bool [B]


@torch.no_grad()
def make_views(images: Tensor, spec: ViewSpec, index: Tensor, *, seed: int, epoch: int) -> list[Tensor]:
    """uint8 or uint16 `images` [B, 3, H, W] of sample ids `index` [B] -> one view per entry of `spec.sizes`.

    Each view is float32 [B, 3, size, size] in 0..1, not normalised. Under `per_arm="own"` the first arm's
    views come first, and they are those of `per_arm="shared"`. A view depends on nothing but the image, seed,
    epoch, id (under `draws="batch"` the first one of the batch) and view number. Raises TypeError or ValueError
    on another dtype or shape.
    """
    _check(images, index)
    index = index[:1].expand_as(index) if spec.draws == "batch" else index
    crops = [(crop, _prepare(images, crop)) for crop in spec.crops]
    aspect = images.shape[3] / images.shape[2]
    views: list[Tensor] = []
    for crop, source in crops * (ARMS if spec.per_arm == "own" else 1):
        for _ in range(crop.count):
            params = sample_crop(crop, index, seed=seed, epoch=epoch, view=len(views), aspect=aspect)
            views.append(apply_crop(source, params, crop.size))
    return views


def _check(images: Tensor, index: Tensor) -> None:
    if images.dtype not in (torch.uint8, torch.uint16):
        raise TypeError(f"images are {images.dtype}; views are made from torch.uint8 or torch.uint16")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; views are made from [B, 3, H, W]")
    if index.shape != images.shape[:1] or index.dtype != torch.int64:
        n = len(images)
        raise ValueError(f"index is {index.dtype} {tuple(index.shape)}; {n} images need torch.int64 ({n},)")


def sample_crop(crop: Crop, index: Tensor, *, seed: int, epoch: int, view: int, aspect: float = 1.0) -> CropParams:
    """Draw view number `view` for the sample ids `index` [B]; `aspect` is the source's width / height."""
    u = rng.uniform(seed, epoch, index, view, CROP_DRAWS + STAGE_DRAWS * len(crop.stages)).double()
    maps = torch.eye(3, dtype=u.dtype, device=u.device).repeat(len(u), 1, 1)
    colours = [torch.ones_like(u[:, 0]) for _ in range(3)] + [torch.zeros_like(u[:, 0])]
    if min(crop.scale) < 1:
        maps = crop_map(*_box(crop, u, aspect))
    for number, stage in enumerate(crop.stages):
        draws = u[:, CROP_DRAWS + STAGE_DRAWS * number :][:, :STAGE_DRAWS]
        recolour, distort = _chosen(stage, draws)
        if stage.jitter:
            colours = _jitter(stage.jitter, draws, recolour, colours)
        maps = maps @ _distortion(stage, draws, distort, crop.size)
    maps = maps @ flip_map(u[:, VFLIP] < crop.vflip, u[:, HFLIP] < crop.hflip)
    finish = rng.uniform(seed, epoch, index, rng.FINISH + view, FINISH_DRAWS).double()
    colours[2] = torch.where(finish[:, GREY] < crop.grey, 0.0, colours[2])
    kernels = _kernels(crop.blur, finish) if crop.blur else None
    solarised = finish[:, SOLARISE] < crop.solarise if crop.solarise else None
    return CropParams((maps / maps[:, 2:, 2:]).float(), torch.stack(colours, 1), kernels, solarised)


def _box(crop: Crop, u: Tensor, aspect: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RandomResizedCrop: the first of TRIES boxes that fits, else the largest centred one; fractions [B]."""
    low, high = (math.log(r) for r in crop.ratio)
    area = crop.scale[0] + (crop.scale[1] - crop.scale[0]) * u[:, AREA : AREA + TRIES]
    ratio = torch.exp(low + (high - low) * u[:, ASPECT : ASPECT + TRIES])
    width, height = torch.sqrt(area * ratio / aspect), torch.sqrt(area / ratio * aspect)
    fits = (width <= 1) & (height <= 1)
    first, any_fits = fits.int().argmax(1, keepdim=True), fits.any(1)
    width = torch.where(any_fits, width.gather(1, first)[:, 0], min(1.0, crop.ratio[1] / aspect))
    height = torch.where(any_fits, height.gather(1, first)[:, 0], min(1.0, aspect / crop.ratio[0]))
    left = torch.where(any_fits, u[:, LEFT], 0.5) * (1 - width)
    top = torch.where(any_fits, u[:, TOP], 0.5) * (1 - height)
    return left, top, width, height


def _chosen(stage: Stage, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Which samples [B] the stage recolours and which it distorts."""
    on = draws[:, APPLY] < stage.p
    if stage.choose == "all" or not (stage.jitter and (stage.perspective or stage.degrees)):
        return on, on
    first = draws[:, CHOOSE] < 0.5
    return on & first, on & ~first


def _jitter(jitter: Jitter, draws: Tensor, on: Tensor, colours: list[Tensor]) -> list[Tensor]:
    columns = (BRIGHTNESS, CONTRAST, SATURATION)
    widths = (jitter.brightness, jitter.contrast, jitter.saturation)
    factors = []
    for column, width in zip(columns, widths, strict=True):
        low = max(0.0, 1.0 - width)
        factors.append(torch.where(on, low + (1.0 + width - low) * draws[:, column], 1.0))
    turns = torch.where(on, (2 * draws[:, HUE] - 1) * jitter.hue, 0.0)
    return [c * f for c, f in zip(colours, factors, strict=False)] + [colours[3] + turns]


def _kernels(blur: Blur, finish: Tensor) -> Tensor:
    low, high = blur.sigma
    sigma = torch.where(finish[:, BLUR] < blur.p, low + (high - low) * finish[:, SIGMA], 0.0)
    return filters.gaussian_kernels(blur, sigma)


def _distortion(stage: Stage, draws: Tensor, on: Tensor, size: int) -> Tensor:
    """Perspective, then rotation; exactly the identity for samples [B] that are not `on`."""
    maps = torch.eye(3, dtype=draws.dtype, device=draws.device).repeat(len(draws), 1, 1)
    if stage.perspective:
        most = int(stage.perspective * (size // 2))
        shifts = (draws[:, CORNERS:ANGLE] * (most + 1)).floor().view(-1, 4, 2)
        drawn = on & (draws[:, PERSPECTIVE] < stage.perspective_p)
        maps = torch.where(drawn[:, None, None], perspective_map(shifts, size), maps)
    if stage.degrees:
        maps = maps @ rotation_map(torch.where(on, (2 * draws[:, ANGLE] - 1) * stage.degrees, 0.0))
    return maps


@torch.no_grad()
def apply_crop(images: Tensor, params: CropParams, size: int) -> Tensor:
    """uint8 or float32 (0..1) `images` [B, 3, H, W] -> float32 [B, 3, size, size] in 0..1.

    Colour comes first, so that borders stay black. At the same size, flips and the identity are exact copies.
    """
    if images.device.type == "cpu":
        views = _apply_by_kind(images, params, size)
        views = views if params.kernels is None else _blur_some_(views, params.kernels)
    else:
        views = _apply_to_all(images, params, size)
        views = views if params.kernels is None else filters.convolve(views, params.kernels)
    return views if params.solarised is None else filters.solarise(views, params.solarised)


def _blur_some_(views: Tensor, kernels: Tensor) -> Tensor:
    """`filters.convolve` in place, with the same bits: rows that it would change, in blocks that stay in the cache."""
    for rows in ((kernels > 0).sum(1) > 1).nonzero()[:, 0].split(max(1, BLOCK_PIXELS // views.shape[2] ** 2)):
        views.index_copy_(0, rows, filters.convolve(views.index_select(0, rows), kernels[rows]))
    return views


def _apply_to_all(images: Tensor, params: CropParams, size: int) -> Tensor:
    """Everything for every row: nothing is read back, so nothing waits for a device."""
    straight, upside, mirrored = flips(params.maps)
    same_size = images.shape[-2:] == (size, size)
    if same_size:
        images = mirror(images, upside, mirrored)  # while they are bytes, not floats
    pixels = recolour(images, colour_matrix(params.factors, mean_luma(images)))
    bent = interpolate(pixels, params.maps, size)
    return torch.where(straight[:, None, None, None], pixels, bent) if same_size else bent


def _apply_by_kind(images: Tensor, params: CropParams, size: int) -> Tensor:
    """The same bits: rows that need the same work go together, in blocks that stay in a CPU's cache."""
    recoloured = (params.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    straight, upside, mirrored = flips(params.maps)
    if images.shape[-2:] != (size, size):
        straight = torch.zeros_like(straight)
    kinds = torch.stack([recoloured, straight, straight & upside, straight & mirrored], 1)
    out = torch.empty(len(images), 3, size, size)
    for kind in kinds.unique(dim=0):
        for rows in (kinds == kind).all(1).nonzero()[:, 0].split(max(1, BLOCK_PIXELS // size**2)):
            block = CropParams(params.maps[rows], params.factors[rows])
            out.index_copy_(0, rows, _apply_kind(images.index_select(0, rows), block, size, *kind.tolist()))
    return out


def _apply_kind(
    images: Tensor,
    params: CropParams,
    size: int,
    coloured: bool,
    straight: bool,
    upside: bool,
    mirrored: bool,
) -> Tensor:
    axes = [axis for axis, flip in ((2, upside), (3, mirrored)) if flip]
    images = images.flip(axes) if axes else images
    pixels = recolour(images, colour_matrix(params.factors, mean_luma(images))) if coloured else to_unit(images)
    return pixels if straight else interpolate(pixels, params.maps, size)


def _prepare(images: Tensor, crop: Crop) -> Tensor:
    """uint16 as float32 in 0..1; a large source so small that a middle crop meets `size` pixel for pixel."""
    if images.dtype == torch.uint16:
        images = to_unit(images)
    middle = (crop.scale[0] * crop.scale[1]) ** 0.25  # side of the crop of geometric mean area
    goal = round(crop.size / middle)
    height, width = (goal if n > SHRINK_ABOVE * goal else n for n in images.shape[2:])
    return images if (height, width) == tuple(images.shape[2:]) else shrink(to_unit(images), height, width)


def problems(spec: ViewSpec) -> list[str]:
    """Everything wrong with `spec`, each with its key and what would work; empty when it can be used."""
    found = [] if spec.crops else ["views.crops is empty; give at least one crop"]
    if spec.per_arm not in ("shared", "own"):
        found.append(f"views.per_arm={spec.per_arm}: choose shared or own")
    if spec.draws not in ("image", "batch"):
        found.append(f"views.draws={spec.draws}: choose image or batch")
    for i, crop in enumerate(spec.crops):
        key = f"views.crops[{i}]"
        found += _outside(key, 1, math.inf, size=crop.size, count=crop.count)
        found += _outside(key, 0, 1, vflip=crop.vflip, hflip=crop.hflip, grey=crop.grey, solarise=crop.solarise)
        found += _blur_problems(f"{key}.blur", crop.blur, crop.size) if crop.blur else []
        if not 0 < crop.scale[0] <= crop.scale[1] <= 1:
            found.append(f"{key}.scale={list(crop.scale)}: give two areas with 0 < first <= second <= 1")
        if not 0 < crop.ratio[0] <= crop.ratio[1]:
            found.append(f"{key}.ratio={list(crop.ratio)}: give two ratios with 0 < first <= second")
        for j, stage in enumerate(crop.stages):
            found += _stage_problems(f"{key}.stages[{j}]", stage)
    return found


def _stage_problems(key: str, stage: Stage) -> list[str]:
    found = _outside(key, 0, 1, p=stage.p, perspective_p=stage.perspective_p)
    found += _outside(key, 0, 0.9, perspective=stage.perspective)  # at 1 opposite corners may meet
    found += _outside(key, 0, 180, degrees=stage.degrees)
    if stage.choose not in ("all", "one"):
        found.append(f"{key}.choose={stage.choose}: choose all or one")
    if jitter := stage.jitter:
        widths = {name: value for name, value in vars(jitter).items() if name != "hue"}
        found += _outside(f"{key}.jitter", 0, math.inf, **widths) + _outside(f"{key}.jitter", 0, 0.5, hue=jitter.hue)
    return found


def _blur_problems(key: str, blur: Blur, size: int) -> list[str]:
    found = _outside(key, 0, 1, p=blur.p)
    if not 0 < blur.sigma[0] <= blur.sigma[1]:
        found.append(f"{key}.sigma={list(blur.sigma)}: give two widths in pixels with 0 < first <= second")
    if blur.taps % 2 == 0 or not 1 <= blur.taps < 2 * size:
        found.append(f"{key}.taps={blur.taps}: give an odd number from 1 to {2 * size - 1}")
    return found


def _outside(key: str, low: float, high: float, **values: float) -> list[str]:
    wanted = f"at least {low}" if high == math.inf else f"{low} to {high}"
    return [f"{key}.{k}={v}: give {wanted}" for k, v in values.items() if not low <= v <= high]
