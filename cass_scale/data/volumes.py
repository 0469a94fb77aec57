"""NIfTI volumes: one slice -> 16 bit, all slices of a volume on one scale."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cass_scale.data.decode import DEEPEST, BadImage, Deep, refuse_bomb, spread

orientations: Any = nib.orientations  # not annotated
AXES = "xyz"  # to the right, to the front, to the head: sagittal, coronal, axial slices
ROBUST = (0.5, 99.5)  # percentiles of a volume that become black and white
SAMPLE = 1 << 20  # voxels that these are taken from
MOST_BYTES = 8 << 30  # of one volume
GZIP_RATIO = 1032  # deflate packs no tighter (https://zlib.net/zlib_tech.html)

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what it mends in a header is none of the user's errors


class Volume(NamedTuple):
    """Voxels as stored, [X, Y, Z] in RAS; `low` and `high` in units."""

    voxels: NDArray[Any]
    slope: float
    inter: float
    low: float
    high: float

    def slices(self, axis: str) -> int:
        """How many there are along an axis."""
        return int(self.voxels.shape[AXES.index(axis)])


def load(path: Path) -> Volume:
    """A whole volume, its checksum tested where it is gzipped. Raises BadImage, and whatever nibabel raises."""
    image: Any = nib.load(path)  # the header only
    stored = image.dataobj
    shape = _shape(stored.shape)
    if stored.dtype.kind not in "iuf":
        raise BadImage(f"voxels of type {stored.dtype}; whole or real numbers are expected")
    flat = np.frombuffer(_read(path, shape, stored), stored.dtype, int(np.prod(shape)), stored.offset)
    voxels = orientations.apply_orientation(flat.reshape(shape, order="F"), orientations.io_orientation(image.affine))
    some = voxels.ravel("K")[:: max(1, voxels.size // SAMPLE)]
    some = some[np.isfinite(some)]
    low, high = np.percentile(some, ROBUST) if some.size else (0.0, 0.0)
    if low == high:  # a mask, say
        low, high = voxels.min(), voxels.max()
    slope, inter = float(stored.slope), float(stored.inter)
    ends = sorted((float(low) * slope + inter, float(high) * slope + inter))
    return Volume(voxels, slope, inter, *ends)


def _shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if any(n < 1 for n in shape) or not shape:
        raise BadImage(f"a volume of the impossible shape {shape}")
    if len(shape) > 3 and max(shape[3:]) > 1:
        raise BadImage(f"a volume of {len(shape)} dimensions {shape}; save each 3-D volume as a file of its own")
    x, y, z = (*shape[:3], 1, 1)[:3]
    for sides in ((x, y), (y, z), (x, z)):
        refuse_bomb(*sides)
    return x, y, z


def _read(path: Path, shape: tuple[int, int, int], stored: Any) -> bytes:
    """Header and voxels, refused before they are read when the file cannot hold what it claims."""
    need = stored.offset + int(np.prod(shape, dtype=object)) * stored.dtype.itemsize
    size, packed = path.stat().st_size, path.suffix.lower() == ".gz"
    if need > MOST_BYTES:
        raise BadImage(f"a volume of {need >> 30} GiB, refused before decoding")
    if stored.offset < 0 or need > size * (GZIP_RATIO if packed else 1):
        raise BadImage(f"cut off: {shape} voxels take {need} bytes, the file has {size}")
    with gzip.open(path) if packed else open(path, "rb") as f:
        data: bytes = f.read(need)
        f.read(1)  # at the end gzip compares its checksum
    if len(data) < need:
        raise BadImage(f"cut off: {shape} voxels take {need} bytes, {len(data)} are there")
    return data


def render(volume: Volume, axis: str, number: int, window: tuple[float, float] | None) -> Deep:
    """One slice as uint16 [H, W] by `window` in the volume's units, else by its own range.

    The head or the front is at the top, the patient's left or back at the left. Raises BadImage.
    """
    if number >= volume.slices(axis):
        raise BadImage(f"there is no slice {axis}={number}; there are {volume.slices(axis)} from 0 on")
    plane = np.rot90(volume.voxels.take(number, AXES.index(axis))).astype(np.float64)
    ends = window or (volume.low, volume.high)
    return spread(plane * volume.slope + volume.inter, ends, DEEPEST).astype(np.uint16)
