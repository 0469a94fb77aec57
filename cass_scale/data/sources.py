"""Where images come from: a folder or an embedded set; `configs/data/*.yaml` name these functions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cass_scale.data import digits as digits_set
from cass_scale.data import phantom as phantom_set
from cass_scale.data.cache import make_once
from cass_scale.data.layouts import Files, Labels, Listing, read, table, walk
from cass_scale.data.look import Look
from cass_scale.data.manifest import SCHEMA, SPLITS, Bad, Manifest, find_classes
from cass_scale.data.parts import Cut, Slices, Tiles, file_of, parse, plain
from cass_scale.data.scan import Checked, Scan, refuse_too_many, scan
from cass_scale.data.splits import assign, check_fractions
from cass_scale.data.window import Window, read_window
from cass_scale.errors import ConfigError, DataError
from cass_scale.machine import cache_folder
from cass_scale.types import JSON

DEFAULT_SPLIT = (0.7, 0.1, 0.2)
CUT = Cut()
Groups = Literal["auto", "dicom"]
PEOPLE = ("patient_id", "group_id")  # columns of labels.csv; an image may have both, and neither may be divided

People = Mapping[str, Sequence[str]]  # column -> one value per image, '' = none


class Found(NamedTuple):
    """A folder of images and what is known of them; `expected` are counts that the set itself names."""

    root: Path
    files: Files
    listing: Listing
    expected: JSON | None = None


class Examined(NamedTuple):
    """What reading a set anew told: a look at each row, whom the rows belong to, what is not as it was made."""

    manifest: Manifest
    looks: tuple[Look, ...]
    owners: People
    damaged: tuple[Bad, ...] = ()


class Survey(NamedTuple):
    """A set before it is read anew; `remedy` says what mends a split of it that leaks."""

    root: Path
    images: int
    remedy: str
    read: Callable[[], Examined]


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
    shown = read_window(window)
    options: JSON = {"name": name, "max_bad": max_bad, "seed": seed, "split": split, "workers": workers}
    cut = Cut(slices, tiles, shown.fixed if shown else None)
    return shown_by(gather(listed(path, labels), cut=cut, patients=groups == "dicom", **options), shown)


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


def survey(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    labels: Labels = "auto",
    split: Sequence[float] = DEFAULT_SPLIT,
    workers: int | None = None,
    window: Any = "auto",
    groups: Groups = "auto",
    slices: Slices = CUT.slices,
    tiles: Tiles = CUT.tiles,
) -> Survey:
    """What `folder` takes, to be read anew. Raises DataError where there is nothing to read."""
    found, shown = listed(path, labels), read_window(window)
    cut = Cut(slices, tiles, shown.fixed if shown else None)
    command = f"`cass-scale split data.path={shlex.quote(str(found.root))} out=clean.csv`"
    remedy = f"{command} draws a split that does not leak; put clean.csv into the folder as labels.csv"

    def reread() -> Examined:
        patients = groups == "dicom"
        manifest, looks = examine(found, name=name, split=split, workers=workers, cut=cut, patients=patients)
        return Examined(manifest, looks, people(manifest, labels))

    return Survey(found.root, len(found.listing.keys), remedy, reread)


def listed(path: str | os.PathLike[str], labels: Labels) -> Found:
    """The images of a folder and what its layout says about them."""
    root = Path(path).expanduser().absolute()
    files = walk(root)
    return Found(root, files, read(root, files, labels))


def people(manifest: Manifest, labels: Labels = "auto") -> People:
    """Whom the images belong to, by column of labels.csv; {} when nothing is known."""
    rows = table(manifest.root, labels)
    mine = [rows.get(key) or rows.get(file_of(key), {}) for key in manifest.keys]
    columns = {c: [(row.get(c) or "").strip() for row in mine] for c in PEOPLE}
    return {column: values for column, values in columns.items() if any(values)}


def gather(
    found: Found,
    *,
    name: str | None = None,
    max_bad: float = 0.01,
    seed: int = 0,
    split: Sequence[float] = DEFAULT_SPLIT,
    workers: int | None = None,
    cut: Cut = CUT,
    patients: bool = False,
) -> Manifest:
    """The manifest of what was found: out of the cache, else every file is read.

    `cut` says what images of volumes and slides are; with `patients` each PatientID of DICOM is a group.
    """
    if not 0.0 <= max_bad <= 1.0:
        raise ConfigError(f"data.max_bad={max_bad} must be a share between 0 and 1")
    shares = check_fractions(split)
    root, files, listing, _ = found
    key = _key(root, files, listing, [SCHEMA, str(root), name, seed, shares, patients, asdict(cut)])
    place = cache_folder() / "manifests" / f"{key}.csv"
    made = _from_cache(place)
    if made is None:
        read_all = scan(root, listing, cut, workers, patients=patients)
        made = assemble(root, name or root.name, *(_by_patient(read_all) if patients else read_all), shares, seed)
        if len(made):
            with contextlib.suppress(OSError):  # a cache that cannot be written costs the next scan, nothing else
                made.write(place)
    refuse_too_many(root, made.bad, len(made) + len(made.bad), max_bad)
    return made


def examine(
    found: Found,
    *,
    name: str | None = None,
    split: Sequence[float] = DEFAULT_SPLIT,
    workers: int | None = None,
    cut: Cut = CUT,
    patients: bool = False,
) -> tuple[Manifest, tuple[Look, ...]]:
    """The manifest that `gather` gives, and a look at each of its images; every file is read now, without the cache.

    However many files are bad, they are listed and not refused.
    """
    read_all = scan(found.root, found.listing, cut, workers, looks=True, patients=patients)
    listing, checked = _by_patient(read_all) if patients else read_all
    manifest = assemble(found.root, name or found.root.name, listing, checked, check_fractions(split), 0)
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
