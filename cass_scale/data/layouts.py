"""What a folder says about its images: labels.csv, class folders, split folders, or nothing."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from cass_scale.data.decode import DICOM_MAGIC
from cass_scale.data.parts import READ, file_of
from cass_scale.errors import ConfigError, DataError
from cass_scale.words import is_url

Labels = Literal["auto", "none", "folders", "csv"]
Files = dict[str, tuple[int, int]]  # posix path relative to the root -> (bytes, mtime in ns)

CSV = "labels.csv"
SHARDS = "shards.json"  # marks a folder as written by `cass-scale shard`
MANIFEST = "manifest.csv"  # lies beside it
BETON, MADE = "images.beton", "made"  # what such a folder holds in place of tars; the key of shards.json about it
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
NO_SPLIT = ("", "unlabelled", "unlabeled")


class Listing(NamedTuple):
    """Columns of equal length; '' means not said. `splits` are all '' when the source gives none."""

    keys: list[str]
    labels: list[str]
    groups: list[str]
    splits: list[str]
    notes: list[str]


def walk(root: Path, key: str = "data.path") -> Files:
    """All images under `root` by name, sorted by path; hidden ones left out, links followed once.

    Raises DataError, naming the `key` that gave it, when `root` is no folder, is empty, or holds no image.
    """
    if not root.is_dir():
        what = "is a file; give the folder that holds the images" if root.exists() else "does not exist"
        raise DataError(f"{key}={root} {what}")
    files: Files = {}
    anything = False
    for path in _files(root, set()):
        anything = True
        if _is_image(path):
            stat = path.stat()
            files[path.relative_to(root).as_posix()] = stat.st_size, stat.st_mtime_ns
    if not anything:
        raise DataError(f"{key}={root} is an empty folder; images are looked for as {' '.join(READ)}")
    if not files:
        raise DataError(f"no image in {key}={root}; looked in all its folders for {' '.join(READ)}")
    return dict(sorted(files.items()))


def _is_image(path: Path) -> bool:
    """By its extension; DICOM often has none, or a UID's last number stands there: then by its magic."""
    if path.name.lower().endswith(READ):
        return True
    if path.name == "DICOMDIR" or not (path.suffix == "" or path.suffix[1:].isdigit()):
        return False
    try:
        with open(path, "rb") as f:
            return f.read(132)[128:] == DICOM_MAGIC
    except OSError:
        return False


def shard_format(path: str | os.PathLike[str]) -> Literal["webdataset", "ffcv"] | None:
    """How a place holds images as a set of shards: any URL, ours, or tars with no image and no folder beside them."""
    if is_url(path):
        return "webdataset"
    root = Path(path).expanduser()
    if (root / SHARDS).is_file():
        return "ffcv" if (root / BETON).is_file() else "webdataset"
    try:
        there = [p for p in root.iterdir() if not p.name.startswith(".")]
    except OSError:
        return None
    tars = any(p.suffix == ".tar" for p in there)
    return "webdataset" if tars and not any(p.is_dir() or p.name.lower().endswith(READ) for p in there) else None


