"""The right to write into a folder: one process at a time, let go by the kernel even after `kill -9`."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from cass_scale.errors import ConfigError

LOCK = ".lock"


def lock(folder: Path, key: str = "run.dir") -> IO[str]:
    """Hold the folder for this process until it ends.

    Raises ConfigError, naming the configuration's `key`, when another process holds it.
    """
    handle = (folder / LOCK).open("w")
    try:
        # Not flock: forked data workers would inherit it, and they outlive a killed parent by seconds.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # EAGAIN or EACCES, as the system likes
        handle.close()
        raise ConfigError(
            f"{key}={folder} is in use by another process; wait for it or choose another {key}"
        ) from error
    return handle


def busy(folder: Path) -> bool:
    """Whether another process holds the folder, which need not be writable."""
    try:
        with (folder / LOCK).open() as handle:
            fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    return False
