"""What one decoded image looks like: its digest and a small grey copy, by which copies are found again."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from PIL import Image

from cass_scale.data.decode import Pixels

SIDE = 64  # of the small copy; smaller ones cannot tell neighbouring slices of a volume apart


class Look(NamedTuple):
    """The same for two files that decode to the same image, whatever their bytes."""

    pixels: str  # sha256 of the shape and the RGB values
    width: int
    height: int
    thumb: bytes  # SIDE x SIDE grey values, the whole image squashed


def look(pixels: Pixels) -> Look:
    """The look of uint8 [H, W, 3]."""
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{height} {width}\n".encode())
    digest.update(pixels.tobytes())
    small = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return Look(digest.hexdigest(), width, height, small.tobytes())
