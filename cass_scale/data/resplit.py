"""A split in which nothing leaks: copies and what belongs to one patient or group stay together."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cass_scale import records
from cass_scale.data.layouts import Labels, table
from cass_scale.data.look import Look
from cass_scale.data.manifest import Manifest
from cass_scale.data.parts import file_of
from cass_scale.data.sets import joined
from cass_scale.data.sources import People
from cass_scale.data.splits import assign
from cass_scale.data.verify import copies

COLUMNS = ["path", "label", "split", "group_id", "kept_together"]  # then those that the old labels.csv had


def units(manifest: Manifest, looks: Sequence[Look], owners: People) -> NDArray[np.int64]:
    """For each row the number of what must not be divided: the first row of it. int64 [N]."""
    found, _ = copies(manifest, looks)
    out = np.arange(len(manifest))
    for rows in joined(len(manifest), [manifest.groups, *owners.values()], found.several()).several():
        out[rows] = rows[0]
    return out


def resplit(manifest: Manifest, together: NDArray[np.int64], split: Sequence[float], seed: int) -> Manifest:
    """The manifest with its splits drawn anew, stratified by label, also where there is no label at all."""
    labels = manifest.labels if any(manifest.labels) else ["unlabelled"] * len(manifest)
    return replace(manifest, splits=assign(labels, [str(unit) for unit in together], split, seed))


def write(manifest: Manifest, together: NDArray[np.int64], out: Path, labels: Labels = "auto") -> None:
    """A labels.csv that gives this manifest's splits, with all columns that the folder's own one has."""
    old = table(manifest.root, labels)
    more = [c for c in next(iter(old.values()), {}) if c and c not in COLUMNS]
    counts = Counter(together.tolist())
    names = [str(unit) if counts[unit] > 1 else "" for unit in together.tolist()]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS + more)
    columns = (manifest.labels, manifest.splits, manifest.groups, names)
    for key, i in _named(manifest).items():
        before = old.get(key) or old.get(file_of(key), {})
        rows.writerow([key, *(column[i] for column in columns), *(before.get(c) or "" for c in more)])
    out.parent.mkdir(parents=True, exist_ok=True)
    records.atomic_write_text(out, text.getvalue())


def _named(manifest: Manifest) -> dict[str, int]:
    """The first row of each image; of each volume and slide whose images all have one label."""
    labels: dict[str, set[str]] = defaultdict(set)
    for key, label in zip(manifest.keys, manifest.labels, strict=True):
        labels[file_of(key)].add(label)
    found: dict[str, int] = {}
    for i, key in enumerate(manifest.keys):
        file = file_of(key)
        found.setdefault(file if len(labels[file]) == 1 else key, i)
    return found
