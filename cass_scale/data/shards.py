"""Where images come from when they lie in shards: sets made by `cass-scale shard`, also at a URL, and foreign tars."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from cass_scale.data.betons import check_beton, look_at_beton
from cass_scale.data.cache import make_once
from cass_scale.data.decode import BadImage
from cass_scale.data.index import SCHEMA, SUFFIX, Sample, ShardIndex, file_sha256, parse_header, shard_name
from cass_scale.data.layouts import MADE, MANIFEST, SHARDS, SPLIT_NAMES, Listing
from cass_scale.data.look import Look
from cass_scale.data.manifest import Bad, Manifest
from cass_scale.data.mirror import mirror, read_own
from cass_scale.data.ranges import LocalRanges, read_checked
from cass_scale.data.remote import public
from cass_scale.data.scan import Checked, chunks, judge, refuse_too_many, spread
from cass_scale.data.sources import DEFAULT_SPLIT, Examined, Survey, assemble, shown_by
from cass_scale.data.splits import check_fractions
from cass_scale.data.tars import index_tar
from cass_scale.data.window import read_window
from cass_scale.errors import ConfigError, DataError
from cass_scale.machine import cache_folder
from cass_scale.types import JSON
from cass_scale.words import is_url

REMEDY = "draw a split of the images that the shards were made from (`cass-scale split`), and make the shards again"


def shards(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    max_bad: float = 0.01,
    seed: int = 0,
    split: Sequence[float] = DEFAULT_SPLIT,
    workers: int | None = None,
    window: Any = "auto",
) -> Manifest:
    """The manifest of a set of shards: for our own the one that lies there, for foreign tars by these options.

    At a URL it must be one of our own; what is small of it is copied into the cache folder once (see `mirror`).
    Foreign tars are read once and their index is kept in the cache folder. Labels, groups and splits come from
    their `json` or `cls` members, splits else from the tars' names (`train-000.tar`), or are drawn. Raises
    DataError and ConfigError naming the file or key.
    """
    if not 0.0 <= max_bad <= 1.0:
        raise ConfigError(f"data.max_bad={max_bad} must be a share between 0 and 1")
    url = public(os.fspath(path)) if is_url(path) else ""
    root = mirror(url) if url else Path(path).expanduser().absolute()
    if (root / SHARDS).is_file():
        found = _own(root, name, url)
        if found.stored == "beton":
            check_beton(found, read_header(root))
        return shown_by(found, read_window(window))
    found = _foreign(root, name or root.name, list(indexes(root, workers)), check_fractions(split), seed)
    refuse_too_many(root, found.bad, len(found) + len(found.bad), max_bad)
    return shown_by(found, read_window(window))


def _own(root: Path, name: str | None, url: str = "") -> Manifest:
    """That of a set made here, which is not looked at. `url`: where the tars lie when `root` is a mirror."""
    stored: Literal["tars", "beton"] = "tars" if url or read_header(root)["format"] != "ffcv" else "beton"
    found = read_own(root / MANIFEST, Manifest.read, url)
    return replace(found, root=root, name=name or found.name, stored=stored, url=url)


def read_header(root: Path) -> JSON:
    """What `cass-scale shard` noted about a finished set. Raises DataError when it is broken or not finished."""
    try:
        head = parse_header((root / SHARDS).read_bytes(), root / SHARDS)
    except OSError as error:
        raise DataError(f"{root / SHARDS} cannot be read: {error.strerror}; make the shards again") from error
    if head["format"] == "ffcv":
        whole, what = MADE in head, "the beton is not whole"
    else:
        whole, what = True, f"{len(list(root.glob(f'*{SUFFIX}')))} of {head['shards']} shards are made"
    if not whole or not (root / MANIFEST).is_file():
        raise DataError(f"data.path={root}: {what}; finish with the same `cass-scale shard` command")
    return head


def indexes(root: Path, workers: int | None = None, *, url: str = "") -> Iterator[ShardIndex]:
    """The index of every tar in `root`, in order; `url`: what it is a copy of.

    Those of foreign tars are made when first asked for.
    """
    if (root / SHARDS).is_file():
        head = read_header(root)
        if head["format"] != "webdataset":
            raise DataError(f"data.path={root} holds a beton, no tars: only stream=ffcv reads it")
        for number in range(head["shards"]):
            path = root / f"{shard_name(number)}{SUFFIX}"
            index = read_own(path, ShardIndex.read, url)
            if index.tar != f"{shard_name(number)}.tar":  # nor does an index from afar name a file elsewhere
                raise DataError(f"{path} is the index of {index.tar!r}; make the shards again")
            yield index
        return
    tars = _tars(root)
    digest = hashlib.sha256(json.dumps([SCHEMA, "depth", str(root)]).encode())
    for tar in tars:
        stat = tar.stat()
        digest.update(f"{tar.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())

    def fill(folder: Path) -> None:
        for tar in tars:
            index_tar(tar, workers).write(folder / f"{tar.stem}{SUFFIX}")

    place = make_once(cache_folder() / "indexes" / digest.hexdigest()[:32], fill)
    yield from (ShardIndex.read(place / f"{tar.stem}{SUFFIX}") for tar in tars)


def _tars(root: Path) -> list[Path]:
    if not root.is_dir():
        what = "is a file; give the folder that holds the shards" if root.exists() else "does not exist"
        raise DataError(f"data.path={root} {what}")
    tars = sorted(p for p in root.glob("*.tar") if not p.name.startswith("."))
    if not tars:
        raise DataError(f"no *.tar in data.path={root}; make shards with `cass-scale shard source={root} out=SHARDS`")
    return tars


def _foreign(root: Path, name: str, found: list[ShardIndex], split: tuple[float, float, float], seed: int) -> Manifest:
    rows = [(index, sample) for index in found for sample in index.samples]
    keys = [f"{index.tar}/{sample.key}" for index, sample in rows]
    labels, splits = [s.label for _, s in rows], [s.split for _, s in rows]
    notes = [f"{len(found)} shards of unknown origin, indexed by their members"]
    if not any(splits):
        named = [SPLIT_NAMES.get(re.split("[-_.]", index.tar.lower())[0], "") for index, _ in rows]
        splits = named if all(named) else splits
    elif not all(splits):
        splits = [s or "train" for s in splits]
    listing = Listing(keys, labels, [s.group for _, s in rows], splits, notes)
    checked = [Checked(key, s.sha256, s.length, "", index.depth) for key, (index, s) in zip(keys, rows, strict=True)]
    made = assemble(root, name, listing, checked, split, seed)
    return replace(made, bad=tuple(bad for index in found for bad in index.bad), stored="tars")


def survey(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    split: Sequence[float] = DEFAULT_SPLIT,
    workers: int | None = None,
    window: Any = "auto",
) -> Survey:
    """What `shards` takes, to be read anew: every byte is held against the indexes. Raises DataError, ConfigError."""
    if is_url(path):
        raise ConfigError(f"data.path={path}: every byte of the set would be read; copy the shards to a folder first")
    root = Path(path).expanduser().absolute()
    own = (root / SHARDS).is_file()
    manifest = _own(root, name) if own else shards(root, name=name, max_bad=1.0, split=split, workers=workers)
    manifest = shown_by(manifest, read_window(window))
    return Survey(root, len(manifest), REMEDY, lambda: _examine(manifest, workers))


def _examine(manifest: Manifest, workers: int | None) -> Examined:
    """Images that cannot be read any more are no rows; all damage is listed, by shard and image."""
    if manifest.stored == "beton":
        looks, damaged = look_at_beton(manifest, read_header(manifest.root), workers)
    else:
        looks, damaged = _hold_tars(manifest, workers)
    notes = manifest.notes
    if (manifest.root / SHARDS).is_file() and manifest.bad:
        notes = (*notes, f"{len(manifest.bad)} files of the source could not be used and are not in the shards")
        manifest = replace(manifest, bad=())
    made = replace(manifest.take(list(looks)), notes=notes)
    return Examined(made, tuple(looks.values()), {"group": made.groups} if any(made.groups) else {}, tuple(damaged))


def _hold_tars(manifest: Manifest, workers: int | None) -> tuple[dict[int, Look], list[Bad]]:
    """The looks of good images by row, and what is damaged."""
    looks: dict[int, Look] = {}
    damaged: list[Bad] = []
    for rows, file, index in _parts(manifest):
        if isinstance(index, Bad):
            damaged.append(index)
        elif manifest.sha256[rows.start : rows.stop] != tuple(sample.sha256 for sample in index.samples):
            damaged.append(Bad(file, "is not the index of these images: it does not fit the manifest"))
        else:
            found, wrong = _hold(manifest, rows, index, workers)
            looks |= found
            damaged += wrong
    return looks, damaged


def _parts(manifest: Manifest) -> Iterator[tuple[range, str, ShardIndex | Bad]]:
    """Of each shard: its rows, and its index with its name, or why that cannot be read."""
    root, start = manifest.root, 0
    if not (root / SHARDS).is_file():
        for index in indexes(root):
            yield range(start, start + len(index.samples)), index.tar, index
            start += len(index.samples)
        return
    head = read_header(root)
    number, size = head["shards"], head["samples_per_shard"]
    for start in range(0, number * size, size):
        path = root / f"{shard_name(start // size)}{SUFFIX}"
        yield range(start, min(start + size, len(manifest))), path.name, _read_index(path)
    if not 0 <= number * size - len(manifest) < size:
        yield range(0), SHARDS, Bad(SHARDS, f"its numbers of shards and images are not those of {MANIFEST}")


def _read_index(path: Path) -> ShardIndex | Bad:
    try:
        return ShardIndex.read(path)
    except DataError as error:
        return Bad(path.name, str(error))


def _hold(manifest: Manifest, rows: range, index: ShardIndex, workers: int | None) -> tuple[dict[int, Look], list[Bad]]:
    """One tar against its index: the looks of its good images by row of the manifest, and what is damaged."""
    tar, files = manifest.root / index.tar, LocalRanges()
    try:
        size = tar.stat().st_size
        whole = size == index.size and file_sha256(tar) == index.sha256
    except OSError as error:
        return {}, [Bad(index.tar, f"cannot be read: {error.strerror}")]
    length = f"is {size} bytes long, its index says {index.size}"
    what = "its sha256 is not that of its index" if size == index.size else length

    def check(sample: Sample) -> Checked:
        try:
            return judge(sample.key, read_checked(files, tar, sample.offset, sample.length, sample.sha256), True)
        except BadImage as error:
            return Checked(sample.key, "", 0, str(error))

    looks, damaged = {}, [] if whole else [Bad(index.tar, what)]
    for row, sample, one in zip(rows, index.samples, spread(check, chunks(index.samples), workers), strict=True):
        if one.look is not None:
            looks[row] = one.look
        else:
            damaged.append(Bad(f"{index.tar}: {manifest.keys[row]} at byte {sample.offset}", one.why))
    return looks, damaged
