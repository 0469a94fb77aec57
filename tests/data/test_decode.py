"""Every kind of image file that is read, and every kind that is refused with a reason."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from cass_scale.data.decode import BadImage, decode, read_image
from tests.data.images import BOMB, encode, noise, png, png16, tiff

RGB8, GREY8 = noise(20, 30, 3), noise(20, 30)
GREY16 = np.random.default_rng(1).integers(300, 4000, (20, 30)).astype(np.uint16)
RGB16 = np.random.default_rng(2).integers(300, 4000, (20, 30, 3)).astype(np.uint16)


def windowed(x: NDArray[np.generic]) -> NDArray[np.uint8]:
    wide = x.astype(np.float64)
    out: NDArray[np.uint8] = np.rint((wide - wide.min()) * 255 / (wide.max() - wide.min())).astype(np.uint8)
    return out


def three(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([grey] * 3, -1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_eight_bits_are_kept_exactly(kind: str) -> None:
    assert np.array_equal(decode(encode(RGB8, kind), None), RGB8)
    assert np.array_equal(decode(encode(GREY8, kind), None), three(GREY8))


def test_webp_and_jpeg() -> None:
    assert np.array_equal(decode(encode(RGB8, "WEBP", lossless=True), None), RGB8)
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    assert np.abs(decode(encode(flat, "JPEG", quality=95), None).astype(int) - flat).max() < 4


SIXTEEN_BITS = {
    "png grey": (encode(GREY16, "PNG"), three(windowed(GREY16))),
    "png rgb": (png16(RGB16), windowed(RGB16)),
    "tiff grey": (tiff(GREY16), three(windowed(GREY16))),
    "tiff grey, big endian": (tiff(GREY16, byteorder=">"), three(windowed(GREY16))),
    "tiff grey, lzw": (encode(GREY16, "TIFF", compression="tiff_lzw"), three(windowed(GREY16))),
    "tiff grey, white is zero": (tiff(GREY16, photometric="miniswhite"), three(255 - windowed(GREY16))),
    "tiff rgb": (tiff(RGB16, photometric="rgb"), windowed(RGB16)),
    "tiff rgb, deflate": (
        tiff(RGB16, photometric="rgb", compression="zlib", predictor=True),
        windowed(RGB16),
    ),
    "tiff rgb, planar": (
        tiff(np.moveaxis(RGB16, -1, 0).copy(), photometric="rgb", planarconfig="separate"),
        windowed(RGB16),
    ),
    "tiff float32": (tiff(GREY16.astype(np.float32)), three(windowed(GREY16))),
    "tiff float16": (tiff(GREY16.astype(np.float16)), three(windowed(GREY16.astype(np.float16)))),
    "tiff int16": (tiff(GREY16.astype(np.int16) - 2000), three(windowed(GREY16))),
}


@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_more_bits_are_windowed_by_the_image_itself(name: str) -> None:
    data, want = SIXTEEN_BITS[name]
    got = decode(data, None)
    assert got.shape == (20, 30, 3)
    assert np.abs(got.astype(int) - want).max() <= 1  # 255 - rint(x) and rint(255 - x) differ at halves


def test_a_constant_or_nan_image_is_black_where_it_says_nothing() -> None:
    assert decode(encode(np.full((4, 4), 900, np.uint16), "PNG"), None).max() == 0
    holes = GREY16.astype(np.float32)
    holes[0, 0] = np.nan
    got = decode(tiff(holes), None)
    assert got[0, 0].tolist() == [0, 0, 0]
    assert got.max() == 255


def test_alpha_is_composited_over_black() -> None:
    alpha = np.zeros((4, 4, 1), np.uint8)
    alpha[0], alpha[1] = 255, 128
    got = decode(encode(np.concatenate([np.full((4, 4, 3), 200, np.uint8), alpha], -1), "PNG"), None)
    assert got[:3, 0, 0].tolist() == [200, 100, 0]
    deep = np.concatenate([RGB16, np.full((20, 30, 1), 65535, np.uint16)], -1)
    deep[0, 0, 3] = 0
    assert decode(png16(deep), None)[0, 0].tolist() == [0, 0, 0]


def test_palette_and_cmyk_become_rgb() -> None:
    flat = Image.new("RGB", (16, 16), (250, 10, 30))
    for data in (encode(flat.quantize(4), "PNG"), encode(flat.convert("CMYK"), "TIFF")):
        assert np.abs(decode(data, None)[0, 0].astype(int) - (250, 10, 30)).max() < 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise to see it upright
    left_white = np.zeros((16, 32, 3), np.uint8)
    left_white[:, :16] = 255
    got = decode(encode(Image.fromarray(left_white), kind, exif=exif), None)
    assert got.shape == (32, 16, 3)
    assert got[:12].min() > 200 and got[20:].max() < 50


def test_orientation_of_16_bit_colour_tiff() -> None:
    up = decode(tiff(RGB16, photometric="rgb"), None)
    turned = decode(tiff(RGB16, photometric="rgb", extratags=[(274, "H", 1, 3, True)]), None)
    assert np.array_equal(turned, up[::-1, ::-1])


@pytest.mark.parametrize("source", [(40, 70), (20, 20), (300, 200)])
def test_squash_is_torchvisions_resize_of_a_pillow_image_within_a_level(source: tuple[int, int]) -> None:
    pixels = noise(*source, 3)
    want = np.asarray(resize(Image.fromarray(pixels), [32, 32], InterpolationMode.BILINEAR))
    assert np.abs(decode(encode(pixels, "PNG"), 32).astype(int) - want).max() <= 1


def test_jpeg_is_decoded_small_only_when_twice_as_large() -> None:
    soft = Image.fromarray(noise(6, 6, 3)).resize((120, 120), Image.Resampling.BICUBIC)
    data = encode(soft, "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).convert("RGB")
    exact = np.asarray(full.resize((61, 61), Image.Resampling.BILINEAR))
    assert np.abs(decode(data, 61).astype(int) - exact).max() <= 1
    scaled, want = decode(data, 30), np.asarray(full.resize((30, 30), Image.Resampling.BILINEAR))
    assert not np.array_equal(scaled, want)
    assert np.abs(scaled.astype(int) - want).mean() < 3


def test_the_result_belongs_to_the_caller() -> None:
    torch.from_numpy(decode(encode(RGB8, "PNG"), None)).zero_()  # warns on memory that cannot be written


PNG_OF_NOISE = encode(noise(64, 64, 3), "PNG")
BAD = {
    "zero bytes": (b"", "zero bytes"),
    "text": (b"<html>not found</html>", "not one of JPEG, PNG, TIFF, BMP, WEBP"),
    "gif": (encode(GREY8, "GIF"), "not one of"),
    "truncated png": (PNG_OF_NOISE[:6000], "cannot be decoded: image file is truncated"),
    "truncated jpeg": (encode(noise(64, 64, 3), "JPEG")[:2000], "cannot be decoded: image file is truncated"),
    "truncated tiff": (tiff(RGB16, photometric="rgb")[:-900], "cannot be decoded"),
    "truncated 16-bit png": (png16(RGB16)[:900], "cannot be decoded"),
    "header only": (b"\x89PNG\r\n\x1a\n", "cannot be decoded|not one of"),
    "bomb": (BOMB, "refused before decoding"),
    "large but not yet a bomb to pillow": (png((13_000, 13_800), 8, 2, b"\0"), "refused before decoding"),
    "multi-page tiff": (
        tiff(np.stack([GREY8] * 3), photometric="minisblack"),
        "a multi-page TIFF of 3 images",
    ),
    "multi-page float16": (
        tiff(np.stack([GREY8.astype(np.float16)] * 2), photometric="minisblack"),
        "a multi-page TIFF of 2 images",
    ),
    "animation": (
        encode(Image.fromarray(RGB8), "WEBP", save_all=True, append_images=[Image.fromarray(255 - RGB8)]),
        "an animated WEBP of 2 images",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_say_why(name: str) -> None:
    data, why = BAD[name]
    with pytest.raises(BadImage, match=why):
        decode(data, None)


def test_a_compression_that_needs_an_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def asarray(*_: object) -> None:  # what tifffile does where imagecodecs is not installed
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", asarray)
    with pytest.raises(BadImage, match=r"16-bit TIFF with .* compression: `pip install 'cass-scale\[medical\]'`"):
        decode(tiff(RGB16, photometric="rgb"), None)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="cannot be read: No such file"):
        read_image(tmp_path / "gone.png", 8)


def test_real_lzw_tiff_and_jpeg(shared: Path) -> None:
    tile = next((shared / "data/histology_tiff_unlabelled/images").glob("*.tif"))
    assert np.array_equal(read_image(tile, None), np.asarray(Image.open(tile).convert("RGB")))
    slice_ = next((shared / "data/brain_mri/test/glioma").glob("*.jpg"))
    assert read_image(slice_, 96).shape == (96, 96, 3)
