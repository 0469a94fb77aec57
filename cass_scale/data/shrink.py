"""One image file made smaller: what a sample of a shard holds."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from cass_scale.data import png
from cass_scale.data.decode import FORMATS, is_dicom, load, resize, resize_deep, shallow

SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "TIFF": "tif", "BMP": "bmp", "WEBP": "webp"}
Resize = Literal["short", "square"]


@dataclass(frozen=True)
class Recipe:
    """`short` brings the shorter side to `size` and never enlarges; `square` squashes to size x size.

    What already fits keeps its bytes, and so does every image file when `size` is None. The rest becomes
    JPEG of that quality with colour at full resolution, or PNG when `quality` or `size` is None. Grey stays
    grey, and 16 bit becomes PNG of 16 bit.
    """

    size: int | None
    resize: Resize = "short"
    quality: int | None = 95


class Encoded(NamedTuple):
    """An image file, and the extension that its format calls for."""

    data: bytes
    extension: str


def shrink(data: bytes, recipe: Recipe, *, repack: bool = False) -> Encoded:
    """The same bytes for the same bytes, with one version of Pillow, torch and zlib. Raises BadImage.

    DICOM never keeps its bytes, which name a patient; with `repack` this does not either, whatever it is.
    """
    extension, shape = _header(data)
    if not (repack or is_dicom(data)) and (recipe.size is None or (shape and _target(shape, recipe) == shape)):
        return Encoded(data, extension)
    image = load(data, recipe.size)
    if isinstance(image, Image.Image):
        return compress(_fitted(image, recipe), recipe.quality if recipe.size else None)
    deep = resize_deep(image, _target((image.shape[1], image.shape[0]), recipe))
    return Encoded(png.encode(deep, packed=True), "png")


def resized(data: bytes, recipe: Recipe) -> Image.Image:
    """RGB of 8 bit, upright, of the size that the recipe asks for. Raises BadImage."""
    opened = load(data, recipe.size)
    return _fitted(opened if isinstance(opened, Image.Image) else Image.fromarray(shallow(opened, None)), recipe)


def _fitted(image: Image.Image, recipe: Recipe) -> Image.Image:
    target = _target(image.size, recipe)
    return image if target == image.size else Image.fromarray(resize(np.array(image), *target))


def compress(image: Image.Image, quality: int | None) -> Encoded:
    """A JPEG of that quality with colour at full resolution, or a PNG; grey when all three channels are equal."""
    image = _grey_if_grey(image)
    out = io.BytesIO()
    image.info = {}  # no comment, profile or date of the original
    if quality is None:
        image.save(out, "PNG")
        return Encoded(out.getvalue(), "png")
    image.save(out, "JPEG", quality=quality, subsampling=0)
    return Encoded(out.getvalue(), "jpg")


def _header(data: bytes) -> tuple[str, tuple[int, int] | None]:
    """Extension, and (width, height) as far as Pillow can tell."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return SUFFIXES[str(image.format)], image.size
    except UnidentifiedImageError:  # tifffile's part, see decode
        return "tif", None


def _target(shape: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    size, short = recipe.size, min(shape)
    if size is None or (recipe.resize == "short" and short <= size):
        return shape
    if recipe.resize == "square":
        return size, size
    width, height = (max(1, round(side * size / short)) for side in shape)
    return width, height


def _grey_if_grey(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    grey = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
    return image.getchannel(0) if grey else image
