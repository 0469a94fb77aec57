"""What several rooms ask of the machine: cores this process may use, and the folder for what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """CASS_SCALE_CACHE, or ~/.cache/cass_scale. Not created here."""
    return Path(os.environ.get("CASS_SCALE_CACHE") or "~/.cache/cass_scale").expanduser().absolute()
