"""A set of images written as one .beton, part after part: the same bytes for the same input, whatever was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from cass_scale.data import beton
from cass_scale.data.convert import ENCODER, Conversion, write_head
from cass_scale.data.decode import BadImage
from cass_scale.data.index import SCHEMA, SUFFIX, Sample, ShardIndex, file_sha256
from cass_scale.data.layouts import BETON, MADE, MANIFEST, SHARDS
from cass_scale.data.manifest import Manifest
from cass_scale.data.shrink import Encoded, compress, resized
from cass_scale.data.stream import gone_bad
from cass_scale.errors import DataError
from cass_scale.types import JSON

Mode = Literal["raw", "jpg", "mixed"]
RAW = "raw"  # extension of bare pixels, uint8 [H, W, 3]


@dataclass(frozen=True)
class BetonConversion(Conversion):
    """A Conversion into one .beton, where sample i is row i, that grows in parts under a hidden name.

    What is a shard elsewhere is a part: a run of rows. Its index goes into a journal when the part lies on the disk;
    what is behind the last index is written anew. Where a sample lies depends on those before it, not on the parts.
    """

    mode: Mode = "raw"
    jpg_share: float = 0.5  # of mode=mixed
    stored: ClassVar[Literal["tars", "beton"]] = "beton"
    parts: ClassVar[str] = "parts of one beton"
    in_order: ClassVar[bool] = True

    @property
    def keeps_bytes(self) -> bool:
        """Never: FFCV knows pixels and JPEG only."""
        return False

    @property
    def goal(self) -> Path:
        """Where it lies when it is whole."""
        return self.out / BETON

    @property
    def growing(self) -> Path:
        """Where it lies until then."""
        return self.out / f".{BETON}.part"

    def index(self, shard: int) -> Path:
        """The journal's entry for a part; all go when the beton is whole."""
        return self.out / f".part-{shard:06d}{SUFFIX}"

    def head(self) -> JSON:
        """All that decides the bytes."""
        return {
            "schema": SCHEMA,
            "format": "ffcv",
            "mode": self.mode,
            "size": self.recipe.size,
            **({"resize": self.recipe.resize} if self.recipe.size else {}),
            **({"quality": self.recipe.quality} if self.mode != "raw" else {}),
            **({"jpg_share": self.jpg_share} if self.mode == "mixed" else {}),
            "source": self.manifest.fingerprint(),
            "encoder": ENCODER,
        }

    def note(self) -> str:
        """For the manifest: how the images are stored."""
        jpg = f"JPEG {self.recipe.quality}"
        kind = {"raw": "bare pixels", "jpg": jpg, "mixed": f"{jpg} for a share of {self.jpg_share:g}, else bare pixels"}
        width, height = self.shape
        return f"images stored as {width} x {height} px, {kind[self.mode]}"

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(width, height) of every image: that of the first. Raises DataError."""
        try:
            shape = resized(self.source.read(0), self.recipe).size
        except BadImage as error:
            raise DataError(gone_bad(self.source, 0, error)) from error
        if max(shape) > beton.MAX_SIDE:
            raise DataError(f"FFCV holds images of up to {beton.MAX_SIDE} px, these have {max(shape)}; give a size")
        return shape

    @property
    def page(self) -> int:
        """Bytes of a page."""
        return beton.page_size(self.shape[0] * self.shape[1] * 3)

    def store(self, row: int, data: bytes) -> Encoded:
        """Bare pixels or a JPEG. Raises BadImage, and DataError for an image of another size than the first."""
        image = resized(data, self.recipe)
        if image.size != self.shape:
            (width, height), first = image.size, " x ".join(map(str, self.shape))
            raise DataError(
                f"{self.source.name(row)} comes to {width} x {height} px and {self.source.name(0)} to {first}: "
                "FFCV reads batches of one size only; give size=PX with resize=square, and a new out"
            )
        return compress(image, self.recipe.quality) if self.as_jpg(row) else Encoded(np.asarray(image).tobytes(), RAW)

    def as_jpg(self, row: int) -> bool:
        """Whether a row is stored as JPEG; those of mode=mixed are spread evenly."""
        share = {"raw": 0.0, "jpg": 1.0, "mixed": self.jpg_share}[self.mode]
        return int((row + 1) * share) > int(row * share)

    @property
    def whole(self) -> bool:
        """Whether nothing is left to do; the beton takes its name last."""
        try:
            made = json.loads((self.out / SHARDS).read_text())[MADE]
            return (self.out / MANIFEST).is_file() and self.goal.stat().st_size == made["bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def finished(self, shard: int) -> bool:
        """Whether it is in the journal, or all of them in the beton."""
        return self.whole or super().finished(shard)

    def check(self, index: ShardIndex) -> None:
        """Raise DataError unless what the index speaks of is there."""
        if not self.growing.is_file() or self.growing.stat().st_size < index.size:
            raise DataError(f"{self.growing} is cut off before byte {index.size}")

    def room(self, lengths: Sequence[int], rows: int, shards: int) -> int:
        """Bytes that so many rows take when some of their images have these lengths."""
        per_page = self.page // max(1, sum(lengths) // len(lengths))
        return -(-rows // per_page) * self.page + rows * (beton.SAMPLE.itemsize + beton.PLACE.itemsize)

    def write_shard(self, shard: int, images: Iterator[Encoded], progress: Callable[[], None]) -> None:
        """Append the rows of one part; its entry in the journal lies on the disk when this returns."""
        first = beton.first_page(len(self.manifest), self.page)
        end = ShardIndex.read(self.index(shard - 1)).size if shard else first
        samples = []
        self.growing.touch()
        with open(self.growing, "r+b") as file:
            file.truncate(end)
            for row, image in zip(self.rows(shard), images, strict=False):
                at = beton.fit(end, len(image.data), self.page)
                file.seek(at)
                file.write(image.data)
                end = at + len(image.data)
                samples.append(self.sample(row, at, image))
                progress()
            file.flush()
            os.fsync(file.fileno())
        ShardIndex(self.growing.name, end, "", tuple(samples)).write(self.index(shard))

    def finish(self) -> Manifest:
        """Frame the beton, describe it, and give it its name; then the journal is not needed any more."""
        if not self.whole:
            made, samples = self.made(), list(self.samples())
            with open(self.growing, "r+b") as file:
                beton.write_frame(file, self._rows(samples), np.array(made.sizes), self.page)
            found = {"bytes": self.growing.stat().st_size, "sha256": file_sha256(self.growing)}
            write_head(self.out, self.head() | {MADE: {**found, "manifest": made.fingerprint()}})
            made.write(self.out / MANIFEST)
            os.replace(self.growing, self.goal)
        for shard in range(self.shards):
            self.index(shard).unlink(missing_ok=True)
        return Manifest.read(self.out / MANIFEST)

    def made(self) -> Manifest:
        """As for tars, with 8 bit: FFCV knows no more."""
        return replace(super().made(), depth=8, window=None)

    def _rows(self, samples: list[Sample]) -> beton.Samples:
        """Metadata; the label is the number of its class, -1 for none or several."""
        rows: beton.Samples = np.zeros(len(samples), beton.SAMPLE)
        rows["image"]["mode"] = [beton.RAW if sample.key.endswith(f".{RAW}") else beton.JPG for sample in samples]
        rows["image"]["width"], rows["image"]["height"] = self.shape
        rows["image"]["address"] = [sample.offset for sample in samples]
        rows["label"] = -1 if self.manifest.multilabel else self.manifest.label_tensor().numpy()
        return rows

    def size(self) -> int:
        """Bytes of what was made."""
        return self.goal.stat().st_size
