"""The webdataset stream: images out of tars, by the plan through an offset index; nothing is read in sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cass_scale.data.folder import Files
from cass_scale.data.index import check_size
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.data.ranges import LocalRanges, read_checked
from cass_scale.data.shards import indexes
from cass_scale.data.stream import PlanStream, Source
from cass_scale.errors import DataError


class WebDatasetStream(PlanStream):
    """A PlanStream over the shards of a folder; `options` are PlanStream's."""

    def __init__(self, manifest: Manifest, plan: Plan, **options: Any) -> None:
        super().__init__(manifest, plan, Shards(manifest), **options)


def source_of(manifest: Manifest) -> Source:
    """The images of a manifest wherever they lie, for what reads files and tars alike."""
    return Shards(manifest) if manifest.tars else Files(manifest)


class Shards:
    """The images of a manifest out of the tars below its root: a Source. Row i is the i-th image of the shards.

    Every image is held against the manifest's sha256 when it is read: a shard that was changed, cut or
    replaced since is an error, never another picture. Raises DataError when index, tars and manifest disagree.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.files = manifest, LocalRanges()
        self.paths: list[Path] = []
        counts: list[int] = []
        offsets: list[int] = []
        same = True
        for index in indexes(manifest.root):  # one after the other: a million samples would not need to lie in memory
            check_size(index, manifest.root)
            rows = slice(len(offsets), len(offsets) + len(index.samples))
            same &= manifest.sha256[rows] == tuple(s.sha256 for s in index.samples)
            same &= manifest.sizes[rows] == tuple(s.length for s in index.samples)
            self.paths.append(manifest.root / index.tar)
            counts.append(len(index.samples))
            offsets += [s.offset for s in index.samples]
        if not same or len(offsets) != len(manifest):
            raise DataError(
                f"the manifest and the shards of {manifest.root} do not belong together "
                f"({len(manifest)} and {len(offsets)} images, or others); make the shards again"
            )
        self.shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self.offset = np.array(offsets, dtype=np.int64)

    def read(self, row: int) -> bytes:
        """The bytes of one image, checked. Raises BadImage."""
        size, sha256 = self.manifest.sizes[row], self.manifest.sha256[row]
        return read_checked(self.files, self.paths[self.shard[row]], int(self.offset[row]), size, sha256)

    def name(self, row: int) -> str:
        """Shard, sample and place."""
        return f"{self.paths[self.shard[row]]}: {self.manifest.keys[row]} at byte {self.offset[row]}"
