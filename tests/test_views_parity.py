"""The geometry and colour of views against torchvision with equal parameters, step by step and chained."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torchvision.transforms.functional as TF
from torch import Tensor
from torchvision.transforms import InterpolationMode

from cass_scale import views
from cass_scale.colour import mean_luma, to_unit
from cass_scale.types import Crop, Stage, ViewSpec
from cass_scale.views import CropParams, apply_crop, make_views, sample_crop
from cass_scale.warp import (
    crop_map,
    flip_map,
    flips,
    interpolate,
    perspective_map,
    rotation_map,
    sampling_grid,
)
from tests.reference import views as slow
from tests.reference.views import OFFICIAL, noise, smooth

BILINEAR = InterpolationMode.BILINEAR


def params(
    maps: Tensor, brightness: float = 1, contrast: float = 1, saturation: float = 1, hue: float = 0
) -> CropParams:
    factors = torch.tensor([brightness, contrast, saturation, hue], dtype=torch.float64)
    return CropParams(maps.float(), factors.expand(len(maps), 4))


def warped(images: Tensor, maps: Tensor, size: int) -> Tensor:
    return apply_crop(images, params(maps), size)


def eye(b: int) -> Tensor:
    return torch.eye(3, dtype=torch.float64).repeat(b, 1, 1)


def d(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_perspective_equals_torchvision() -> None:
    size, shifts = 40, [3, 1, 0, 4, 2, 4, 4, 0]
    image = noise(1, size, size).float() / 255
    last = size - 1
    start = [[0, 0], [last, 0], [last, last], [0, last]]
    want = TF.perspective(image, start, slow.corners(shifts, size), BILINEAR)
    got = warped(image, perspective_map(d(*shifts).view(1, 4, 2), size).float(), size)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=0)


@pytest.mark.parametrize("angle", [-10.0, 7.5, 90.0])
def test_rotation_equals_torchvision(angle: float) -> None:
    image = noise(1, 40, 40).float() / 255
    want = TF.affine(image, angle, [0, 0], 1.0, [0.0], BILINEAR)
    got = warped(image, rotation_map(d(angle)).float(), 40)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("v", "h"), list(itertools.product([False, True], repeat=2)))
def test_flips_are_exact_copies(v: bool, h: bool) -> None:
    image = noise(2).float() / 255
    want = image.flip([axis for axis, on in ((2, v), (3, h)) if on])
    maps = flip_map(torch.tensor([v, v]), torch.tensor([h, h])).float()
    assert torch.equal(warped(image, maps, 48), want)


@pytest.mark.parametrize("box", [(4, 10, 20, 30), (1, 1, 46, 46), (8, 8, 24, 12)])
def test_resized_crop_equals_torchvision(box: tuple[int, int, int, int]) -> None:
    image = smooth(1, 48)
    top, left, height, width = box
    want = TF.resized_crop(image, top, left, height, width, [32, 32], BILINEAR, antialias=False)
    maps = crop_map(*(d(v / 48) for v in (left, top, width, height))).float()
    got = warped(image, maps, 32)
    # torchvision stops at the box's edge, we read the neighbours behind it: compare one pixel further inside.
    torch.testing.assert_close(got[..., 1:-1, 1:-1], want[..., 1:-1, 1:-1], atol=2e-5, rtol=0)


def test_enlarging_keeps_the_border_like_torchvisions_resize() -> None:
    image = noise(1, 20, 30).float() / 255
    want = TF.resize(image, [48, 48], BILINEAR, antialias=False)
    torch.testing.assert_close(warped(image, eye(1).float(), 48), want, atol=2e-5, rtol=0)


def test_large_sources_are_antialiased_first() -> None:
    stripes = (torch.arange(192) % 2 * 255).to(torch.uint8).expand(1, 3, 192, 192).contiguous()
    (view,) = make_views(stripes, ViewSpec((Crop(48),)), torch.zeros(1, dtype=torch.int64), seed=0, epoch=0)
    want = TF.resize(stripes.float() / 255, [48, 48], BILINEAR, antialias=True)
    torch.testing.assert_close(view, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", list(itertools.permutations(("brightness", "contrast", "saturation"))))
def test_jitter_equals_torchvision_in_every_order(order: tuple[str, ...]) -> None:
    factors = {"brightness": 1.15, "contrast": 0.85, "saturation": 1.2}
    image = want = 0.3 + 0.4 * noise(2).float() / 255
    for name in order:
        want = getattr(TF, f"adjust_{name}")(want, factors[name])
    got = apply_crop(image, params(eye(2), **factors), 48)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)  # torchvision's luma weights sum to 0.9999


def test_hue_keeps_luma_and_grey_and_turns_red_as_torchvision_does() -> None:
    grey = torch.full((1, 3, 2, 2), 0.6)
    torch.testing.assert_close(apply_crop(grey, params(eye(1), hue=0.3), 2), grey, atol=1e-6, rtol=0)
    red = torch.tensor([0.6, 0.45, 0.45]).view(1, 3, 1, 1).expand(1, 3, 2, 2).contiguous()
    for hue in (-0.08, 0.08):
        got = apply_crop(red, params(eye(1), hue=hue), 2)
        torch.testing.assert_close(mean_luma(got), mean_luma(red), atol=1e-6, rtol=0)
        want = TF.adjust_hue(red, hue)
        assert (got[0, 1] - got[0, 2]).sign().equal((want[0, 1] - want[0, 2]).sign())  # towards yellow or violet
    whole_turn = apply_crop(red, params(eye(1), hue=1.0), 2)
    torch.testing.assert_close(whole_turn, red, atol=1e-6, rtol=0)


def test_colour_is_clamped_and_borders_stay_black() -> None:
    image = torch.full((1, 3, 32, 32), 0.9)
    view = apply_crop(image, params(rotation_map(d(45.0)), brightness=1.5, contrast=0.5), 32)
    assert view[0, :, 16, 16].eq(1).all()
    assert view[0, :, 0, 0].eq(0).all()


@pytest.mark.parametrize("choose", ["all", "one"])
def test_chain_equals_the_slow_twin_on_smooth_images(choose: str) -> None:
    size, b = 128, 24
    stages = tuple(replace(s, p=0.7, perspective_p=1.0, choose=choose) for s in OFFICIAL.stages)
    crop = replace(OFFICIAL, size=size, stages=stages)
    images, index = smooth(b, size), torch.arange(100, 100 + b)
    fast = apply_crop(images, sample_crop(crop, index, seed=3, epoch=2, view=1), size)
    drawn = [slow.draw(crop, int(i), seed=3, epoch=2, view=1) for i in index]
    want = torch.stack([slow.apply(image, one, size) for image, one in zip(images, drawn, strict=True)])
    assert sum(bool(s.corners) for one in drawn for s in one.stages) > 3  # or nothing would be compared
    inside = torch.stack([slow.apply(torch.ones(3, size, size), one_shape(one), size) for one in drawn]) > 0.999
    difference = (fast - want)[inside].abs()
    # The rest is contrast's mean, which torchvision takes after the first distortion has brought in black.
    assert inside.float().mean() > 0.8
    assert difference.max() < 0.03
    assert difference.median() < 1e-3


def one_shape(drawn: slow.Draw) -> slow.Draw:
    """Only the geometry of a draw."""
    return replace(drawn, stages=tuple(replace(s, factors=None) for s in drawn.stages))


def test_geometry_alone_equals_the_slow_twin_closely() -> None:
    size, b = 128, 16
    stages = (Stage(perspective=0.3), Stage(degrees=20))
    crop = Crop(size, stages=stages, vflip=0.5, hflip=0.5)
    images, index = smooth(b, size), torch.arange(b)
    fast = apply_crop(images, sample_crop(crop, index, seed=0, epoch=0, view=0), size)
    drawn = [slow.draw(crop, i, seed=0, epoch=0, view=0) for i in range(b)]
    want = torch.stack([slow.apply(image, one, size) for image, one in zip(images, drawn, strict=True)])
    inside = torch.stack([slow.apply(torch.ones(3, size, size), one, size) for one in drawn]) > 0.9999
    torch.testing.assert_close(fast[inside], want[inside], atol=2e-3, rtol=0)


def test_composed_map_equals_torchvisions_coefficients() -> None:
    """Corner by corner: torchvision's two inverse maps in pixels, chained by hand, in double precision."""
    size, shifts, angle = 64, [5, 2, 3, 6, 0, 4, 6, 1], 8.0
    last = size - 1
    start = [[0, 0], [last, 0], [last, last], [0, last]]
    a, b, c, e, f, g, h, i = TF._get_perspective_coeffs(start, slow.corners(shifts, size))
    perspective = d(a, b, c, e, f, g, h, i, 1).view(3, 3)
    turn = d(*TF._get_inverse_affine_matrix([0.0, 0.0], angle, [0.0, 0.0], 1.0, [0.0, 0.0]), 0, 0, 1).view(3, 3)
    to_pixels = d(size / 2, 0, size / 2, 0, size / 2, size / 2, 0, 0, 1).view(3, 3)
    to_centred = d(size / 2, 0, 0, 0, size / 2, 0, 0, 0, 1).view(3, 3)
    want = to_pixels.inverse() @ perspective @ to_pixels @ to_centred.inverse() @ turn @ to_centred
    want = want @ torch.diag(d(-1, 1, 1))
    got = perspective_map(d(*shifts).view(1, 4, 2), size) @ rotation_map(d(angle))
    got = (got @ flip_map(torch.tensor([False]), torch.tensor([True])))[0]
    torch.testing.assert_close(got / got[2, 2], want / want[2, 2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [48, 40])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_work_left_out_on_a_cpu_has_the_bits_of_all_the_work(size: int, dtype: torch.dtype) -> None:
    images = noise(24) if dtype == torch.uint8 else noise(24).float() / 255
    crop = replace(OFFICIAL, size=size)
    drawn = sample_crop(crop, torch.arange(24), seed=0, epoch=0, view=0)
    straight, upside, mirrored = flips(drawn.maps)
    assert 3 < straight.sum() < 21 and upside.any() and mirrored.any()
    assert 3 < drawn.factors[:, 0].ne(1).sum() < 21
    everything = views._apply_to_all(images, drawn, size)
    assert torch.equal(apply_crop(images, drawn, size), everything)
    if size == 48:
        smoothly = interpolate(to_unit(images), drawn.maps, 48)
        plain = straight & drawn.factors[:, 0].eq(1)
        torch.testing.assert_close(everything[plain], smoothly[plain], atol=1e-4, rtol=0)


def test_sampling_grid_of_the_identity_is_the_pixel_centres() -> None:
    grid = sampling_grid(eye(1).float(), 4)
    assert grid[0, 0, :, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert grid[0, :, 0, 1].tolist() == [-0.75, -0.25, 0.25, 0.75]
