"""One image file made smaller: what a sample of a shard holds."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from cass_scale.data.decode import FORMATS, load, resize

SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "TIFF": "tif", "BMP": "bmp", "WEBP": "webp"}
Resize = Literal["short", "square"]


@dataclass(frozen=True)
class Recipe:
    """`short` brings the shorter side to `size` and never enlarges; `square` squashes to size x size.

    What already fits keeps its bytes, and so does everything when `size` is None. The rest becomes JPEG of
    that quality with colour at full resolution, or PNG when `quality` is None. Grey stays grey.
    """

    size: int | None
    resize: Resize = "short"
    quality: int | None = 95


class Encoded(NamedTuple):
    """An image file, and the extension that its format calls for."""

    data: bytes
    extension: str


def shrink(data: bytes, recipe: Recipe) -> Encoded:
    """The same bytes for the same bytes, with one version of Pillow and torch. Raises BadImage."""
    extension, shape = _header(data)
    if recipe.size is None or (shape and _target(shape, recipe.size, recipe.resize) == shape):
        return Encoded(data, extension)
    image = load(data, recipe.size)
    target = _target(image.size, recipe.size, recipe.resize)
    if target != image.size:
        image = Image.fromarray(resize(np.array(image), *target))
    return _encode(_grey_if_grey(image), recipe.quality)


def _header(data: bytes) -> tuple[str, tuple[int, int] | None]:
    """Extension, and (width, height) as far as Pillow can tell."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return SUFFIXES[str(image.format)], image.size
    except UnidentifiedImageError:  # tifffile's part, see decode
        return "tif", None


def _target(shape: tuple[int, int], size: int, resize: Resize) -> tuple[int, int]:
    if resize == "square":
        return size, size
    short = min(shape)
    width, height = (max(1, round(side * size / short)) for side in shape)
    return (width, height) if short > size else shape


def _grey_if_grey(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    grey = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
    return image.getchannel(0) if grey else image


def _encode(image: Image.Image, quality: int | None) -> Encoded:
    out = io.BytesIO()
    image.info = {}  # no comment, profile or date of the original
    if quality is None:
        image.save(out, "PNG")
        return Encoded(out.getvalue(), "png")
    image.save(out, "JPEG", quality=quality, subsampling=0)
    return Encoded(out.getvalue(), "jpg")
