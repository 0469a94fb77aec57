"""The .beton file: FFCV's format, version 2, written without FFCV, whose import takes seconds and compilers.

A header, a description of each field, a row of metadata per sample; from the next page on the stored bytes, no sample
across two pages; last the table of where they lie. Sources: ffcv/types.py, memory_allocator.py and fields/rgb_image.py
of https://github.com/libffcv/ffcv.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cass_scale.errors import DataError

VERSION = 2
MIN_PAGE, MAX_PAGE = 1 << 21, 1 << 31  # what FFCV takes; a power of two
PER_PAGE = 16  # raw images that a page holds at least: what is left over at its end stays small
MAX_SIDE = 65535  # px
MAX_OFFSET = 1 << 62  # that a file can be asked for
JPG, RAW = 0, 1  # an image's mode
INT_FIELD, IMAGE_FIELD = 1, 2

HEADER = np.dtype([("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("table", "<u8")])
FIELD = np.dtype([("type", "<u1"), ("name", "S16"), ("arguments", "V1024")])
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("address", "<u8")])
SAMPLE = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
PLACE = np.dtype([("sample", "<u8"), ("address", "<u8"), ("length", "<u8")])
FIELDS = np.array([(IMAGE_FIELD, b"image", b""), (INT_FIELD, b"label", b"")], FIELD)

Samples = NDArray[np.void]  # of SAMPLE


def page_size(raw: int) -> int:
    """Bytes of a page for images of `raw` bytes uncompressed."""
    return min(MAX_PAGE, max(MIN_PAGE, 1 << (PER_PAGE * raw - 1).bit_length()))


def first_page(samples: int, page: int) -> int:
    """Where the stored bytes begin."""
    return _up(HEADER.itemsize + FIELDS.nbytes + samples * SAMPLE.itemsize, page)


def fit(end: int, length: int, page: int) -> int:
    """Where the next `length` bytes go when those before them reach up to `end`."""
    return end if end % page + length <= page else _up(end, page)


def _up(address: int, page: int) -> int:
    return -(-address // page) * page


def write_frame(file: BinaryIO, samples: Samples, lengths: NDArray[Any], page: int) -> None:
    """Everything but the stored bytes, which are there already; lies on the disk when this returns."""
    places = np.zeros(len(samples), PLACE)
    places["sample"], places["address"] = np.arange(len(samples)), samples["image"]["address"]
    places["length"] = lengths
    table = _up(int(places["address"][-1] + places["length"][-1]), page)
    file.truncate(table)
    file.seek(table)
    file.write(places.tobytes())
    file.seek(0)
    file.write(np.array((VERSION, len(FIELDS), page, len(samples), table), HEADER).tobytes())
    file.write(FIELDS.tobytes() + samples.tobytes())
    file.flush()
    os.fsync(file.fileno())


def check_header(path: Path, samples: int) -> None:
    """Raise DataError unless this is a beton of our version with so many samples."""
    head = np.fromfile(path, HEADER, 1)
    if len(head) == 0 or head["version"] != VERSION:
        found = f"of version {int(head['version'][0])}" if len(head) else "cut off in its header"
        raise DataError(
            f"{path} is {found}, or no beton at all; this reads version {VERSION}: "
            "restore it, or make it again with `cass-scale shard format=ffcv`"
        )
    if int(head["samples"][0]) != samples:
        raise DataError(
            f"{path} holds {int(head['samples'][0])} images, its manifest {samples}: they do not belong together; "
            "restore them, or make them again with `cass-scale shard format=ffcv`"
        )


def read_images(path: Path, samples: int) -> list[tuple[int, int, int, int]]:
    """Mode, width, height and address of every image, [] when there is no file; it may be damaged."""
    try:
        rows = np.fromfile(path, SAMPLE, samples, offset=HEADER.itemsize + FIELDS.nbytes)
    except OSError:
        return []
    rows["image"]["address"] = np.minimum(rows["image"]["address"], MAX_OFFSET)
    found: list[tuple[int, int, int, int]] = rows["image"].tolist()
    return found
