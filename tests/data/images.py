"""Small images of every kind, good and bad, as bytes or files."""

from __future__ import annotations

import csv
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image


def noise(height: int, width: int, *channels: int, seed: int = 0, high: int = 255) -> NDArray[np.uint8]:
    """Random pixels [height, width, *channels]."""
    return np.random.default_rng(seed).integers(0, high + 1, (height, width, *channels), dtype=np.uint8)


def encode(pixels: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes Pillow writes."""
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, kind, **options)
    return out.getvalue()


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    """The bytes tifffile writes."""
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **options)
    return out.getvalue()


def png(shape: tuple[int, int], depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand: any bit depth and colour type, any size in the header."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", shape[1], shape[0], depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def png16(pixels: NDArray[np.uint16]) -> bytes:
    """16-bit grey + alpha, RGB or RGBA, which Pillow cannot write: [H, W, 2..4]."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(pixels.shape[:2], 16, {2: 4, 3: 2, 4: 6}[pixels.shape[2]], rows)


BOMB = png((60_000, 60_000), 8, 2, b"\0" * 1000)  # 10.8 GB if it were decoded


def fill(folder: Path, *keys: str, side: int = 8) -> Path:
    """A different small image at each key."""
    for number, key in enumerate(keys):
        place = folder / key
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(side, side, 3, seed=number)).save(place)
    return folder


def labels_csv(folder: Path, columns: str, *rows: Sequence[str]) -> Path:
    """labels.csv with these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "labels.csv", "w", newline="") as f:
        csv.writer(f).writerows([columns.split(","), *rows])
    return folder


def two_classes(root: Path, side: int) -> Path:
    """24 lossless images of classes a and b, the last eight held back."""
    keys = [f"{i:02d}.png" for i in range(24)]
    fill(root, *keys, side=side)
    return labels_csv(
        root, "path,label,split", *((k, "ab"[i % 2], "test" if i > 15 else "train") for i, k in enumerate(keys))
    )
