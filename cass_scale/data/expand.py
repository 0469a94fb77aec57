"""Images that are published many in one file: written out once as PNG, with a labels.csv, into the cache folder."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cass_scale.data.cache import make_once
from cass_scale.data.layouts import CSV
from cass_scale.errors import DataError, MissingExtra
from cass_scale.machine import cache_folder, free_disk

VERSION = 1  # of what is written: a change makes another folder
PER_FOLDER = 1000
BLOCK = 4096  # bytes that a small file takes on a disk

Pixels = NDArray[np.uint8]


class Part(NamedTuple):
    """One split: `images()` yields [H, W] or [H, W, 3], as many as there are labels and groups."""

    split: str
    shape: tuple[int, ...]  # [N, H, W] or [N, H, W, 3]
    images: Callable[[], Iterable[Pixels]]
    labels: Sequence[str]
    groups: Sequence[str]


def expand(name: str, sources: Sequence[Path], parts: Sequence[Part]) -> Path:
    """The folder that holds the images of `parts`, made once for these files. Raises DataError, also without room."""
    for part in parts:
        _refuse_odd(name, part)
    about = [[VERSION, str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in sources]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    place = cache_folder() / "sets" / f"{name}-{digest}"
    need = sum(part.shape[0] * max(BLOCK, math.prod(part.shape[1:])) for part in parts)
    if not place.is_dir() and need > (free := free_disk(place)):
        raise DataError(
            f"{name}: its images take up to {need / 2**30:.1f} GiB as PNG in {place}, and {free / 2**30:.1f} GiB are "
            "free; set CASS_SCALE_CACHE to a folder with room"
        )
    return make_once(place, lambda folder: _write(folder, parts))


def _refuse_odd(name: str, part: Part) -> None:
    number, *size = part.shape
    if len(size) not in (2, 3) or (len(size) == 3 and size[2] != 3):
        raise DataError(f"{name}: its {part.split} images have the shape {size}; [H, W] or [H, W, 3] is needed")
    if not number == len(part.labels) == len(part.groups):
        columns = f"{len(part.labels)} labels and {len(part.groups)} groups"
        raise DataError(f"{name}: {number} images, {columns} in {part.split}; download it again")


def _write(folder: Path, parts: Sequence[Part]) -> None:
    with open(folder / CSV, "w", newline="", encoding="utf-8") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["path", "label", "split", "group_id"])
        for part in parts:
            for i, row in enumerate(zip(part.images(), part.labels, part.groups, strict=True)):
                pixels, label, group = row
                key = f"{part.split}/{i // PER_FOLDER:04d}/{i:07d}.png"
                if i % PER_FOLDER == 0:
                    (folder / key).parent.mkdir(parents=True)
                Image.fromarray(pixels).save(folder / key)
                out.writerow([key, label, part.split, group])


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever reading `path` raises becomes a DataError that names it."""
    try:
        yield
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}); download it again") from error


class Npz:
    """A numpy archive whose image arrays are read one image after the other: some are larger than the memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def labels(self, name: str, width: int) -> NDArray[np.int64]:
        """A whole array, [N, width]."""
        with _told(self.path), np.load(self.path) as arrays:
            values = np.asarray(arrays[name], dtype=np.int64)
            if values.shape[1:] != (width,):
                raise ValueError(f"{name} has the shape {values.shape}, not [N, {width}]")
            return values

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array of uint8."""
        with _told(self.path), zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as raw:
            return _header(raw)

    def images(self, name: str) -> Iterator[Pixels]:
        """Along the first axis; the archive's own CRC is checked on the way."""
        with _told(self.path), zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as raw:
            number, *shape = _header(raw)
            for _ in range(number):
                yield np.frombuffer(raw.read(math.prod(shape)), dtype=np.uint8).reshape(shape)


def _header(raw: IO[bytes]) -> tuple[int, ...]:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = read[np.lib.format.read_magic(raw)](raw)
    if fortran or dtype != np.uint8:
        raise ValueError(f"its images are {dtype}, not uint8 in C order")
    return tuple(shape)


class Hdf5:
    """One dataset of an HDF5 file. Raises MissingExtra without h5py."""

    def __init__(self, path: Path, name: str, needed_for: str) -> None:
        try:
            import h5py
        except ImportError as error:
            raise MissingExtra("h5py", "sets", needed_for) from error
        self.path, self.name, self._open = path, name, h5py.File

    def shape(self) -> tuple[int, ...]:
        """Of the dataset."""
        with _told(self.path), self._open(self.path) as file:
            if (kind := file[self.name].dtype) != np.uint8:
                raise ValueError(f"{self.name} is {kind}, not uint8")
            return tuple(file[self.name].shape)

    def rows(self) -> Iterator[Pixels]:
        """Along the first axis; read a thousand at a time."""
        with _told(self.path), self._open(self.path) as file:
            data = file[self.name]
            for start in range(0, len(data), PER_FOLDER):
                yield from data[start : start + PER_FOLDER]
