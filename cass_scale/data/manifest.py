"""The manifest: one row per sample, in columns, for up to millions. The row number is the sample id."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cass_scale.data.window import Window
from cass_scale.errors import DataError
from cass_scale.types import JSON

SCHEMA = 1
SPLITS = ("train", "val", "test")
NEGATIVE = "No Finding"  # NIH ChestX-ray14's "none of the labels applies"; no class of a multi-label set
COLUMNS = ["id", "key", "label", "group", "split", "sha256", "size"]


@dataclass(frozen=True)
class Bad:
    """A file that was skipped, and why."""

    key: str
    why: str


@dataclass(frozen=True)
class Manifest:
    """N samples; all columns have length N. `keys` are posix paths relative to `root`; '' means none.

    A label `a|b` holds several labels and makes the set multi-label. `bad` lists skipped files, which
    are no rows; `notes` say how labels and splits were found. Raises ValueError when columns do not fit.
    """

    name: str
    root: Path
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    sha256: tuple[str, ...]
    sizes: tuple[int, ...]  # bytes
    classes: tuple[str, ...]
    multilabel: bool
    bad: tuple[Bad, ...] = ()
    synthetic: bool = False
    notes: tuple[str, ...] = ()
    stored: Literal["files", "tars", "beton"] = "files"  # how they lie in `root`; known from the place, not written
    tars: bool = False  # the images lie in the tars of `root`; known from the place, not written
    url: str = ""  # where the tars lie when `root` only mirrors what is small, without secrets
    depth: int = 8  # bits per channel that streams keep: 16 where every image has more than 8
    window: Window | None = None  # what of 16 bits is shown; None: as each format has it

    def __post_init__(self) -> None:
        columns = (self.labels, self.groups, self.splits, self.sha256, self.sizes)
        if {len(column) for column in columns} != {len(self.keys)}:
            raise ValueError(f"columns of unequal length: {[len(self.keys), *(len(c) for c in columns)]}")
        if unknown := set(self.splits) - set(SPLITS):
            raise ValueError(f"unknown splits {sorted(unknown)}; known are {', '.join(SPLITS)}")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def place(self) -> str:
        """Where a person finds the images: folder or URL."""
        return self.url or str(self.root)

    def rows(self, split: str | None = None) -> Tensor:
        """Ids of one split, or of all samples, ascending: int64 [n]."""
        if split is None:
            return torch.arange(len(self))
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known are {', '.join(SPLITS)}")
        return torch.tensor([i for i, s in enumerate(self.splits) if s == split], dtype=torch.int64)

    def take(self, rows: Sequence[int]) -> Manifest:
        """Only these samples, in this order."""
        names = ("keys", "labels", "groups", "splits", "sha256", "sizes")
        columns: JSON = {name: tuple(getattr(self, name)[row] for row in rows) for name in names}
        return replace(self, **columns)

    def label_tensor(self) -> Tensor:
        """int64 [N], -1 = none; for a multi-label set float32 [N, C] of 0/1, a row of -1 = none."""
        number = {c: i for i, c in enumerate(self.classes)}
        if not self.multilabel:
            return torch.tensor([number[label] if label else -1 for label in self.labels], dtype=torch.int64)
        hits = [(i, number[c]) for i, s in enumerate(self.labels) for c in s.split("|") if s and c in number]
        out = torch.zeros(len(self), len(self.classes))
        out[torch.tensor([not label for label in self.labels], dtype=torch.bool)] = -1.0
        if hits:
            at = torch.tensor(hits)
            out[at[:, 0], at[:, 1]] = 1.0
        return out

    def labelled(self) -> Tensor:
        """bool [N]: which samples have a label."""
        return torch.tensor([bool(label) for label in self.labels], dtype=torch.bool)

    def group_tensor(self) -> Tensor:
        """int64 [N]: index into the sorted distinct groups, -1 = none."""
        number = {g: i for i, g in enumerate(sorted(set(self.groups) - {""}))}
        return torch.tensor([number[g] if g else -1 for g in self.groups], dtype=torch.int64)

    def fingerprint(self) -> str:
        """16 hex digits of what decides the learning: files, labels, groups, splits; not the place."""
        digest = hashlib.sha256(json.dumps([self.classes, self.multilabel]).encode())
        for column in (self.keys, self.labels, self.groups, self.splits, self.sha256):
            digest.update("\0".join(column).encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()[:16]

    def write(self, path: str | os.PathLike[str]) -> None:
        """One file, atomically: a line `# {json}`, then CSV with the columns of `COLUMNS`."""
        head = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint(),
            "name": self.name,
            "root": self.place,
            "classes": self.classes,
            "multilabel": self.multilabel,
            "synthetic": self.synthetic,
            "notes": self.notes,
            "bad": [[b.key, b.why] for b in self.bad],
            "depth": self.depth,
            "window": self.window,
        }
        with replacing(Path(path)) as temporary, open(temporary, "w", newline="", encoding="utf-8") as f:
            f.write(f"# {json.dumps(head)}\n")
            out = csv.writer(f, lineterminator="\n")
            out.writerow(COLUMNS)
            columns = (self.keys, self.labels, self.groups, self.splits, self.sha256, self.sizes)
            out.writerows(zip(range(len(self)), *columns, strict=True))

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Manifest:
        """What `write` wrote. Raises DataError when the file is absent, broken or was changed by hand."""
        try:
            with open(path, newline="", encoding="utf-8") as f:
                head = json.loads(f.readline().removeprefix("# "))
                found = _from_rows(head, csv.reader(f))
        except OSError as error:
            raise DataError(f"cannot read the manifest {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise DataError(f"{path} is no manifest of schema {SCHEMA} ({error}); make it again") from error
        if found.fingerprint() != head.get("fingerprint"):
            raise DataError(f"{path} is cut off or changed: its rows do not match its header; make it again")
        return found


def _from_rows(head: JSON, rows: Iterable[list[str]]) -> Manifest:
    if head["schema"] != SCHEMA:
        raise ValueError(f"its schema is {head['schema']}")
    reader = iter(rows)
    if next(reader, None) != COLUMNS:
        raise ValueError(f"its columns are not {','.join(COLUMNS)}")
    columns: list[list[str]] = [[] for _ in COLUMNS]
    for row in reader:  # zip(*reader) would hold a million lists at once: four times slower
        for column, cell in zip(columns, row, strict=True):
            column.append(cell)
    _, keys, labels, groups, splits, sha256, sizes = map(tuple, columns)
    return Manifest(
        name=head["name"],
        root=Path(head["root"]),
        keys=keys,
        labels=labels,
        groups=groups,
        splits=splits,
        sha256=sha256,
        sizes=tuple(int(size) for size in sizes),
        classes=tuple(head["classes"]),
        multilabel=head["multilabel"],
        bad=tuple(Bad(key, why) for key, why in head["bad"]),
        synthetic=head["synthetic"],
        notes=tuple(head["notes"]),
        depth=head.get("depth", 8),  # manifests written before there was 16 bit
        window=Window(*head["window"]) if head.get("window") else None,
    )


def find_classes(labels: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """Sorted class names of a label column, and whether it is multi-label (any label contains `|`)."""
    distinct = set(labels) - {""}
    if not any("|" in label for label in distinct):
        return tuple(sorted(distinct)), False
    return tuple(sorted({c for label in distinct for c in label.split("|")} - {"", NEGATIVE})), True


class replacing:
    """Context: a temporary path beside `path` that takes its place on success and vanishes on failure."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")  # not mkstemp: it is private
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.temporary.chmod(0o644)  # others may read it, whatever the umask
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)
