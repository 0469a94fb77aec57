"""Views: frequencies and ranges of the draws, what a view may not depend on, descriptions and messages."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from cass_scale.colour import mean_luma
from cass_scale.types import Blur, Crop, Jitter, Stage, ViewSpec
from cass_scale.views import apply_crop, make_views, problems, sample_crop
from tests.reference.views import OFFICIAL, J, noise, smooth

CONFIGS = Path(__file__).parents[1] / "configs" / "views"
LEAVES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def leaf(name: str, size: int = 48, **changes: object) -> ViewSpec:
    sizes = {"image_size": size, "global_size": size, "local_size": size}
    config = OmegaConf.create({"arms": sizes, "views": OmegaConf.load(CONFIGS / f"{name}.yaml")})
    config.views.update(changes)
    return instantiate(config.views)


def test_views_are_uint8_over_255_when_nothing_is_drawn() -> None:
    images, index = noise(3), torch.arange(3)
    (view,) = make_views(images, leaf("none"), index, seed=0, epoch=0)
    torch.testing.assert_close(view, images.float() / 255, atol=1e-7, rtol=0)
    images = noise(3, dtype=torch.uint16)
    (view,) = make_views(images, leaf("none"), index, seed=0, epoch=0)
    torch.testing.assert_close(view, images.float() / 65535, atol=1e-7, rtol=0)


def test_sixteen_bits_are_the_same_views_with_finer_steps() -> None:
    images, index = noise(8), torch.arange(8)
    fine = (images.int() * 257).to(torch.uint16)
    views = make_views(images, EVERYTHING, index, seed=0, epoch=0)
    for view, finer in zip(views, make_views(fine, EVERYTHING, index, seed=0, epoch=0), strict=True):
        torch.testing.assert_close(view, finer, atol=2e-6, rtol=0)


def test_mean_luma_is_the_mean_of_luma() -> None:
    r, g, b = noise(2).double().mean((2, 3)).unbind(1)
    want = (0.299 * r + 0.587 * g + 0.114 * b) / 255
    torch.testing.assert_close(mean_luma(noise(2)), want)
    torch.testing.assert_close(mean_luma(noise(2).float() / 255), want, atol=1e-6, rtol=0)


N = 20_000


def near(share: Tensor, p: float, n: int = N) -> bool:
    """Within five standard deviations of a binomial: one false alarm in two million."""
    return abs(float(share.float().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n) + 1e-9


def test_official_frequencies_and_ranges() -> None:
    crop = leaf("official", size=384).crops[0]
    got = sample_crop(crop, torch.arange(N), seed=1, epoch=0, view=0)
    assert near(got.factors[:, 0] != 1, 1 - 0.7**2)
    assert 0.8**2 <= got.factors[:, 0].min() < 0.7 and 1.3 < got.factors[:, 0].max() <= 1.2**2
    assert got.factors[:, 3].eq(0).all()
    bent = got.maps[:, 2, :2].ne(0).any(1)
    assert near(bent, 0.3 * 0.5)
    turned = got.maps[:, 0, 1].ne(0) & ~bent
    assert near(turned, 0.85 * 0.3)
    angles = torch.atan2(got.maps[:, 0, 1].abs(), got.maps[:, 0, 0].abs())[turned] * 180 / math.pi
    assert 9.9 < angles.max() <= 10.001
    plain = ~bent & ~turned
    assert near(got.maps[plain][:, 0, 0] < 0, 0.3, int(plain.sum()))
    assert near(got.maps[plain][:, 1, 1] < 0, 0.3, int(plain.sum()))
    once = got.factors[:, 0][(got.factors[:, 0] != 1) & (got.factors[:, 0] > 0.8) & (got.factors[:, 0] < 1.2)]
    assert abs(float(once.mean()) - 1) < 0.01


def test_v1_recolours_in_the_first_stage_only_and_paper_adds_hue() -> None:
    index = torch.arange(N)
    first = sample_crop(leaf("v1").crops[0], index, seed=0, epoch=0, view=0)
    assert near(first.factors[:, 1] != 1, 0.3)
    official = sample_crop(leaf("official").crops[0], index, seed=0, epoch=0, view=0)
    assert torch.equal(first.maps, official.maps)  # leaving a jitter out shifts no other draw
    paper = sample_crop(leaf("paper").crops[0], index, seed=0, epoch=0, view=0)
    assert near(paper.factors[:, 3] != 0, 1 - 0.85**2)
    assert 0.3 < paper.factors[:, 3].abs().max() <= 0.4


def test_one_is_exclusive_and_even() -> None:
    stage = Stage(0.6, J, perspective=0.2, choose="one")
    got = sample_crop(Crop(64, stages=(stage,)), torch.arange(N), seed=0, epoch=0, view=0)
    recoloured, bent = got.factors[:, 2] != 1, got.maps[:, 2, :2].ne(0).any(1)
    assert not (recoloured & bent).any()
    assert near(recoloured, 0.3)
    assert near(bent, 0.3)


def test_one_with_a_single_choice_takes_it() -> None:
    got = sample_crop(Crop(64, stages=(Stage(0.6, J, choose="one"),)), torch.arange(N), seed=0, epoch=0, view=0)
    assert near(got.factors[:, 2] != 1, 0.6)


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
    boxes = torch.tensor([RandomResizedCrop.get_params(like, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    theirs = torch.stack([boxes[:, 3] / (1000 * aspect), boxes[:, 2] / 1000])
    for ours, other in ((width, theirs[0]), (height, theirs[1]), (width * height, theirs[0] * theirs[1])):
        quantiles = torch.tensor([0.1, 0.5, 0.9])
        torch.testing.assert_close(ours.quantile(quantiles), other.quantile(quantiles), atol=0.03, rtol=0)


def test_a_crop_that_never_fits_is_the_largest_centred_one() -> None:
    crop = Crop(64, scale=(0.999, 1.0), ratio=(1.0, 1.0))
    got = sample_crop(crop, torch.arange(50), seed=0, epoch=0, view=0, aspect=2.0).maps
    torch.testing.assert_close(got[:, 0, 0], torch.full((50,), 0.5))
    assert got[:, 1, 1].eq(1).all() and got[:, :2, 2].abs().max() == 0
    wide = torch.full((1, 3, 20, 40), 255, dtype=torch.uint8)
    wide[..., 6:34] = 0
    (view,) = make_views(wide, ViewSpec((replace(crop, size=20),)), torch.arange(1), seed=0, epoch=0)
    assert view.eq(0).all()  # the middle half of the width


EVERYTHING = ViewSpec(
    (
        Crop(
            37,
            scale=(0.3, 1.0),
            stages=(Stage(0.8, Jitter(0.4, 0.4, 0.4, 0.1), perspective=0.3, degrees=5),),
            hflip=0.5,
        ),
        replace(OFFICIAL, count=2),
        replace(OFFICIAL, size=61, grey=0.3, blur=Blur(0.6), solarise=0.3),
    ),
)


@pytest.mark.parametrize("split", [1, 2, 3, 5, 13])
def test_bits_do_not_depend_on_batch_order_or_ranks(split: int) -> None:
    images, index = noise(13), torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:13]
    whole = make_views(images, EVERYTHING, index, seed=5, epoch=1)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(split))
    for rows in order.split(split):
        for part, full in zip(make_views(images[rows], EVERYTHING, index[rows], seed=5, epoch=1), whole, strict=True):
            assert torch.equal(part, full[rows])


def test_threads_do_not_change_bits() -> None:
    images, index, threads = noise(6), torch.arange(6), torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(torch.cat([v.flatten() for v in make_views(images, EVERYTHING, index, seed=0, epoch=0)]))
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
        assert (one != different).flatten(1).any(1).float().mean() > 0.8  # 10 % pairs of unchanged images are fair


def test_per_arm_own_draws_anew_for_the_second_arm() -> None:
    images, index = noise(16), torch.arange(16)
    shared, own = leaf("strong"), leaf("strong", per_arm="own")
    assert (shared.sizes, own.sizes) == ([48], [48, 48])
    (view,) = make_views(images, shared, index, seed=0, epoch=0)
    first, second = make_views(images, own, index, seed=0, epoch=0)
    assert torch.equal(view, first)
    assert (first != second).flatten(1).any(1).all()


@pytest.mark.parametrize("name", LEAVES)
def test_off_the_cpu_no_operation_reads_data_back(name: str) -> None:
    """Tensors without data fail at anything that would have to wait for a device."""
    images = torch.empty(4, 3, 48, 48, dtype=torch.uint8, device="meta")
    index = torch.empty(4, dtype=torch.int64, device="meta")
    for view in make_views(images, leaf(name), index, seed=0, epoch=0):
        assert view.shape == (4, 3, 48, 48) and view.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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


def test_views_lie_in_0_to_1_carry_no_gradient_and_leave_their_input_alone() -> None:
    images = noise(8)
    kept = images.clone()
    views = make_views(images, EVERYTHING, torch.arange(8), seed=0, epoch=0)
    assert torch.equal(images, kept)
    assert not any(v.requires_grad or v.is_inference() for v in views)
    white = torch.full_like(images, 255)
    views += make_views(white, EVERYTHING, torch.arange(8), seed=0, epoch=0)
    assert all(v.min() >= 0 and v.max() <= 1 for v in views)
    pixels = smooth(2, 32).requires_grad_()
    drawn = sample_crop(OFFICIAL, torch.arange(2), seed=0, epoch=0, view=0)
    assert not apply_crop(pixels, drawn, 32).requires_grad


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