def _files(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    here = folder.stat()
    if (here.st_dev, here.st_ino) in seen:
        return
    seen.add((here.st_dev, here.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if entry.is_dir():
                yield from _files(folder / entry.name, seen)
            elif entry.is_file():
                yield folder / entry.name


def read(root: Path, files: Files, labels: Labels) -> Listing:
    """How to read the folder. Raises ConfigError for an unknown `labels`, DataError where it does not fit."""
    if labels not in ("auto", "none", "folders", "csv"):
        raise ConfigError(f"data.labels={labels!r} is unknown; choose auto, none, folders or csv")
    has_csv = (root / CSV).is_file()
    if labels == "csv" and not has_csv:
        raise DataError(f"data.labels=csv, but there is no {root / CSV}; its columns are path,label,split,group_id")
    if has_csv and labels != "folders":
        return _from_csv(root / CSV, files, drop_labels=labels == "none")
    return _from_folders(list(files), labels)


def table(root: Path, labels: Labels) -> dict[str, dict[str, str]]:
    """The rows of the labels.csv that `read` goes by, whole, by image; none where it goes by folders."""
    path = root / CSV
    if labels == "folders" or not path.is_file():
        return {}
    return {_safe_key(row.get("path") or "", path, line): row for line, row in rows(path, "path")}


def _from_folders(keys: list[str], labels: Labels) -> Listing:
    parts = [PurePosixPath(key).parts for key in keys]
    tops = {p[0].lower() for p in parts if len(p) > 1}
    has_splits = bool(tops) and tops <= set(SPLIT_NAMES) and all(len(p) > 1 for p in parts)
    splits = [SPLIT_NAMES[p[0].lower()] if has_splits else "" for p in parts]
    notes = [f"splits from the top folders {', '.join(sorted(tops))}"] if has_splits else []
    below = [p[1:] if has_splits else p for p in parts]
    if labels == "folders" and any(len(p) < 2 for p in below):
        stray = keys[[len(p) < 2 for p in below].index(True)]
        raise DataError(f"data.labels=folders, but {stray} lies in no class folder; use data.labels=none or move it")
    classes = {p[0] for p in below if len(p) > 1}
    labelled = labels == "folders" or (labels == "auto" and len(classes) > 1 and {len(p) for p in below} == {2})
    if labelled:
        notes.insert(0, f"labels from {len(classes)} class folders")
    else:
        why = "as asked (data.labels=none)" if labels == "none" else f"no {CSV} and no class folders (class/image)"
        notes.insert(0, f"no labels: {why}")
    found = [p[0] if labelled else "" for p in below]
    return Listing(keys, found, [""] * len(keys), splits, notes)


def _from_csv(path: Path, files: Files, drop_labels: bool) -> Listing:
    out = Listing([], [], [], [], [])
    first: dict[str, int] = {}
    columns: Counter[str] = Counter()
    for line, row in rows(path, "path"):
        key = _safe_key(row.get("path") or "", path, line)
        if key in first:
            raise DataError(f"{path} line {line}: {key} was already named in line {first[key]}; keep one of them")
        first[key] = line
        column = next((c for c in ("group_id", "patient_id") if (row.get(c) or "").strip()), "")
        columns[column] += bool(column)
        out.keys.append(key)
        out.labels.append("" if drop_labels else tidy(row.get("label") or ""))
        out.groups.append((row.get(column) or "").strip())
        out.splits.append(_split((row.get("split") or "").strip(), path, line))
    if not out.keys:
        raise DataError(f"{path} has no rows; give one per image, or use data.labels=folders or none")
    what = "labels" if any(out.labels) else "no labels: the list of images"
    out.notes.append(f"{what} from {CSV} ({len(out.keys)} rows)")
    out.notes.extend(f"groups from the column {c} ({n} rows)" for c, n in sorted(columns.items()) if n)
    if any(out.splits):
        out.notes.append(f"splits from {CSV}")
        out.splits[:] = [split or "train" for split in out.splits]
    if left := len(files.keys() - {file_of(key) for key in first}):
        out.notes.append(f"{left} images in the folder are not named in {CSV} and are left out")
    return out


def rows(path: Path, *needed: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of a CSV file that has the columns `needed`. Raises DataError."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            reader = csv.DictReader(f, restval="")
            names = list(reader.fieldnames or [])
            for column in needed:
                if column not in names:
                    have = ", ".join(names[:10]) or "nothing"
                    raise DataError(f"{path} has no column `{column}` (it has {have}); needed: {', '.join(needed)}")
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}") from error


def _safe_key(text: str, path: Path, line: int) -> str:
    key = PurePosixPath(text.strip().replace("\\", "/"))
    if not key.parts:
        raise DataError(f"{path} line {line}: the path is empty")
    if key.is_absolute() or ".." in key.parts or key.parts[0].endswith(":"):
        raise DataError(f"{path} line {line}: {text.strip()} leads out of the folder; paths must be relative to it")
    return key.as_posix()


def tidy(label: str) -> str:
    """Labels joined with `|`, sorted, without spaces around them."""
    return "|".join(sorted({part.strip() for part in label.split("|")} - {""}))


def _split(text: str, path: Path, line: int) -> str:
    if text.lower() in NO_SPLIT:
        return ""
    if text.lower() not in SPLIT_NAMES:
        known = ", ".join([*SPLIT_NAMES, NO_SPLIT[1]])
        raise DataError(f"{path} line {line}: unknown split {text!r}; known are {known}, or leave it empty")
    return SPLIT_NAMES[text.lower()]
