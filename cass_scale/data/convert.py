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
from typing import ClassVar, Literal

import PIL
import torch

from cass_scale.data.ahead import in_order, threads
from cass_scale.data.decode import BadImage
from cass_scale.data.index import SCHEMA, SUFFIX, Sample, ShardIndex, check_size, file_sha256, shard_name
from cass_scale.data.layouts import MADE, MANIFEST, SHARDS
from cass_scale.data.manifest import Manifest, replacing
from cass_scale.data.parts import plain
from cass_scale.data.shrink import Encoded, Recipe, shrink
from cass_scale.data.stream import Source, gone_bad
from cass_scale.errors import ConfigError, DataError
from cass_scale.types import JSON

BLOCK = tarfile.BLOCKSIZE
PROBED = 32  # images encoded to estimate the size of the whole
ALLOWANCE = 1.1  # on that estimate, when the disk is asked
# Versions differ in bytes.
ENCODER = {"Pillow": PIL.__version__, "torch": torch.__version__, "zlib": zlib.ZLIB_RUNTIME_VERSION}
AHEAD = 8  # images encoded in advance, per worker


@dataclass(frozen=True)
class Conversion:
    """What becomes what: row i of `manifest`, read from `source`, becomes sample i of the tars in `out`."""

    manifest: Manifest
    source: Source
    out: Path
    recipe: Recipe
    per_shard: int
    stored: ClassVar[Literal["tars", "beton"]] = "tars"
    parts: ClassVar[str] = "shards"
    in_order: ClassVar[bool] = False  # whether a shard can only be made when those before it are

    @property
    def shards(self) -> int:
        """How many there will be."""
        return -(-len(self.manifest) // self.per_shard)

    @property
    def keeps_bytes(self) -> bool:
        """Whether every image is stored as it is."""
        return self.recipe.size is None and all(map(plain, self.manifest.keys))

    def rows(self, shard: int) -> range:
        """The rows that this shard holds."""
        return range(shard * self.per_shard, min(len(self.manifest), (shard + 1) * self.per_shard))

    def tar(self, shard: int) -> Path:
        """Where its tar lies."""
        return self.out / f"{shard_name(shard)}.tar"

    def index(self, shard: int) -> Path:
        """Where its index lies; it is written last, so a shard with an index is whole."""
        return self.out / f"{shard_name(shard)}{SUFFIX}"

    def head(self) -> JSON:
        """All that decides the bytes."""
        recipe = asdict(self.recipe)
        return {
            "schema": SCHEMA,
            "format": "webdataset",
            "shards": self.shards,
            "samples_per_shard": self.per_shard,
            **(recipe if self.recipe.size else {"size": None}),
            "source": self.manifest.fingerprint(),
            "encoder": None if self.keeps_bytes else ENCODER,
        }

    def note(self) -> str:
        """For the manifest: what was done to the images, "" for nothing."""
        if self.recipe.size is None:
            return ""
        lossless = self.recipe.quality is None or self.manifest.depth > 8
        size, kind = self.recipe.size, "PNG" if lossless else f"JPEG {self.recipe.quality}"
        return f"images over {size} px were brought to {size} px ({self.recipe.resize}, {kind})"

    def encode(self, row: int) -> Encoded:
        """One image as it will lie in its shard. Raises DataError when the file is not what was scanned."""
        try:
            data = self.source.read(row)
            if hashlib.sha256(data).hexdigest() == self.manifest.sha256[row]:
                return self.store(row, data)
        except BadImage as error:
            raise DataError(gone_bad(self.source, row, error)) from error
        raise DataError(f"{self.source.name(row)} has changed since it was scanned; convert into a new folder")

    def store(self, row: int, data: bytes) -> Encoded:
        """What becomes of the bytes of a row's file. Raises BadImage."""
        return shrink(data, self.recipe, repack=not plain(self.manifest.keys[row]))

    def sample(self, row: int, offset: int, image: Encoded) -> Sample:
        """Its entry in the index; named by the row, which is unique, has no dot and says nothing about a patient."""
        about = (self.manifest.labels[row], self.manifest.groups[row], self.manifest.splits[row])
        digest = hashlib.sha256(image.data).hexdigest()
        return Sample(f"{row:09d}.{image.extension}", offset, len(image.data), digest, *about)

    def finished(self, shard: int) -> bool:
        """Whether it is made, with a good index."""
        try:
            index = ShardIndex.read(self.index(shard))
            self.check(index)
        except DataError:  # absent, or broken: it is made again
            return False
        return len(index.samples) == len(self.rows(shard))

    def check(self, index: ShardIndex) -> None:
        """Raise DataError unless what the index speaks of is there."""
        check_size(index, self.out)

    def room(self, lengths: Sequence[int], rows: int, shards: int) -> int:
        """Bytes that so many rows take when some of their images, or all, have these lengths."""
        images = sum(map(_padded, lengths)) * rows // len(lengths)
        return images + rows * 3 * BLOCK + shards * tarfile.RECORDSIZE // 2  # two headers and the json per image

    def write_shard(self, shard: int, images: Iterator[Encoded], progress: Callable[[], None]) -> None:
        """Make one shard of the next images; its index lies on the disk when this returns."""
        samples = []
        with replacing(self.tar(shard)) as temporary:
            with open(temporary, "wb") as raw:
                with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    for row, image in zip(self.rows(shard), images, strict=False):
                        samples.append(self._add_sample(tar, row, image))
                        progress()
                raw.flush()
                os.fsync(raw.fileno())
            size, digest = temporary.stat().st_size, file_sha256(temporary)
        index = ShardIndex(self.tar(shard).name, size, digest, tuple(samples), depth=self.manifest.depth)
        index.write(self.index(shard))

    def _add_sample(self, tar: tarfile.TarFile, row: int, image: Encoded) -> Sample:
        """Image, then json."""
        sample = self.sample(row, tar.offset + BLOCK, image)  # such short names need one header block
        about = {"label": sample.label, "group": sample.group, "split": sample.split, "key": self.manifest.keys[row]}
        _add(tar, sample.key, image.data)
        _add(tar, f"{row:09d}.json", json.dumps(about, ensure_ascii=False).encode())
        return sample

    def samples(self) -> Iterator[Sample]:
        """All of them, from the indexes of the shards."""
        for shard in range(self.shards):
            yield from ShardIndex.read(self.index(shard)).samples

    def made(self) -> Manifest:
        """The source's manifest, with the sizes and checksums of the images as they lie in the shards."""
        columns = [(sample.sha256, sample.length) for sample in self.samples()]
        return replace(
            self.manifest,
            root=Path("."),  # wherever the shards are moved to
            url="",
            sha256=tuple(digest for digest, _ in columns),
            sizes=tuple(length for _, length in columns),
            notes=tuple(filter(None, (*self.manifest.notes, self.note()))),
        )

    def finish(self) -> Manifest:
        """Write what is written last, the manifest of all shards."""
        made = self.made()
        made.write(self.out / MANIFEST)
        return made

    def size(self) -> int:
        """Bytes of what was made."""
        return sum(self.tar(shard).stat().st_size for shard in range(self.shards))


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
        f"{k}: {old.get(k)} -> {new.get(k)}"
        for k in sorted((old.keys() | new.keys()) - {MADE})
        if old.get(k) != new.get(k)
    ]
    if changed:
        raise ConfigError(
            f"out={job.out} holds another conversion ({'; '.join(changed)}): "
            "give the same options to continue it, or another out"
        )


