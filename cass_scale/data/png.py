"""PNG written by hand: 16-bit colour, which Pillow cannot write, and bytes that no compressor's version changes."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from cass_scale.data.decode import Deep, Pixels

MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2
PLAIN, UP = 0, 2  # filters of a row: as it is, or its difference from the row above
BLOCK = 65535  # bytes of a stored block, RFC 1951 3.2.4


def encode(pixels: Pixels | Deep, *, packed: bool) -> bytes:
    """[H, W] or [H, W, 3] without loss. Not packed: as large as the pixels, and the same bytes with any zlib."""
    height, width = pixels.shape[:2]
    raw = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    rows = np.zeros((height, 1 + raw.shape[1]), np.uint8)
    rows[:, 1:] = raw
    if packed:
        rows[:, 0] = UP
        rows[1:, 1:] -= raw[:-1]
    colour = RGB if pixels.ndim == 3 else GREY
    head = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour, 0, 0, 0)
    body = zlib.compress(rows.tobytes()) if packed else _stored(rows)
    return MAGIC + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _stored(rows: NDArray[np.uint8]) -> bytes:
    """A zlib stream of stored blocks, RFC 1950: what `zlib.compress(..., 0)` may cut in other places."""
    raw = rows.tobytes()
    parts = [b"\x78\x01"]
    for start in range(0, len(raw), BLOCK):
        block = raw[start : start + BLOCK]
        parts += [struct.pack("<BHH", start + BLOCK >= len(raw), len(block), BLOCK - len(block)), block]
    return b"".join([*parts, struct.pack(">I", zlib.adler32(raw))])
