"""The webdataset stream: images out of tars, by the plan through an offset index; nothing is read in sequence."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from cass_scale.data.decode import BadImage
from cass_scale.data.folder import Files
from cass_scale.data.index import check_size
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.data.rangecache import RangeCache
from cass_scale.data.ranges import LocalRanges, Ranges, read_checked
from cass_scale.data.remote import RemoteRanges
from cass_scale.data.shards import indexes
from cass_scale.data.stream import PlanStream, Source
from cass_scale.errors import DataError

REMOTE_CACHE_BYTES = 32 << 30


class WebDatasetStream(PlanStream):
    """A PlanStream over shards in a folder or at a URL; `options` are PlanStream's.

    What is read from a URL is kept in the cache folder, `remote_cache_bytes` of it over all sets (0 = nothing).
    """

    def __init__(
        self, manifest: Manifest, plan: Plan, *, remote_cache_bytes: int = REMOTE_CACHE_BYTES, **options: Any
    ) -> None:
        super().__init__(manifest, plan, Shards(manifest, remote_cache_bytes), **options)


def source_of(manifest: Manifest, remote_cache_bytes: int = 0) -> Source:
    """The images of a manifest wherever they lie, for what reads files and tars alike. Raises DataError for a beton."""
    return Files(manifest) if manifest.stored == "files" else Shards(manifest, remote_cache_bytes)


class Shards:
    """The images of a manifest out of the tars below its root or URL: a Source. Row i is the i-th image of the shards.

    Every image is held against the manifest's sha256 when it is read: a shard that was changed, cut or
    replaced since is an error, never another picture. Raises DataError when index, tars and manifest disagree.
    """

    def __init__(self, manifest: Manifest, remote_cache_bytes: int = 0) -> None:
        self.manifest = manifest
        self.files: tuple[Ranges, ...] = (LocalRanges(),)  # the next one where one has not the right bytes
        if manifest.url:
            cache = RangeCache(manifest.root, remote_cache_bytes)
            store = RemoteRanges(manifest.url, cache)
            self.files = cache, store, store  # twice: a byte may be spoilt on the way
        self.paths: list[Path] = []
        counts: list[int] = []
        offsets: list[int] = []
        same = True
        for index in indexes(manifest.root, url=manifest.url):  # a million samples need not lie in memory at once
            if not manifest.url:  # there it would be a request per shard
                check_size(index, manifest.root)
            rows = slice(len(offsets), len(offsets) + len(index.samples))
            same &= manifest.sha256[rows] == tuple(s.sha256 for s in index.samples)
            same &= manifest.sizes[rows] == tuple(s.length for s in index.samples)
            self.paths.append(manifest.root / index.tar)
            counts.append(len(index.samples))
            offsets += [s.offset for s in index.samples]
        if not same or len(offsets) != len(manifest):
            raise DataError(
                f"the manifest and the shards of {manifest.place} do not belong together "
                f"({len(manifest)} and {len(offsets)} images, or others); make the shards again"
            )
        self.shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self.offset = np.array(offsets, dtype=np.int64)

    def read(self, row: int) -> bytes:
        """The bytes of one image, checked. Raises BadImage, and DataError when a store cannot be read."""
        size, sha256 = self.manifest.sizes[row], self.manifest.sha256[row]
        place = self.paths[self.shard[row]], int(self.offset[row]), size, sha256
        for files in self.files[:-1]:
            with contextlib.suppress(BadImage):
                return read_checked(files, *place)
        return read_checked(self.files[-1], *place)

    def name(self, row: int) -> str:
        """Shard, sample and place."""
        tar = self.paths[self.shard[row]].name
        return f"{self.manifest.place}/{tar}: {self.manifest.keys[row]} at byte {self.offset[row]}"
