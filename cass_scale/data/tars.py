"""WebDataset tars of any origin, indexed: nothing is unpacked, and members that would lead out of a folder are refused.

Members whose names agree up to the first dot of the last part are one sample: `a/001.jpg`, `a/001.json`
(https://github.com/webdataset/webdataset, "The WebDataset Format").
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from PIL import Image

from cass_scale.data.decode import DICOM_EXTENSIONS, EXTENSIONS, BadImage, load
from cass_scale.data.index import Sample, ShardIndex, file_sha256
from cass_scale.data.layouts import NO_SPLIT, SPLIT_NAMES
from cass_scale.data.manifest import Bad
from cass_scale.data.ranges import LocalRanges
from cass_scale.errors import DataError

Parts = dict[str, tarfile.TarInfo]  # extension -> member
GROUPS = ("group", "group_id", "patient_id")
CHUNK = 64  # samples per task


def index_tar(path: Path, workers: int | None = None) -> ShardIndex:
    """Every image decoded and hashed once. Raises DataError for a tar that is broken, hostile or ambiguous."""
    try:
        samples = list(_samples(path).items())
        chunks = [samples[i : i + CHUNK] for i in range(0, len(samples), CHUNK)]
        with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
            found = [one for part in pool.map(lambda chunk: _look(path, chunk), chunks) for one in part]
        good = tuple(sample for sample, _ in found if isinstance(sample, Sample))
        bad = tuple(sample for sample, _ in found if isinstance(sample, Bad))
        depth = min((depth for sample, depth in found if isinstance(sample, Sample)), default=8)
        return ShardIndex(path.name, path.stat().st_size, file_sha256(path), good, bad, depth)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _samples(path: Path) -> dict[str, Parts]:
    """Members by sample key, in the order of the tar."""
    found: dict[str, Parts] = {}
    for member in _members(path):
        name = PurePosixPath(member.name)
        stem, dot, extension = name.name.partition(".")
        if member.isdir() or not stem or not dot:  # hidden files and files without extension are nobody's sample
            continue
        parts = found.setdefault(str(name.parent / stem), {})
        if extension.lower() in parts:
            raise DataError(f"{path}: the member {member.name} occurs twice; keys must be unique within a shard")
        parts[extension.lower()] = member
    return found


def _members(path: Path) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            end = tar.offset
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{path} is no whole tar ({error}); copy or make it again") from error
    with open(path, "rb") as raw:  # tarfile takes a broken header in the middle for the end
        raw.seek(end)
        closed = raw.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    if not closed:
        raise DataError(f"{path} is broken or cut off at byte {end}: a tar ends with zeros; copy or make it again")
    for member in members:
        _refuse_hostile(path, member)
    return members


def _refuse_hostile(path: Path, member: tarfile.TarInfo) -> None:
    name = PurePosixPath(member.name)
    what = ""
    if name.is_absolute() or ".." in name.parts:
        what = "leads out of its folder"
    elif not (member.isdir() or member.isreg()) or member.issparse():
        what = "is a link, a device or sparse, not a plain file"
    elif any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in member.name):  # surrogates: tarfile's for other bytes
        what = "has a name with control characters or of another encoding than UTF-8"
    if what:
        raise DataError(f"{path}: the member {member.name!r} {what}; this tar is refused")


def _look(path: Path, samples: list[tuple[str, Parts]]) -> list[tuple[Sample | Bad, int]]:
    """Each with the bits per channel of its image."""
    files = LocalRanges()
    found: list[tuple[Sample | Bad, int]] = []
    for key, parts in samples:
        try:
            found.append(_sample(path, parts, files))
        except BadImage as error:
            found.append((Bad(f"{path.name}/{key}", str(error)), 8))
    return found


def _sample(path: Path, parts: Parts, files: LocalRanges) -> tuple[Sample, int]:
    images = [member for extension, member in parts.items() if f".{extension}" in EXTENSIONS + DICOM_EXTENSIONS]
    if len(images) != 1:
        raise BadImage(f"{len(images)} images in one sample ({', '.join(parts)}); one is needed")
    image = images[0]
    data = files.open_range(path, image.offset_data, image.size)
    depth = 8 if isinstance(load(data, None), Image.Image) else 16
    label, group, split = _about(path, parts, files)
    digest = hashlib.sha256(data).hexdigest()
    return Sample(image.name, image.offset_data, len(data), digest, label, group, split), depth


def _about(path: Path, parts: Parts, files: LocalRanges) -> tuple[str, str, str]:
    """Label, group and split: of the member `json`, the label also of `cls`."""
    texts = {e: files.open_range(path, parts[e].offset_data, parts[e].size) for e in ("json", "cls") if e in parts}
    try:
        known = json.loads(texts.get("json", b"{}"))
        label = known.get("label")
        if isinstance(label, list):
            label = "|".join(sorted(map(str, label)))
        label = texts.get("cls", b"").decode() if label is None else str(label)
        group = next((str(known[name]) for name in GROUPS if known.get(name) not in (None, "")), "")
        split = str(known.get("split") or "").lower()
    except (ValueError, AttributeError) as error:
        raise BadImage(f"its json or cls cannot be read: {error}") from error
    if split not in NO_SPLIT and split not in SPLIT_NAMES:
        raise BadImage(f"unknown split {split!r}; known are {', '.join(SPLIT_NAMES)}")
    return label.strip(), group, SPLIT_NAMES.get(split, "")
