"""Where images come from: a folder or an embedded set; `configs/data/*.yaml` name these functions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from cass_scale.data import digits as digits_set
from cass_scale.data import phantom as phantom_set
from cass_scale.data.cache import make_once
from cass_scale.data.layouts import Files, Labels, Listing, read, walk
from cass_scale.data.look import Look
from cass_scale.data.manifest import SCHEMA, SPLITS, Bad, Manifest, find_classes
from cass_scale.data.parts import Cut, Slices, Tiles, file_of, parse, plain
from cass_scale.data.scan import Checked, Scan, refuse_too_many, scan
from cass_scale.data.splits import assign, check_fractions
from cass_scale.data.window import Window, read_window
from cass_scale.errors import ConfigError, DataError
from cass_scale.machine import cache_folder

DEFAULT_SPLIT = (0.7, 0.1, 0.2)
CUT = Cut()
Groups = Literal["auto", "dicom"]


def folder(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    labels: Labels = "auto",
    max_bad: float = 0.01,
    seed: int = 0,
    split: Sequence[float] = DEFAULT_SPLIT,
    workers: int | None = None,
    window: Any = "auto",
    groups: Groups = "auto",
    slices: Slices = CUT.slices,
    tiles: Tiles = CUT.tiles,
) -> Manifest:
    """The manifest of a folder of images; every file is read once, later it comes from the cache.

    `labels="auto"` takes labels.csv, else `[split/]class/image` folders, else none. A split given by the
    source is kept; otherwise `split` is drawn by `seed`, stratified, groups whole; a set without labels is
    all train. Bad files are skipped up to the share `max_bad`. `window` as in window.py; `groups="dicom"`
    gives each PatientID a group. Raises DataError and ConfigError naming the file or key.
    """
    if not 0.0 <= max_bad <= 1.0:
        raise ConfigError(f"data.max_bad={max_bad} must be a share between 0 and 1")
    root, shown = Path(path).expanduser().absolute(), read_window(window)
    cut = Cut(slices, tiles, shown.fixed if shown else None)
    options = [SCHEMA, str(root), name, labels, seed, check_fractions(split), groups, asdict(cut)]
    files = walk(root)
    listing = read(root, files, labels)
    place = cache_folder() / "manifests" / f"{_key(root, files, listing, options)}.csv"
    found = _from_cache(place)
    if found is None:
        read_all = scan(root, listing, cut, workers, patients=groups == "dicom")
        if groups == "dicom":
            read_all = _by_patient(read_all)
        found = assemble(root, name or root.name, *read_all, check_fractions(split), seed)
        if len(found):
            with contextlib.suppress(OSError):  # a cache that cannot be written costs the next scan, nothing else
                found.write(place)
    refuse_too_many(root, found.bad, len(found) + len(found.bad), max_bad)
    return shown_by(found, shown)


def shown_by(manifest: Manifest, window: Window | None) -> Manifest:
    """The manifest under another window. Raises ConfigError where its images cannot be shown so."""
    if window is None:
        return manifest
    if manifest.depth == 8:
        raise ConfigError(f"data.window: {manifest.name} has images of 8 bit, whose window is 0..255; leave it at auto")
    if window.fixed:
        for key in manifest.keys:
            if not plain(key) and parse(key).window != window.fixed:
                raise ConfigError(
                    f"data.window={list(window.fixed)}: {key} was brought to a scale of its own when the shards were "
                    "made; give data.window to `cass-scale shard`, and not here"
                )
    return replace(manifest, window=window)


def _by_patient(found: Scan) -> Scan:
    """Images without a group get their patient's, which is numbered: a hash of a short id could be undone."""
    names = {"": ""}
    for one in found.checked:
        names.setdefault(one.patient, f"dicom-patient-{len(names)}")
    groups = [known or names[one.patient] for known, one in zip(found.listing.groups, found.checked, strict=True)]
    notes = [*found.listing.notes, f"groups from the PatientID of DICOM: {len(names) - 1} patients, numbered"]
    return Scan(found.listing._replace(groups=groups, notes=notes), found.checked)


