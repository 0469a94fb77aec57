"""A set of images written as WebDataset shards: the same bytes for the same input, whatever was killed on the way."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

import PIL
import torch

from cass_scale.data.ahead import in_order, threads
from cass_scale.data.decode import BadImage
from cass_scale.data.index import MANIFEST, SCHEMA, SUFFIX, Sample, ShardIndex, check_size, file_sha256, shard_name
from cass_scale.data.layouts import SHARDS
from cass_scale.data.manifest import Manifest, replacing
from cass_scale.data.parts import plain
from cass_scale.data.shrink import Encoded, Recipe, shrink
from cass_scale.data.stream import Source, gone_bad
from cass_scale.errors import ConfigError, DataError
from cass_scale.types import JSON

BLOCK = tarfile.BLOCKSIZE
PROBED = 32  # images encoded to estimate the size of the whole
ALLOWANCE = 1.1  # on that estimate, when the disk is asked
AHEAD = 8  # images encoded in advance, per worker


@dataclass(frozen=True)
class Conversion:
    """What becomes what: row i of `manifest`, read from `source`, becomes sample i of the shards in `out`."""

    manifest: Manifest
    source: Source
    out: Path
    recipe: Recipe
    per_shard: int

    @property
    def shards(self) -> int:
        """How many there will be."""
        return -(-len(self.manifest) // self.per_shard)

    def rows(self, shard: int) -> range:
        """The rows that this shard holds."""
        return range(shard * self.per_shard, min(len(self.manifest), (shard + 1) * self.per_shard))

    def tar(self, shard: int) -> Path:
        """Where its tar lies."""
        return self.out / f"{shard_name(shard)}.tar"

    def index(self, shard: int) -> Path:
        """Where its index lies; it is written last, so a shard with an index is whole."""
        return self.out / f"{shard_name(shard)}{SUFFIX}"

    @property
    def keeps_bytes(self) -> bool:
        """Whether every image is passed on as it is."""
        return self.recipe.size is None and all(map(plain, self.manifest.keys))

    def head(self) -> JSON:
        """All that decides the bytes."""
        recipe = asdict(self.recipe)
        versions = {"Pillow": PIL.__version__, "torch": torch.__version__, "zlib": zlib.ZLIB_RUNTIME_VERSION}
        return {
            "schema": SCHEMA,
            "format": "webdataset",
            "shards": self.shards,
            "samples_per_shard": self.per_shard,
            **(recipe if self.recipe.size else {"size": None}),
            "source": self.manifest.fingerprint(),
            "encoder": None if self.keeps_bytes else versions,  # they differ in bytes
        }

    def encode(self, row: int) -> Encoded:
        """One image as it will lie in the tar. Raises DataError when the file is not what was scanned."""
        try:
            data = self.source.read(row)
            if hashlib.sha256(data).hexdigest() == self.manifest.sha256[row]:
                return shrink(data, self.recipe, repack=not plain(self.manifest.keys[row]))
        except BadImage as error:
            raise DataError(gone_bad(self.source, row, error)) from error
        raise DataError(f"{self.source.name(row)} has changed since it was scanned; convert into a new folder")


def refuse_other(job: Conversion) -> None:
    """Raise ConfigError when `out` holds anything but the same conversion, finished or not."""
    if job.out.exists() and not job.out.is_dir():
        raise ConfigError(f"out={job.out} is a file; give a folder")
    there = [p.name for p in job.out.iterdir() if not p.name.startswith(".")] if job.out.is_dir() else []
    if not there:
        return
    if SHARDS not in there:
        raise ConfigError(f"out={job.out} holds something else ({there[0]}); choose a new folder, or empty this one")
    try:
        old = json.loads((job.out / SHARDS).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"out={job.out}: {SHARDS} cannot be read ({error}); choose a new folder") from error
    new = job.head()
    changed = [
        f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)
    ]
    if changed:
        raise ConfigError(
            f"out={job.out} holds another conversion ({'; '.join(changed)}): "
            "give the same options to continue it, or another out"
        )


def unfinished(job: Conversion) -> list[int]:
    """Numbers of the shards that are still to be made; those with a good index are left as they are."""
    return [shard for shard in range(job.shards) if not _finished(job, shard)]


def _finished(job: Conversion, shard: int) -> bool:
    try:
        index = ShardIndex.read(job.index(shard))
        check_size(index, job.out)
    except DataError:  # absent, or broken: it is made again
        return False
    return len(index.samples) == len(job.rows(shard))


def estimate(job: Conversion, todo: Sequence[int]) -> int:
    """Bytes that the shards `todo` will take: counted when images keep their bytes, else drawn from some of them."""
    rows = [row for shard in todo for row in job.rows(shard)]
    sizes = job.manifest.sizes
    if job.keeps_bytes:
        images = sum(_padded(sizes[row]) for row in rows)
    else:
        some = rows[:: max(1, len(rows) // PROBED)]
        images = sum(_padded(len(job.encode(row).data)) for row in some) * len(rows) // max(1, len(some))
    return images + len(rows) * 3 * BLOCK + len(todo) * tarfile.RECORDSIZE // 2  # two headers and the json per image


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def convert(job: Conversion, todo: Sequence[int], workers: int, progress: Callable[[], None]) -> Manifest:
    """Make the shards `todo`, then the manifest of all; `progress` is called after each image.

    Raises DataError when a source file has changed or the disk is full; finished shards stay.
    """
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        for left in job.out.glob(".shard-*"):
            left.unlink()  # of a conversion that was killed
        _write(job.out / SHARDS, json.dumps(job.head(), indent=1) + "\n")
        with threads(workers) as pool:  # Pillow and hashlib let go of the interpreter while they work
            images = in_order(pool, job.encode, (row for shard in todo for row in job.rows(shard)), AHEAD * workers)
            for shard in todo:
                _write_shard(job, shard, images, progress)
        made = _manifest(job)
        made.write(job.out / MANIFEST)
    except OSError as error:
        raise DataError(
            f"out={job.out} cannot be written: {error.strerror}; finished shards are kept: "
            "mend that, then run the same command again"
        ) from error
    return replace(made, root=job.out)


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def _write_shard(job: Conversion, shard: int, images: Iterator[Encoded], progress: Callable[[], None]) -> None:
    samples = []
    with replacing(job.tar(shard)) as temporary:
        with open(temporary, "wb") as raw:
            with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for row, image in zip(job.rows(shard), images, strict=False):
                    samples.append(_add_sample(tar, job.manifest, row, image))
                    progress()
            raw.flush()
            os.fsync(raw.fileno())
        size, digest = temporary.stat().st_size, file_sha256(temporary)
    depth = job.manifest.depth
    ShardIndex(job.tar(shard).name, size, digest, tuple(samples), depth=depth).write(job.index(shard))


def _add_sample(tar: tarfile.TarFile, manifest: Manifest, row: int, image: Encoded) -> Sample:
    """Image, then json; named by the row, which is unique, has no dot and says nothing about a patient."""
    about = {"label": manifest.labels[row], "group": manifest.groups[row], "split": manifest.splits[row]}
    name = f"{row:09d}.{image.extension}"
    offset = tar.offset + BLOCK  # such short names need one header block
    _add(tar, name, image.data)
    _add(tar, f"{row:09d}.json", json.dumps({**about, "key": manifest.keys[row]}, ensure_ascii=False).encode())
    return Sample(name, offset, len(image.data), hashlib.sha256(image.data).hexdigest(), **about)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime, uid, gid 0 and no owner's name: nothing of this machine
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, BytesIO(data))


def _manifest(job: Conversion) -> Manifest:
    """The source's, with the sizes and checksums of the images as they lie in the shards."""
    found = (ShardIndex.read(job.index(shard)) for shard in range(job.shards))
    columns = [(sample.sha256, sample.length) for index in found for sample in index.samples]
    recipe, notes = job.recipe, list(job.manifest.notes)
    if recipe.size is not None:
        kind = "PNG" if recipe.quality is None or job.manifest.depth > 8 else f"JPEG {recipe.quality}"
        notes.append(f"images over {recipe.size} px were brought to {recipe.size} px ({recipe.resize}, {kind})")
    return replace(
        job.manifest,
        root=Path("."),  # wherever the shards are moved to
        tars=True,
        url="",
        sha256=tuple(digest for digest, _ in columns),
        sizes=tuple(length for _, length in columns),
        notes=tuple(notes),
    )
