"""Every file read once: checksum, size, and whether it decodes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from cass_scale.data.decode import BadImage, decode
from cass_scale.data.look import Look, look
from cass_scale.data.manifest import Bad
from cass_scale.errors import DataError

CHUNK = 64  # files per task: a million files must not become a million futures
SHOWN = 5
T = TypeVar("T")


class Checked(NamedTuple):
    """What reading one file told; `why` is '' for a good image."""

    sha256: str
    size: int
    why: str
    look: Look | None = None


def scan(root: Path, keys: Sequence[str], workers: int | None = None, *, looks: bool = False) -> list[Checked]:
    """One answer per key, in order; with `looks` also of what the images show."""
    return spread(lambda key: _check(root / key, looks), keys, workers)


def spread(check: Callable[[T], Checked], items: Sequence[T], workers: int | None = None) -> list[Checked]:
    """`check` of every item, in order. Decoding releases the GIL, so threads serve: one per core, at most 8."""
    threads = workers or min(8, os.cpu_count() or 1)
    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        return [c for chunk in pool.map(lambda part: [check(item) for item in part], chunks) for c in chunk]


def _check(path: Path, looks: bool) -> Checked:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Checked("", 0, "listed but not there")
    except OSError as error:
        return Checked("", 0, f"cannot be read: {error.strerror}")
    return judge(data, looks)


def judge(data: bytes, looks: bool) -> Checked:
    """What the bytes of one image tell."""
    try:
        pixels = decode(data, None)
    except BadImage as error:
        return Checked("", len(data), str(error))
    return Checked(hashlib.sha256(data).hexdigest(), len(data), "", look(pixels) if looks else None)


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
