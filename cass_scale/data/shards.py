"""Where images come from when they lie in shards: sets made by `cass-scale shard`, and anybody's WebDataset tars."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cass_scale.data import beton
from cass_scale.data.cache import is_still, make_once
from cass_scale.data.index import SCHEMA, SUFFIX, ShardIndex
from cass_scale.data.layouts import BETON, SHARDS, SPLIT_NAMES, Listing
from cass_scale.data.manifest import Manifest
from cass_scale.data.scan import Checked, refuse_too_many
from cass_scale.data.sources import DEFAULT_SPLIT, assemble
from cass_scale.data.splits import check_fractions
from cass_scale.data.tars import index_tar
from cass_scale.errors import ConfigError, DataError
from cass_scale.machine import cache_folder
from cass_scale.types import JSON

MANIFEST = "manifest.csv"
MADE = "made"  # key of shards.json: the beton that came out


def shards(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    max_bad: float = 0.01,
    seed: int = 0,
    split: Sequence[float] = DEFAULT_SPLIT,
    workers: int | None = None,
) -> Manifest:
    """The manifest of a set of shards: for our own the one that lies there, for foreign tars by these options.

    Foreign tars are read once and their index is kept in the cache folder. Labels, groups and splits come from
    their `json` or `cls` members, splits else from the tars' names (`train-000.tar`), or are drawn. Raises
    DataError and ConfigError naming the file or key.
    """
    if not 0.0 <= max_bad <= 1.0:
        raise ConfigError(f"data.max_bad={max_bad} must be a share between 0 and 1")
    root = Path(path).expanduser().absolute()
    if (root / SHARDS).is_file():
        head = read_header(root)
        found = replace(Manifest.read(root / MANIFEST), root=root)
        if head["format"] == "ffcv":
            check_beton(found)
        return replace(found, name=name or found.name)
    found = _foreign(root, name or root.name, list(indexes(root, workers)), check_fractions(split), seed)
    refuse_too_many(root, found.bad, len(found) + len(found.bad), max_bad)
    return found


def read_header(root: Path) -> JSON:
    """What `cass-scale shard` noted about a finished set. Raises DataError when it is broken or not finished."""
    try:
        head: JSON = json.loads((root / SHARDS).read_text())
        ffcv = head["format"] == "ffcv"
        what = "its beton is not whole" if ffcv else f"{{}} of {int(head['shards'])} shards are made"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root / SHARDS} cannot be read ({error}); make the shards again") from error
    if not (root / MANIFEST).is_file() or (ffcv and MADE not in head):
        done = len(list(root.glob(f"*{SUFFIX}")))
        raise DataError(f"data.path={root}: {what.format(done)}; finish with the same `cass-scale shard` command")
    return head


def check_beton(manifest: Manifest) -> None:
    """Raise DataError unless the .beton beside a manifest is the one that was made with it.

    FFCV checks nothing when it reads: the file is read whole, held against its sha256, when it changed since last time.
    """
    root, path = manifest.root, manifest.root / BETON
    if not (root / SHARDS).is_file():
        raise DataError(f"no {BETON} in data.path={root}; make it with `cass-scale shard source={root} format=ffcv`")
    head = read_header(root)
    if head["format"] != "ffcv":
        raise DataError(f"data.path={root} holds tars, no beton: stream=webdataset reads them")
    try:
        size, digest, fingerprint = (head[MADE][key] for key in ("bytes", "sha256", "manifest"))
    except (KeyError, TypeError) as error:
        raise DataError(f"{root / SHARDS} does not describe a beton ({error}); make the shards again") from error
    again = "restore it, or make it again with `cass-scale shard format=ffcv`"
    if fingerprint != manifest.fingerprint():
        raise DataError(f"{root / MANIFEST} does not belong to the {BETON} beside it; {again}")
    try:
        if (found := path.stat().st_size) != size:
            raise DataError(f"{path} is {found} bytes long and was made {size}: cut off or replaced; {again}")
        beton.check_header(path, len(manifest))
        if not is_still(path, digest):
            raise DataError(f"the sha256 of {path} is not that of {SHARDS}, it was changed; {again}")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; {again}") from error


def shard_name(number: int) -> str:
    """Without extension."""
    return f"shard-{number:06d}"


def indexes(root: Path, workers: int | None = None) -> Iterator[ShardIndex]:
    """The index of every tar in `root`, in order; those of foreign tars are made when first asked for."""
    if (root / SHARDS).is_file():
        head = read_header(root)
        if head["format"] != "webdataset":
            raise DataError(f"data.path={root} holds a beton, no tars: only stream=ffcv reads it")
        names = (shard_name(i) for i in range(head["shards"]))
        yield from (ShardIndex.read(root / f"{name}{SUFFIX}") for name in names)
        return
    tars = _tars(root)
    digest = hashlib.sha256(json.dumps([SCHEMA, str(root)]).encode())
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
    checked = [Checked(s.sha256, s.length, "") for _, s in rows]
    made = assemble(root, name, listing, checked, split, seed)
    return replace(made, bad=tuple(bad for index in found for bad in index.bad))
