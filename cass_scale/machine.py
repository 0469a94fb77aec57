"""What several rooms ask of the machine: its processor, cores, room on a disk, the cache folder."""

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


def cpu_name() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "cpu")


def free_disk(folder: Path) -> int:
    """Bytes free on the disk where `folder` lies or would be made."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
