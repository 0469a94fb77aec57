"""Grey, blur and solarisation of views against torchvision and PIL; how often they are drawn, what they leave alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageOps
from torch import Tensor

from cass_scale import filters, rng
from cass_scale.colour import mean_luma
from cass_scale.types import Blur, Crop, Jitter, Stage, ViewSpec
from cass_scale.views import FINISH_DRAWS, CropParams, apply_crop, make_views, problems, sample_crop
from tests.reference.views import noise, smooth

N = 20_000
DINO = Crop(48, stages=(Stage(0.8, Jitter(0.1, 0.1, 0.1)),), hflip=0.5, grey=0.2, blur=Blur(0.5), solarise=0.2)


def unit(images: Tensor) -> Tensor:
    return images.float() / 255


@pytest.mark.parametrize("taps", [3, 13])
def test_blur_equals_torchvisions_with_a_width_for_each_image(taps: int) -> None:
    images, sigma = unit(noise(4)), torch.tensor([0.1, 0.5, 1.3, 2.0], dtype=torch.float64)
    got = filters.convolve(images, filters.gaussian_kernels(Blur(1.0, taps=taps), sigma))
    want = [TF.gaussian_blur(image, [taps, taps], [s, s]) for image, s in zip(images, sigma.tolist(), strict=True)]
    torch.testing.assert_close(got, torch.stack(want), atol=2e-6, rtol=0)


def test_solarise_is_pils() -> None:
    images = noise(3)
    got = filters.solarise(unit(images), torch.tensor([True, False, True]))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    inverted = [torch.from_numpy(np.array(ImageOps.solarize(picture))).permute(2, 0, 1) for picture in pictures]
    for view, want in zip(got, (inverted[0], images[1], inverted[2]), strict=True):
        torch.testing.assert_close(view, unit(want), atol=1e-6, rtol=0)


def test_a_whole_view_equals_torchvisions_chain_in_the_authors_order() -> None:
    images, index = smooth(24, 48), torch.arange(24)
    drawn = sample_crop(DINO, index, seed=1, epoch=0, view=0)
    got = apply_crop(images, drawn, 48)
    u = rng.uniform(1, 0, index, rng.FINISH, FINISH_DRAWS).tolist()
    for row, image in enumerate(images):
        brightness, contrast, saturation, _ = drawn.factors[row].tolist()
        grey, blurred, width, inverted = (u[row][0] < 0.2, u[row][1] < 0.5, 0.1 + 1.9 * u[row][2], u[row][3] < 0.2)
        want = TF.hflip(image) if drawn.maps[row, 0, 0] < 0 else image
        want = TF.adjust_contrast(TF.adjust_brightness(want, brightness), contrast)
        want = TF.rgb_to_grayscale(want, 3) if grey else TF.adjust_saturation(want, saturation)
        want = TF.gaussian_blur(want, [13, 13], [width, width]) if blurred else want
        want = TF.solarize(want, 0.5) if inverted else want
        away = (want - 0.5).abs() > 1e-3  # where the last digit decides which side of the threshold it is
        torch.testing.assert_close(got[row][away], want[away], atol=2e-4, rtol=0)


def test_how_often_and_how_wide() -> None:
    drawn = sample_crop(replace(DINO, blur=Blur(0.1, (0.5, 2.0))), torch.arange(N), seed=0, epoch=0, view=0)
    assert drawn.kernels is not None and drawn.solarised is not None
    blurred = drawn.kernels[:, 6] < 1
    for found, p in ((blurred, 0.1), (drawn.solarised, 0.2), (drawn.factors[:, 2] == 0, 0.2)):
        assert abs(float(found.float().mean()) - p) < 5 * math.sqrt(p * (1 - p) / N)
    ratio = (drawn.kernels[:, 6] / drawn.kernels[:, 5])[blurred].double()
    sigma = (0.5 / ratio.log()).sqrt()
    assert 0.5 <= sigma.min() < 0.51 and 1.99 < sigma.max() <= 2.0 + 1e-4
    assert abs(float(sigma.mean()) - 1.25) < 0.05


def test_they_shift_no_other_draw_and_touch_no_image_that_drew_none() -> None:
    images, index = noise(64), torch.arange(64)
    plain = replace(DINO, grey=0.0, blur=None, solarise=0.0)
    with_all, without = (sample_crop(crop, index, seed=0, epoch=0, view=0) for crop in (DINO, plain))
    assert torch.equal(with_all.maps, without.maps)
    assert torch.equal(with_all.factors[:, :2], without.factors[:, :2])
    assert with_all.kernels is not None and with_all.solarised is not None
    untouched = (with_all.kernels[:, 6] == 1) & ~with_all.solarised & with_all.factors[:, 2].ne(0)
    assert 5 < untouched.sum() < 59
    views, bare = apply_crop(images, with_all, 48), apply_crop(images, without, 48)
    assert torch.equal(views[untouched], bare[untouched])
    assert (views[~untouched] != bare[~untouched]).flatten(1).any(1).all()


def test_blur_of_some_rows_on_a_cpu_has_the_bits_of_blurring_all() -> None:
    images, drawn = noise(24), sample_crop(DINO, torch.arange(24), seed=0, epoch=0, view=0)
    assert drawn.kernels is not None
    sharp = apply_crop(images, CropParams(drawn.maps, drawn.factors), 48)
    got = apply_crop(images, drawn._replace(solarised=None), 48)
    assert torch.equal(got, filters.convolve(sharp, drawn.kernels))


def test_grey_keeps_luma_and_nothing_else() -> None:
    (view,) = make_views(noise(4), ViewSpec((Crop(48, grey=1.0),)), torch.arange(4), seed=0, epoch=0)
    torch.testing.assert_close(view[:, 0], view[:, 2], atol=1e-6, rtol=0)
    torch.testing.assert_close(mean_luma(view), mean_luma(noise(4)), atol=1e-6, rtol=0)


def test_one_draw_for_a_batch_is_that_of_its_first_image() -> None:
    images, index = noise(5), torch.tensor([7, 3, 9, 1, 4])
    crop = replace(DINO, scale=(0.3, 0.6))
    spec = ViewSpec((crop,), draws="batch")
    (view,) = make_views(images, spec, index, seed=0, epoch=0)
    (alike,) = make_views(images, ViewSpec((crop,)), torch.full((5,), 7), seed=0, epoch=0)
    (own,) = make_views(images, ViewSpec((crop,)), index, seed=0, epoch=0)
    assert torch.equal(view, alike) and torch.equal(view[0], own[0])
    assert not any(torch.equal(a, b) for a, b in zip(view[1:], own[1:], strict=True))


def test_problems_name_the_key_and_what_would_work() -> None:
    crop = Crop(16, grey=2.0, solarise=-1.0, blur=Blur(1.5, (2.0, 1.0), taps=4))
    assert problems(ViewSpec((crop,), draws="each")) == [  # type: ignore[arg-type]
        "views.draws=each: choose image or batch",
        "views.crops[0].grey=2.0: give 0 to 1",
        "views.crops[0].solarise=-1.0: give 0 to 1",
        "views.crops[0].blur.p=1.5: give 0 to 1",
        "views.crops[0].blur.sigma=[2.0, 1.0]: give two widths in pixels with 0 < first <= second",
        "views.crops[0].blur.taps=4: give an odd number from 1 to 31",
    ]
