"""Bytes out of the middle of files, held against a checksum: the seam between indexes and where shards lie."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from cass_scale.data.decode import BadImage

KEEP_OPEN = 64  # files per process; the usual limit of a system is 1024


class Ranges(Protocol):
    """Where bytes come from."""

    def open_range(self, path: Path, offset: int, length: int) -> bytes:
        """Up to `length` bytes of a file from `offset` on. Raises OSError, or DataError naming the place."""
        ...


class LocalRanges:
    """Reads by (path, offset, length), for any number of threads, and keeps the files last used open.

    An open file stays what it was when somebody replaces it by renaming. A forked copy reads on with the same
    descriptors (pread moves no position); a pickled one opens its own.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._lock = threading.Lock()  # of what is open; a duplicate outlives what another thread closes

    def open_range(self, path: Path, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on, fewer only at the end of the file. Raises OSError."""
        with self._lock:
            handle = os.dup(self._handle(path))
        try:
            data = os.pread(handle, length, offset)
            while 0 < len(data) < length and (more := os.pread(handle, length - len(data), offset + len(data))):
                data += more  # one call reads at most 2 GiB, a network file system perhaps less
            return data
        finally:
            os.close(handle)

    def close(self) -> None:
        """Close all files; they open again when needed."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _handle(self, path: Path) -> int:
        if path not in self._open:
            if len(self._open) >= KEEP_OPEN:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(path)
        return self._open[path]

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[LocalRanges], tuple[()]]:
        return LocalRanges, ()


def read_checked(files: Ranges, path: Path, offset: int, length: int, sha256: str) -> bytes:
    """The bytes of one image, held against its checksum. Raises BadImage."""
    try:
        data = files.open_range(path, offset, length)
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from error
    if len(data) < length:
        raise BadImage("the shard is cut off before its end")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BadImage("its sha256 is not that of the index, the shard was changed")
    return data