def unfinished(job: Conversion) -> list[int]:
    """Numbers of the shards that are still to be made; those with a good index are left as they are."""
    missing = [shard for shard in range(job.shards) if not job.finished(shard)]
    return list(range(missing[0], job.shards)) if missing and job.in_order else missing


def estimate(job: Conversion, todo: Sequence[int]) -> int:
    """Bytes that the shards `todo` will take: counted when images keep their bytes, else drawn from some of them."""
    rows = [row for shard in todo for row in job.rows(shard)]
    if not rows:
        return 0
    if job.keeps_bytes:
        lengths = [job.manifest.sizes[row] for row in rows]
    else:
        lengths = [len(job.encode(row).data) for row in rows[:: max(1, len(rows) // PROBED)]]
    return job.room(lengths, len(rows), len(todo))


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def convert(job: Conversion, todo: Sequence[int], workers: int, progress: Callable[[], None]) -> Manifest:
    """Make the shards `todo`, then what binds all of them together; `progress` is called after each image.

    Raises DataError when a source file has changed or the disk is full; finished shards stay.
    """
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        for left in job.out.glob(".*.tmp"):
            left.unlink()  # of a conversion that was killed
        if todo:
            write_head(job.out, job.head())
        with threads(workers) as pool:  # Pillow and hashlib let go of the interpreter while they work
            images = in_order(pool, job.encode, (row for shard in todo for row in job.rows(shard)), AHEAD * workers)
            for shard in todo:
                job.write_shard(shard, images, progress)
        made = job.finish()
    except OSError as error:
        raise DataError(
            f"out={job.out} cannot be written: {error.strerror}; finished shards are kept: "
            "mend that, then run the same command again"
        ) from error
    return replace(made, root=job.out, stored=job.stored)


def write_head(out: Path, head: JSON) -> None:
    """shards.json, atomically."""
    with replacing(out / SHARDS) as temporary:
        temporary.write_text(json.dumps(head, indent=1) + "\n")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime, uid, gid 0 and no owner's name: nothing of this machine
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, BytesIO(data))
