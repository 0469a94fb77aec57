"""The embedded set `digits`: real scans of handwritten digits (UCI, Alpaydin and Kaynak 1998)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FOLDER_NAME = "digits-32-v1"
SIDE = 32  # the scans are 8x8; bilinear, so that there is something smooth to augment


def generate(folder: Path) -> None:
    """Write 1797 grey PNG files of 32x32 as `class/number.png`."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    for number, (scan, label) in enumerate(zip(scans.images, scans.target, strict=True)):
        pixels = np.rint(scan * (255.0 / 16.0)).astype(np.uint8)
        place = folder / str(label) / f"{number:04d}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(place)
