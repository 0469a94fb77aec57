"""Folders that are made once: the embedded sets, and what was learnt of a set on first use."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cass_scale.errors import DataError


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
