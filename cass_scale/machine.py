"""What several rooms ask of the machine: its processor, the cores this process may use, the cache folder."""

from __future__ import annotations

import os
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
