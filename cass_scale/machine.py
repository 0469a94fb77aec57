"""What several rooms ask of the machine: cores, room on a disk, and the folder for what can be made again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """CASS_SCALE_CACHE, or ~/.cache/cass_scale. Not created here."""
    return Path(os.environ.get("CASS_SCALE_CACHE") or "~/.cache/cass_scale").expanduser().absolute()


def free_disk(folder: Path) -> int:
    """Bytes free on the disk where `folder` lies or would be made."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
