"""A bounded copy, on the local disk, of what was read of remote files; shared by all processes of a machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from cass_scale.data.ranges import LocalRanges

DISK_SHARE = 0.5  # of what the disk would have free without the cache: never more, whatever the limit
SHARERS = 64  # processes that may fill at once without passing the limit: each is granted this part of the room
BLOCK = 4096  # bytes; the disk counts in these
LOOK_AGAIN = 60.0  # seconds until a full cache is looked at again
OPENED = ".opened"  # its time tells when a set was last opened


class RangeCache:
    """Ranges of the files of one set, kept in sparse files below `folder`; `limit` (bytes) is over all sets beside it.

    A range is written where it lies in the remote file, without a lock. The reader holds it against a checksum, so a
    torn, spoilt or emptied range costs one more read and nothing else; a crash leaves nothing to mend.

    The sets that were opened longest ago give way first. Within a set what came first stays: every epoch reads
    each image once in another order, so giving up one image for another would only lower the share of hits.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._files = LocalRanges()
        self._granted, self._full_until = 0, 0.0
        if limit:
            with contextlib.suppress(OSError):
                (folder / OPENED).touch()

    def open_range(self, path: Path, offset: int, length: int) -> bytes:
        """What is kept, to be held against its checksum: zeros, or fewer bytes, where nothing is. Raises OSError."""
        return self._files.open_range(path, offset, length) if self.limit else b""

    def put(self, path: Path, offset: int, data: bytes) -> None:
        """Keep a range if there is room; a disk that is full or read-only is no error."""
        cost = len(data) + BLOCK
        if cost > self._granted:
            self._granted = self._grant(cost)
        if cost <= self._granted:
            self._granted -= cost
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    os.pwrite(handle, data, offset)
                finally:
                    os.close(handle)

    def _grant(self, cost: int) -> int:
        """Bytes that this process may write before it looks at the disk again."""
        if not self.limit or time.monotonic() < self._full_until:
            return 0
        try:
            granted = max(0, self._make_room()) // SHARERS
        except OSError:
            granted = 0
        if granted < cost:
            self._full_until = time.monotonic() + LOOK_AGAIN
        return granted

    def _make_room(self) -> int:
        """Bytes below the limit once older sets have given way; files are emptied, since other processes hold them."""
        sets = sorted((p for p in self.folder.parent.iterdir() if p.is_dir()), key=_opened)
        sizes = {tar: tar.stat().st_blocks * 512 for place in sets for tar in sorted(place.glob("*.tar"))}
        used = sum(sizes.values())
        limit = min(self.limit, int((used + shutil.disk_usage(self.folder).free) * DISK_SHARE))
        older = True
        for tar, size in sizes.items():
            older = older and tar.parent != self.folder
            if used > (limit - limit // 8 if older else limit):
                os.truncate(tar, 0)
                used -= size
        return limit - used


def _opened(place: Path) -> float:
    try:
        return (place / OPENED).stat().st_mtime
    except OSError:
        return 0.0
