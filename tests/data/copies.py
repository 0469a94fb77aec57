"""Copies of an image as people make them without meaning to."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image
from PIL.Image import Resampling, Transpose


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compressed and read again."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data)


def resized(image: Image.Image, factor: float, how: Resampling) -> Image.Image:
    """Both sides times `factor`."""
    return image.resize((round(image.width * factor), round(image.height * factor)), how)


def brighter(image: Image.Image, by: int) -> Image.Image:
    """All values shifted and cut off at 0 and 255."""
    return image.point(lambda value: min(255, max(0, value + by)))


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg_50": lambda i: jpeg(i, 50),
    "jpeg_20": lambda i: jpeg(i, 20),
    "half": lambda i: resized(i, 0.5, Resampling.LANCZOS),
    "to_0.43": lambda i: resized(i, 0.43, Resampling.BICUBIC),
    "double": lambda i: resized(i, 2, Resampling.BICUBIC),
    "brighter_30": lambda i: brighter(i, 30),
    "darker_30": lambda i: brighter(i, -30),
    "mirrored": lambda i: jpeg(i.transpose(Transpose.FLIP_LEFT_RIGHT), 75),
    "upside_down": lambda i: jpeg(i.transpose(Transpose.FLIP_TOP_BOTTOM), 75),
    "turned_90": lambda i: jpeg(i.transpose(Transpose.ROTATE_90), 75),
    "turned_180": lambda i: jpeg(i.transpose(Transpose.ROTATE_180), 75),
    "turned_270": lambda i: jpeg(i.transpose(Transpose.ROTATE_270), 75),
    "transposed": lambda i: jpeg(i.transpose(Transpose.TRANSPOSE), 75),
    "mirrored_half_brighter": lambda i: jpeg(
        brighter(resized(i.transpose(Transpose.FLIP_LEFT_RIGHT), 0.5, Resampling.BILINEAR), 20), 60
    ),
}
