"""What is made or read once: the embedded sets, what was learnt of a set on first use, large files for a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cass_scale.data.index import file_sha256
from cass_scale.errors import DataError
from cass_scale.machine import cache_folder


def make_once(path: Path, fill: Callable[[Path], None]) -> Path:
    """The folder `path`, made by `fill(temporary folder)` unless it is there; whole or absent, even raced.

    Raises DataError when the place cannot be written.
    """
    if path.is_dir():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            fill(temporary)
            temporary.chmod(0o755)  # mkdtemp makes it private
            _take_place(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot make {path}: {error.strerror}; set CASS_SCALE_CACHE to a writable folder with room"
        ) from error
    return path


def _take_place(temporary: Path, path: Path) -> None:
    try:
        temporary.rename(path)
    except OSError:
        if not path.is_dir():  # else another process was first, with the same content
            raise


def is_still(path: Path, sha256: str) -> bool:
    """Whether the file has this sha256: read whole once, and again when its size, times or inode change."""
    stat = path.stat()
    known = [str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, sha256]
    mark = cache_folder() / "checked" / hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
    if mark.is_file():
        return True
    if file_sha256(path) != sha256:
        return False
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next reading, nothing else
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return True
