"""Images that are parts of files: keys with the part behind `#`, as in `scan.nii.gz#z=12`, which say all it takes."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from cass_scale.data import png
from cass_scale.data.decode import DICOM_EXTENSIONS, EXTENSIONS, BadImage, Deep, Pixels, read_file, told

VOLUMES = (".nii", ".nii.gz")
SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".czi")
TIFFS = (".tif", ".tiff")
READ = (*EXTENSIONS, *DICOM_EXTENSIONS, *VOLUMES, *SLIDES)

Fixed = tuple[float, float]  # a window in a file's own units
WINDOW = r"window=(?P<low>[-+.\de]+):(?P<high>[-+.\de]+)"
PARTS = tuple(
    re.compile(rf"(?P<file>.+)#{part}")
    for part in (
        rf"(?P<axis>[xyz])=(?P<number>\d+)(?:,{WINDOW})?",
        r"level=(?P<level>\d+),x=(?P<x>\d+),y=(?P<y>\d+),size=(?P<size>\d+)",
        WINDOW,
    )
)


@dataclass(frozen=True)
class Slices:
    """Which slices of a volume are images: every `stride`-th along an axis of RAS."""

    axis: str = "z"  # x: sagittal, y: coronal, z: axial
    stride: int = 1


@dataclass(frozen=True)
class Tiles:
    """Which squares of a slide are images: the whole ones of a grid without gaps."""

    size: int = 256  # pixels of the level; with `mpp` pixels of that resolution
    level: int = 0  # of the slide's pyramid, 0 the largest
    mpp: float | None = None  # micrometres per pixel, instead of `level`: read from the next finer one
    tissue: float = 0.25  # least share of a tile that is not glass; 0: all tiles
    tiff: bool = False  # .tif and .tiff are slides too


@dataclass(frozen=True)
class Cut:
    """What becomes of a file that holds more than one image, or values in units of its own."""

    slices: Slices = field(default_factory=Slices)
    tiles: Tiles = field(default_factory=Tiles)
    window: Fixed | None = None  # of DICOM and volumes; None: each file's own


class Tile(NamedTuple):
    """`x` and `y` in pixels of level 0, as in OpenSlide; `size` in pixels of `level`."""

    level: int
    x: int
    y: int
    size: int


class Part(NamedTuple):
    """A key taken apart: a slice, a tile, a DICOM file under a window, or a file as it is."""

    file: str
    axis: str = ""
    number: int = 0
    tile: Tile | None = None
    window: Fixed | None = None

    @property
    def key(self) -> str:
        """What `parse` takes apart."""
        words = [f"{self.axis}={self.number}"] if self.axis else []
        words += [f"{name}={value}" for name, value in self.tile._asdict().items()] if self.tile else []
        words += [f"window={':'.join(repr(float(v)).removesuffix('.0') for v in self.window)}"] if self.window else []
        return f"{self.file}#{','.join(words)}" if words else self.file


def parse(key: str) -> Part:
    """The part that a key names; anything that does not look like one is a file's name."""
    if "#" not in key:
        return Part(key)
    found = next((match.groupdict() for pattern in PARTS if (match := pattern.fullmatch(key))), {"file": key})
    tile = Tile(*(int(found[name]) for name in Tile._fields)) if "level" in found else None
    window = (float(found["low"]), float(found["high"])) if found.get("low") else None
    return Part(found["file"], found.get("axis") or "", int(found.get("number") or 0), tile, window)


def file_of(key: str) -> str:
    """The file that a key's image lies in."""
    return parse(key).file


def plain(key: str) -> bool:
    """Whether it is an image file of everybody's: its bytes may be passed on, and its values have no unit."""
    return key.lower().endswith(EXTENSIONS)


def holds_many(file: str, tiff: bool = False) -> bool:
    """Whether a file is a volume or a slide, by its name."""
    return file.lower().endswith(VOLUMES + SLIDES + (TIFFS if tiff else ()))


def whole(key: str) -> str:
    """The volume or slide that a split must not divide; '' for an image that is a file of its own."""
    part = parse(key)
    return part.file if part.axis or part.tile else ""


def read(root: Path, key: str) -> bytes:
    """An image file: that of the key, or a PNG of its part, the same bytes every time. Raises BadImage."""
    part = parse(key)
    if part == Part(key):
        return read_file(root / key)
    with told():
        return png.encode(_pixels(root, part), packed=False)


def patient_of(root: Path, key: str) -> str:
    """PatientID of a DICOM file, '' for anything else. It must not be written anywhere. Raises BadImage."""
    file = parse(key).file
    if plain(file) or holds_many(file):
        return ""
    with told():
        from cass_scale.data import dicom

        return dicom.patient(root / file)


def images(root: Path, key: str, how: Cut) -> Iterator[tuple[str, bytes | None]]:
    """Keys of the images that a key stands for, with what `read` gives; None for what is empty. Raises BadImage."""
    part = parse(key)
    if part != Part(key) or not holds_many(key, how.tiles.tiff):
        if not (plain(part.file) or part.tile or part.window):
            part = part._replace(window=how.window)
        yield part.key, read(root, part.key)
        return
    with told():
        all_empty = True
        for one, pixels in _all(root, key, how):
            all_empty &= pixels is None
            yield one.key, None if pixels is None else png.encode(pixels, packed=False)
    if all_empty:
        raise BadImage("no slice or tile of it shows anything")


def _all(root: Path, file: str, how: Cut) -> Iterator[tuple[Part, Pixels | Deep | None]]:
    """Every slice or tile of a file; None for one of one grey, or that is mostly glass."""
    opened = _opened.get(root / file)
    if not file.lower().endswith(VOLUMES):
        from cass_scale.data import slides

        for tile, empty in slides.tiles(opened, how.tiles):
            yield Part(file, tile=tile), None if empty else slides.render(opened, tile)
        return
    from cass_scale.data import volumes

    axis = how.slices.axis
    for number in range(0, opened.slices(axis), how.slices.stride):
        pixels = volumes.render(opened, axis, number, how.window)
        yield Part(file, axis, number, window=how.window), None if pixels.min() == pixels.max() else pixels


def _pixels(root: Path, part: Part) -> Pixels | Deep:
    if part.tile:
        from cass_scale.data import slides

        return slides.render(_opened.get(root / part.file), part.tile)
    if part.axis:
        from cass_scale.data import volumes

        return volumes.render(_opened.get(root / part.file), part.axis, part.number, part.window)
    from cass_scale.data import dicom

    opened = dicom.load(read_file(root / part.file), part.window)
    return opened if isinstance(opened, np.ndarray) else np.asarray(opened)


def _open(path: Path) -> Any:
    if path.name.lower().endswith(VOLUMES):
        from cass_scale.data import volumes

        return volumes.load(path)
    from cass_scale.data import slides

    return slides.load(path)


class _Slot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.opened: Any = None


class _Opened:
    """The volume or slide that each thread used last, opened once for all threads that ask; a fork opens its own."""

    def __init__(self) -> None:
        self._slots: WeakValueDictionary[tuple[object, ...], _Slot] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._mine = threading.local()

    def get(self, path: Path) -> Any:
        """Raises BadImage when it cannot be read, and what the format's library raises."""
        try:
            stat = path.stat()
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error
        key = (os.getpid(), path, stat.st_size, stat.st_mtime_ns)
        with self._lock:
            self._mine.slot = slot = self._slots.setdefault(key, _Slot())
        with slot.lock:
            if slot.opened is None:
                slot.opened = _open(path)
            return slot.opened


_opened = _Opened()
