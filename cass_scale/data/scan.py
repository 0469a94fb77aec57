"""Every image read once: checksum, size, depth, and whether it decodes."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from cass_scale.data.decode import BadImage, load, shallow
from cass_scale.data.layouts import CSV, Listing
from cass_scale.data.look import Look, look
from cass_scale.data.manifest import Bad
from cass_scale.data.parts import Cut, file_of, holds_many, images, patient_of, whole
from cass_scale.errors import DataError

CHUNK = 64  # files per task: a million files must not become a million futures
SHOWN = 5
T = TypeVar("T")
U = TypeVar("U")


class Checked(NamedTuple):
    """What reading one image told; `why` is '' for a good one."""

    key: str
    sha256: str
    size: int
    why: str
    depth: int = 8  # bits per channel, 8 or 16
    look: Look | None = None
    patient: str = ""  # as in the file: to be compared, never to be written


class Scan(NamedTuple):
    """A listing with one row per image, and what reading each told."""

    listing: Listing
    checked: list[Checked]


def scan(
    root: Path,
    listing: Listing,
    cut: Cut,
    workers: int | None = None,
    *,
    looks: bool = False,
    patients: bool = False,
) -> Scan:
    """Every image read once, those in volumes and slides one by one; with `looks` also what they show.

    Raises DataError for an image named twice.
    """
    found = spread(lambda key: _check(root, key, cut, looks, patients), _tasks(listing.keys, cut), workers)
    rows = [(i, one) for i, (checked, _) in enumerate(found) for one in checked]
    keys = [one.key for _, one in rows]
    if twice := [key for key, n in Counter(keys).items() if n > 1]:
        raise DataError(f"{root / CSV} names {twice[0]} twice, alone and with all of its file; keep one of them")
    groups = [listing.groups[i] or whole(one.key) for i, one in rows]
    columns = [[column[i] for i, _ in rows] for column in (listing.labels, listing.splits)]
    empty, files = sum(n for _, n in found), sum(n > 0 for _, n in found)
    notes = [f"{empty} empty slices or tiles of {files} files are left out"] if empty else []
    rows_of = Listing(keys, columns[0], groups, columns[1], [*listing.notes, *notes])
    return Scan(rows_of, [one for _, one in rows])


def spread(check: Callable[[T], U], tasks: Iterable[Sequence[T]], workers: int | None = None) -> list[U]:
    """`check` of every item of every task, in order. Decoding releases the GIL: one thread per core, at most 8."""
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        return [one for some in pool.map(lambda task: [check(item) for item in task], tasks) for one in some]


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Tasks of CHUNK items."""
    return (items[i : i + CHUNK] for i in range(0, len(items), CHUNK))


def _tasks(keys: Sequence[str], cut: Cut) -> Iterator[list[str]]:
    task: list[str] = []
    for key in keys:
        task.append(key)
        if len(task) == CHUNK or holds_many(key, cut.tiles.tiff):
            yield task
            task = []
    yield task


def _check(root: Path, key: str, cut: Cut, looks: bool, patients: bool) -> tuple[list[Checked], int]:
    """Of each image that a key stands for; and how many empty ones there are."""
    try:
        patient = patient_of(root, key) if patients else ""
        found, empty = [], 0
        for name, data in images(root, key, cut):
            if data is None:
                empty += 1
            else:
                found.append(judge(name, data, looks)._replace(patient=patient))
        return found, empty
    except BadImage as error:
        there = os.path.exists(root / file_of(key))
        return [Checked(key, "", 0, str(error) if there else "listed but not there")], 0


def judge(key: str, data: bytes, looks: bool) -> Checked:
    """What the bytes of one image tell."""
    try:
        opened = load(data, None)
        seen = look(shallow(opened, None)) if looks else None
    except BadImage as error:
        return Checked(key, "", len(data), str(error))
    depth = 16 if isinstance(opened, np.ndarray) else 8
    return Checked(key, hashlib.sha256(data).hexdigest(), len(data), "", depth, seen)


def refuse_too_many(root: Path, bad: Sequence[Bad], files: int, max_bad: float) -> None:
    """Raise DataError when more than the share `max_bad` of `files` is bad, or nothing good is left."""
    if len(bad) <= max_bad * files and len(bad) < files:
        return
    shown = [f"  {b.key}: {b.why}" for b in bad[:SHOWN]]
    if len(bad) > SHOWN:
        shown.append(f"  and {len(bad) - SHOWN} more")
    if len(bad) == files:
        advice = "no good image is left"
    else:
        advice = f"more than data.max_bad={max_bad:g}; repair or remove them, or raise data.max_bad to skip them"
    raise DataError("\n".join([f"{len(bad)} of {files} images in {root} are bad, {advice}:", *shown]))