def examine(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    labels: Labels = "auto",
    split: Sequence[float] = DEFAULT_SPLIT,
    workers: int | None = None,
) -> tuple[Manifest, tuple[Look, ...]]:
    """The manifest that `folder` gives, and a look at each of its images; every file is read now, without the cache.

    However many files are bad, they are listed and not refused. Raises DataError where there is nothing to read.
    """
    root = Path(path).expanduser().absolute()
    listing, checked = scan(root, read(root, walk(root), labels), CUT, workers, looks=True)
    manifest = assemble(root, name or root.name, listing, checked, check_fractions(split), 0)
    return manifest, tuple(c.look for c in checked if c.look is not None)


def phantom(*, images: int = 198, scale: float = 1.0, seed: int = 0) -> Manifest:
    """Synthetic biopsies in the shape of the paper's autoimmune set, made on first use (see phantom.py)."""
    place = cache_folder() / "sets" / phantom_set.folder_name(images, scale, seed)
    root = make_once(place, lambda at: phantom_set.generate(at, images=images, scale=scale, seed=seed))
    found = folder(root, name="phantom", labels="csv")
    return replace(found, synthetic=True, notes=("synthetic images, drawn by a program; no patient", *found.notes))


def digits(*, seed: int = 0, split: Sequence[float] = DEFAULT_SPLIT) -> Manifest:
    """scikit-learn's 1797 real scans of handwritten digits, 8x8 enlarged to 32x32, ten classes."""
    root = make_once(cache_folder() / "sets" / digits_set.FOLDER_NAME, digits_set.generate)
    return folder(root, name="digits", labels="folders", seed=seed, split=split)


def _key(root: Path, files: Files, listing: Listing, options: list[object]) -> str:
    """Of everything the manifest depends on: options, what was listed, and size and time of each file."""
    digest = hashlib.sha256(json.dumps(options).encode())
    for column in listing:
        digest.update(json.dumps(column).encode())
    for key in listing.keys:
        size, mtime = files.get(file_of(key)) or _stat(root / file_of(key))
        digest.update(f"{size} {mtime}\n".encode())
    return digest.hexdigest()[:32]


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _from_cache(place: Path) -> Manifest | None:
    try:
        return Manifest.read(place)
    except DataError:  # absent, or broken: it is made again
        return None


def assemble(
    root: Path,
    name: str,
    listing: Listing,
    checked: Sequence[Checked],
    split: tuple[float, float, float],
    seed: int,
) -> Manifest:
    """The manifest of what was listed and read; draws the splits where the source gives none."""
    bad = tuple(Bad(key, c.why) for key, c in zip(listing.keys, checked, strict=True) if c.why)
    good = [i for i, c in enumerate(checked) if not c.why]
    keys, labels, groups, splits = ([column[i] for i in good] for column in listing[:4])
    notes = list(listing.notes)
    if not any(splits):
        splits = list(assign(labels, groups, split, seed))
        shares = "/".join(f"{100 * share:g}" for share in split)
        how = f"drawn {shares} with seed {seed}, stratified by label, groups kept whole"
        notes.append(f"splits {how}" if any(labels) else "splits: all train, as there are no labels")
    notes.append(", ".join(f"{n} {s}" for s in SPLITS if (n := splits.count(s))))
    if astride := _astride(groups, splits):
        notes.append(f"{astride} groups have images in more than one split, as the source gives them")
    classes, multilabel = find_classes(labels)
    deep = [checked[i].depth > 8 for i in good]
    if any(deep):
        few = "" if all(deep) else f"; read at 8 bit, since {deep.count(False)} images have no more"
        notes.append(f"{sum(deep)} images of 16 bit{few}")
    return Manifest(
        name=name,
        root=root,
        keys=tuple(keys),
        labels=tuple(labels),
        groups=tuple(groups),
        splits=tuple(splits),
        sha256=tuple(checked[i].sha256 for i in good),
        sizes=tuple(checked[i].size for i in good),
        classes=classes,
        multilabel=multilabel,
        bad=bad,
        notes=tuple(notes),
        depth=16 if deep and all(deep) else 8,
    )


def _astride(groups: Sequence[str], splits: Sequence[str]) -> int:
    pairs = set(zip(groups, splits, strict=True))
    return sum(n > 1 for n in Counter(g for g, _ in pairs if g).values())
