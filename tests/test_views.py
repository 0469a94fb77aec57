"""Views against torchvision with equal parameters, frequencies of draws, and what a view may not depend on."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision.transforms.functional as TF
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from cass_scale import colour, warp
from cass_scale.colour import apply_colour, colour_matrix, mean_luma
from cass_scale.types import Crop, Jitter, Stage, ViewSpec
from cass_scale.views import CropParams, apply_crop, make_views, problems, sample_crop
from cass_scale.warp import crop_map, flip_map, perspective_map, rotation_map, sampling_grid, warp_
from tests.reference import views as slow

CONFIGS = Path(__file__).parents[1] / "configs" / "views"
LEAVES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
J = Jitter(0.2, 0.2, 0.2)
OFFICIAL = Crop(
    48,
    stages=(Stage(0.3, J, perspective=0.2, perspective_p=0.5), Stage(0.3, J, degrees=10)),
    vflip=0.3,
    hflip=0.3,
)
BILINEAR = InterpolationMode.BILINEAR


def leaf(name: str, size: int = 48, **changes: object) -> ViewSpec:
    config = OmegaConf.create(
        {"arms": {"image_size": size}, "views": OmegaConf.load(CONFIGS / f"{name}.yaml")}
    )
    config.views.update(changes)
    return instantiate(config.views)


def noise(b: int, h: int = 48, w: int = 48, dtype: torch.dtype = torch.uint8) -> Tensor:
    top = 65536 if dtype == torch.uint16 else 256
    return torch.randint(0, top, (b, 3, h, w), generator=torch.Generator().manual_seed(b + h)).to(dtype)


def smooth(b: int, size: int) -> Tensor:
    """Float images of low frequencies in 0.3..0.7, so that interpolations and clamps agree closely."""
    x = torch.linspace(0, 2 * math.pi, size)
    k = torch.arange(1, 3 * b + 1, dtype=torch.float32).view(b, 3, 1, 1)
    return 0.5 + 0.1 * torch.sin(x + k) + 0.1 * torch.cos(x[:, None] - 2 * k)


def params(maps: Tensor, **colours: float) -> CropParams:
    values = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | colours
    fields = {k: torch.full((len(maps),), v, dtype=torch.float64) for k, v in values.items()}
    return CropParams(maps.float(), **fields)


def eye(b: int) -> Tensor:
    return torch.eye(3, dtype=torch.float64).repeat(b, 1, 1)


def d(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- one step against torchvision ------------------------------------------------------------------------------


def test_perspective_equals_torchvision() -> None:
    size, shifts = 40, [3, 1, 0, 4, 2, 4, 4, 0]
    image = noise(1, size, size).float() / 255
    last = size - 1
    start = [[0, 0], [last, 0], [last, last], [0, last]]
    want = TF.perspective(image, start, slow.corners(shifts, size), BILINEAR)
    got = warp_(image.clone(), perspective_map(d(*shifts).view(1, 4, 2), size).float(), size)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=0)


@pytest.mark.parametrize("angle", [-10.0, 7.5, 90.0])
def test_rotation_equals_torchvision(angle: float) -> None:
    image = noise(1, 40, 40).float() / 255
    want = TF.affine(image, angle, [0, 0], 1.0, [0.0], BILINEAR)
    got = warp_(image.clone(), rotation_map(d(angle)).float(), 40)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("v", "h"), list(itertools.product([False, True], repeat=2)))
def test_flips_are_exact_copies(v: bool, h: bool) -> None:
    image = noise(2).float() / 255
    want = image.flip([axis for axis, on in ((2, v), (3, h)) if on])
    maps = flip_map(torch.tensor([v, v]), torch.tensor([h, h])).float()
    assert torch.equal(warp_(image.clone(), maps, 48), want)


@pytest.mark.parametrize("box", [(4, 10, 20, 30), (1, 1, 46, 46), (8, 8, 24, 12)])
def test_resized_crop_equals_torchvision(box: tuple[int, int, int, int]) -> None:
    image = smooth(1, 48)
    top, left, height, width = box
    want = TF.resized_crop(image, top, left, height, width, [32, 32], BILINEAR, antialias=False)
    maps = crop_map(*(d(v / 48) for v in (left, top, width, height))).float()
    got = warp_(image.clone(), maps, 32)
    # torchvision stops at the box's edge, we read the neighbours behind it: compare one pixel further inside.
    torch.testing.assert_close(got[..., 1:-1, 1:-1], want[..., 1:-1, 1:-1], atol=2e-5, rtol=0)


def test_enlarging_keeps_the_border_like_torchvisions_resize() -> None:
    image = noise(1, 20, 30).float() / 255
    want = TF.resize(image, [48, 48], BILINEAR, antialias=False)
    torch.testing.assert_close(warp_(image.clone(), eye(1).float(), 48), want, atol=2e-5, rtol=0)


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
        assert (
            (got[0, 1] - got[0, 2]).sign().equal((want[0, 1] - want[0, 2]).sign())
        )  # towards yellow or violet
    whole_turn = apply_crop(red, params(eye(1), hue=1.0), 2)
    torch.testing.assert_close(whole_turn, red, atol=1e-6, rtol=0)


def test_colour_is_clamped_and_borders_stay_black() -> None:
    image = torch.full((1, 3, 32, 32), 0.9)
    view = apply_crop(image, params(rotation_map(d(45.0)), brightness=1.5, contrast=0.5), 32)
    assert view[0, :, 16, 16].eq(1).all()
    assert view[0, :, 0, 0].eq(0).all()


# --- the whole chain -------------------------------------------------------------------------------------------


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
    inside = (
        torch.stack([slow.apply(torch.ones(3, size, size), one_shape(one), size) for one in drawn]) > 0.999
    )
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
    turn = d(*TF._get_inverse_affine_matrix([0.0, 0.0], angle, [0.0, 0.0], 1.0, [0.0, 0.0]), 0, 0, 1).view(
        3, 3
    )
    to_pixels = d(size / 2, 0, size / 2, 0, size / 2, size / 2, 0, 0, 1).view(3, 3)
    to_centred = d(size / 2, 0, 0, 0, size / 2, 0, 0, 0, 1).view(3, 3)
    want = to_pixels.inverse() @ perspective @ to_pixels @ to_centred.inverse() @ turn @ to_centred
    want = want @ torch.diag(d(-1, 1, 1))
    got = perspective_map(d(*shifts).view(1, 4, 2), size) @ rotation_map(d(angle))
    got = (got @ flip_map(torch.tensor([False]), torch.tensor([True])))[0]
    torch.testing.assert_close(got / got[2, 2], want / want[2, 2], atol=1e-5, rtol=0)


def test_views_are_uint8_over_255_when_nothing_is_drawn() -> None:
    images, index = noise(3), torch.arange(3)
    (view,) = make_views(images, leaf("none"), index, seed=0, epoch=0)
    torch.testing.assert_close(view, images.float() / 255, atol=1e-7, rtol=0)
    images = noise(3, dtype=torch.uint16)
    (view,) = make_views(images, leaf("none"), index, seed=0, epoch=0)
    torch.testing.assert_close(view, images.float() / 65535, atol=1e-7, rtol=0)


def test_mean_luma_is_the_mean_of_luma() -> None:
    for images, full in ((noise(2), 255), (noise(2, dtype=torch.uint16), 65535)):
        r, g, b = images.double().mean((2, 3)).unbind(1)
        want = (0.299 * r + 0.587 * g + 0.114 * b) / full
        torch.testing.assert_close(mean_luma(images), want)
        torch.testing.assert_close(mean_luma(images.float() / full), want, atol=1e-6, rtol=0)


# --- sampling --------------------------------------------------------------------------------------------------

N = 20_000


def near(share: Tensor, p: float, n: int = N) -> bool:
    """Within five standard deviations of a binomial: one false alarm in two million."""
    return abs(float(share.float().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n) + 1e-9


def test_official_frequencies_and_ranges() -> None:
    crop = leaf("official", size=384).crops[0]
    got = sample_crop(crop, torch.arange(N), seed=1, epoch=0, view=0)
    assert near(got.brightness != 1, 1 - 0.7**2)
    assert 0.8**2 <= got.brightness.min() < 0.7 and 1.3 < got.brightness.max() <= 1.2**2
    assert got.hue.eq(0).all()
    bent = got.maps[:, 2, :2].ne(0).any(1)
    assert near(bent, 0.3 * 0.5)
    turned = got.maps[:, 0, 1].ne(0) & ~bent
    assert near(turned, 0.85 * 0.3)
    angles = torch.atan2(got.maps[:, 0, 1].abs(), got.maps[:, 0, 0].abs())[turned] * 180 / math.pi
    assert 9.9 < angles.max() <= 10.001
    plain = ~bent & ~turned
    assert near(got.maps[plain][:, 0, 0] < 0, 0.3, int(plain.sum()))
    assert near(got.maps[plain][:, 1, 1] < 0, 0.3, int(plain.sum()))
    once = got.brightness[(got.brightness != 1) & (got.brightness > 0.8) & (got.brightness < 1.2)]
    assert abs(float(once.mean()) - 1) < 0.01


def test_v1_recolours_in_the_first_stage_only_and_paper_adds_hue() -> None:
    index = torch.arange(N)
    first = sample_crop(leaf("v1").crops[0], index, seed=0, epoch=0, view=0)
    assert near(first.contrast != 1, 0.3)
    official = sample_crop(leaf("official").crops[0], index, seed=0, epoch=0, view=0)
    assert torch.equal(first.maps, official.maps)  # leaving a jitter out shifts no other draw
    paper = sample_crop(leaf("paper").crops[0], index, seed=0, epoch=0, view=0)
    assert near(paper.hue != 0, 1 - 0.85**2)
    assert 0.3 < paper.hue.abs().max() <= 0.4


def test_one_is_exclusive_and_even() -> None:
    stage = Stage(0.6, J, perspective=0.2, choose="one")
    got = sample_crop(Crop(64, stages=(stage,)), torch.arange(N), seed=0, epoch=0, view=0)
    recoloured, bent = got.saturation != 1, got.maps[:, 2, :2].ne(0).any(1)
    assert not (recoloured & bent).any()
    assert near(recoloured, 0.3)
    assert near(bent, 0.3)


def test_one_with_a_single_choice_takes_it() -> None:
    got = sample_crop(
        Crop(64, stages=(Stage(0.6, J, choose="one"),)), torch.arange(N), seed=0, epoch=0, view=0
    )
    assert near(got.saturation != 1, 0.6)


def test_perspective_shifts_are_torchvisions_whole_pixels() -> None:
    crop = Crop(384, stages=(Stage(perspective=0.2),))
    got = sample_crop(crop, torch.arange(2000), seed=0, epoch=0, view=0).maps.double()
    # Where the output's corners at pixel 0 and 383 came from: invert the map on the source's corners.
    ends = torch.tensor([[-1.0, -1.0, 1.0], [1 - 2 / 384, -1.0, 1.0]], dtype=torch.float64)
    back = ends @ got.inverse().transpose(1, 2)
    pixels = (back[..., :2] / back[..., 2:] + 1) * 192
    inward = torch.stack([pixels[:, 0, 0], pixels[:, 0, 1], 383 - pixels[:, 1, 0], pixels[:, 1, 1]])
    assert (inward - inward.round()).abs().max() < 1e-2
    assert set(inward.round().long().unique().tolist()) == set(range(int(0.2 * 192) + 1))


@pytest.mark.parametrize("aspect", [1.0, 1.5])
def test_random_crop_matches_torchvisions_distribution(aspect: float) -> None:
    crop = Crop(64, scale=(0.2, 1.0))
    got = sample_crop(crop, torch.arange(N), seed=0, epoch=0, view=0, aspect=aspect).maps
    width, height = got[:, 0, 0], got[:, 1, 1]
    assert (got[:, 0, 2].abs() + width).max() <= 1 + 1e-6  # boxes lie inside
    assert (got[:, 1, 2].abs() + height).max() <= 1 + 1e-6
    torch.manual_seed(0)
    like = torch.empty(1, 1000, int(1000 * aspect))
    boxes = torch.tensor(
        [RandomResizedCrop.get_params(like, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    )
    theirs = torch.stack([boxes[:, 3] / (1000 * aspect), boxes[:, 2] / 1000])
    for ours, other in ((width, theirs[0]), (height, theirs[1]), (width * height, theirs[0] * theirs[1])):
        quantiles = d(0.1, 0.5, 0.9).float()
        torch.testing.assert_close(ours.quantile(quantiles), other.quantile(quantiles), atol=0.03, rtol=0)


def test_a_crop_that_never_fits_is_the_largest_centred_one() -> None:
    crop = Crop(64, scale=(0.999, 1.0), ratio=(1.0, 1.0))
    got = sample_crop(crop, torch.arange(50), seed=0, epoch=0, view=0, aspect=2.0).maps
    torch.testing.assert_close(got[:, 0, 0], torch.full((50,), 0.5))
    assert got[:, 1, 1].eq(1).all() and got[:, :2, 2].abs().max() == 0


# --- what a view depends on ------------------------------------------------------------------------------------

EVERYTHING = ViewSpec(
    (
        Crop(
            37,
            scale=(0.3, 1.0),
            stages=(Stage(0.8, Jitter(0.4, 0.4, 0.4, 0.1), perspective=0.3, degrees=5),),
            hflip=0.5,
        ),
        replace(OFFICIAL, count=2),
    ),
)


@pytest.mark.parametrize("split", [1, 2, 3, 5, 13])
def test_bits_do_not_depend_on_batch_order_or_ranks(split: int) -> None:
    images, index = noise(13), torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:13]
    whole = make_views(images, EVERYTHING, index, seed=5, epoch=1)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(split))
    for rows in order.split(split):
        for part, full in zip(
            make_views(images[rows], EVERYTHING, index[rows], seed=5, epoch=1), whole, strict=True
        ):
            assert torch.equal(part, full[rows])


def test_threads_do_not_change_bits() -> None:
    images, index, threads = noise(6), torch.arange(6), torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(
                torch.cat([v.flatten() for v in make_views(images, EVERYTHING, index, seed=0, epoch=0)])
            )
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_epoch_seed_and_view_number_change_the_view() -> None:
    images, index = noise(32), torch.arange(32)
    spec = ViewSpec((replace(OFFICIAL, count=2),))
    one, two = make_views(images, spec, index, seed=0, epoch=0)
    other = make_views(images, spec, index, seed=0, epoch=1)[0]
    seeded = make_views(images, spec, index, seed=1, epoch=0)[0]
    again = make_views(images, spec, index, seed=0, epoch=0)[0]
    assert torch.equal(one, again)
    for different in (two, other, seeded):
        assert (one != different).flatten(1).any(
            1
        ).float().mean() > 0.8  # 10 % pairs of unchanged images are fair


def test_per_arm_own_draws_anew_for_the_second_arm() -> None:
    images, index = noise(16), torch.arange(16)
    shared, own = leaf("strong"), leaf("strong", per_arm="own")
    assert (shared.number, own.number) == (1, 2)
    (view,) = make_views(images, shared, index, seed=0, epoch=0)
    first, second = make_views(images, own, index, seed=0, epoch=0)
    assert torch.equal(view, first)
    assert (first != second).flatten(1).any(1).all()


def test_the_path_without_choices_gives_the_same_bits() -> None:
    """What a GPU runs (everything for every row) against what the CPU skips."""
    images, index = noise(24), torch.arange(24)
    drawn = sample_crop(OFFICIAL, index, seed=0, epoch=0, view=0)
    matrix = colour_matrix(*drawn[1:], mean_luma(images))
    pixels = colour._transform(images.float(), matrix, 1 / 255)
    assert torch.equal(apply_colour(images, matrix), pixels)
    straight = drawn.maps.abs().eq(torch.eye(3)).flatten(1).all(1)
    assert 3 < straight.sum() < 21
    mirrored = warp._mirror(pixels, drawn.maps[:, 1, 1] < 0, drawn.maps[:, 0, 0] < 0)
    want = torch.where(straight[:, None, None, None], mirrored, warp._interpolate(pixels, drawn.maps, 48))
    assert torch.equal(warp_(pixels, drawn.maps, 48), want)


@pytest.mark.parametrize("name", LEAVES)
def test_off_the_cpu_no_operation_reads_data_back(name: str) -> None:
    """Tensors without data fail at anything that would have to wait for a device."""
    images = torch.empty(4, 3, 48, 48, dtype=torch.uint8, device="meta")
    index = torch.empty(4, dtype=torch.int64, device="meta")
    for view in make_views(images, leaf(name), index, seed=0, epoch=0):
        assert view.shape == (4, 3, 48, 48) and view.dtype == torch.float32


@pytest.mark.gpu
def test_gpu_agrees_with_the_cpu_and_never_waits() -> None:
    images, index = noise(16), torch.arange(16)
    want = make_views(images, EVERYTHING, index, seed=0, epoch=0)
    there = images.cuda(), index.cuda()
    make_views(there[0], EVERYTHING, there[1], seed=0, epoch=0)  # constants travel once
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = make_views(there[0], EVERYTHING, there[1], seed=0, epoch=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=2e-4, rtol=0)


def test_autocast_and_reduced_matmuls_change_nothing() -> None:
    images, index = noise(8), torch.arange(8)
    plain = make_views(images, EVERYTHING, index, seed=0, epoch=0)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = make_views(images, EVERYTHING, index, seed=0, epoch=0)
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(a, b) and b.dtype == torch.float32 for a, b in zip(plain, cast, strict=True))


def test_views_carry_no_gradient_and_leave_their_input_alone() -> None:
    images = noise(8)
    kept = images.clone()
    views = make_views(images, EVERYTHING, torch.arange(8), seed=0, epoch=0)
    assert torch.equal(images, kept)
    assert not any(v.requires_grad or v.is_inference() for v in views)
    assert all(v.min() >= 0 and v.max() <= 1 for v in views)
    pixels = smooth(2, 32).requires_grad_()
    assert not apply_crop(pixels, params(rotation_map(d(3.0, 4.0))), 32).requires_grad


def test_sampling_grid_of_the_identity_is_the_pixel_centres() -> None:
    grid = sampling_grid(eye(1).float(), 4)
    assert grid[0, 0, :, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert grid[0, :, 0, 1].tolist() == [-0.75, -0.25, 0.25, 0.75]


# --- descriptions and messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_instantiate_say_where_from_and_have_no_problems(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    for word in ("# source:", "# run:", "# differs:"):
        assert word in text
    spec = leaf(name)
    assert spec.crops[0].size == 48 and problems(spec) == []


def test_problems_name_the_key_and_what_would_work() -> None:
    stage = Stage(1.5, Jitter(-0.1, hue=0.7), perspective=1.0, degrees=200, choose="both")  # type: ignore[arg-type]
    crop = Crop(0, scale=(0.5, 0.2), ratio=(0.0, 1.0), stages=(stage,), hflip=-1)
    found = problems(ViewSpec((crop,), per_arm="each"))  # type: ignore[arg-type]
    assert found == [
        "views.per_arm=each: choose shared or own",
        "views.crops[0].size=0: give at least 1",
        "views.crops[0].hflip=-1: give 0 to 1",
        "views.crops[0].scale=[0.5, 0.2]: give two areas with 0 < first <= second <= 1",
        "views.crops[0].ratio=[0.0, 1.0]: give two ratios with 0 < first <= second",
        "views.crops[0].stages[0].p=1.5: give 0 to 1",
        "views.crops[0].stages[0].perspective=1.0: give 0 to 0.9",
        "views.crops[0].stages[0].degrees=200: give 0 to 180",
        "views.crops[0].stages[0].choose=both: choose all or one",
        "views.crops[0].stages[0].jitter.brightness=-0.1: give at least 0",
        "views.crops[0].stages[0].jitter.hue=0.7: give 0 to 0.5",
    ]
    assert problems(ViewSpec(())) == ["views.crops is empty; give at least one crop"]


@pytest.mark.parametrize(
    ("images", "index", "error", "words"),
    [
        (
            torch.zeros(2, 3, 8, 8),
            torch.arange(2),
            TypeError,
            "torch.float32; views are made from torch.uint8",
        ),
        (noise(2)[:, :1], torch.arange(2), ValueError, r"shape \(2, 1, 48, 48\); views are made from"),
        (noise(2)[0], torch.arange(2), ValueError, r"shape \(3, 48, 48\)"),
        (noise(2), torch.arange(3), ValueError, r"torch.int64 \(3,\); 2 images need torch.int64 \(2,\)"),
        (noise(2), torch.arange(2).float(), ValueError, "index is torch.float32"),
    ],
)
def test_wrong_input_is_named(images: Tensor, index: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_views(images, ViewSpec((OFFICIAL,)), index, seed=0, epoch=0)
