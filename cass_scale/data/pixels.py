"""Decoded images kept in memory that all reader processes fill and read."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

CGROUP = Path("/sys/fs/cgroup")


class PixelCache:
    """A place for each of `ids`: uint8 or uint16 [3, size, size]. Empty at first; forked processes share it.

    Anonymous shared memory, not /dev/shm, which containers often limit to 64 MB; pages are taken as they
    are filled. No lock: an id occurs at most once per epoch, so no two readers touch a place between two
    epochs' hand-overs.
    """

    def __init__(self, ids: Tensor, rows: int, size: int, dtype: torch.dtype = torch.uint8) -> None:
        memory = np.frombuffer(mmap.mmap(-1, bytes_needed(len(ids), size, dtype)), dtype=np.uint8)
        self._filled = memory[-len(ids) :]
        self._pixels = torch.from_numpy(memory[: -len(ids)]).view(dtype).view(len(ids), 3, size, size)
        self._slot = torch.full((rows,), -1)
        self._slot[ids] = torch.arange(len(ids))

    def get(self, index: int) -> Tensor | None:
        """The image of this id, or None while nobody has put it."""
        slot = int(self._slot[index])
        return self._pixels[slot] if self._filled[slot] else None

    def put(self, index: int, image: Tensor) -> None:
        """Keep a copy of `image`."""
        slot = int(self._slot[index])
        self._pixels[slot] = image
        self._filled[slot] = 1


def bytes_needed(images: int, size: int, dtype: torch.dtype = torch.uint8) -> int:
    """What a PixelCache of that many images takes when full."""
    return images * (3 * size * size * dtype.itemsize + 1)


def available_memory() -> int:
    """Bytes this process could still take: of the machine, or of its container where that is less."""
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # not in a cgroup, or "max": no limit
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(stat.get("inactive_file", 0)))
    return max(0, free)


def fits(images: int, size: int, cache_bytes: int, ranks: int, dtype: torch.dtype = torch.uint8) -> bool:
    """Whether the images fit into `cache_bytes` and, for all ranks of this node, half the free memory."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    need = bytes_needed(images, size, dtype)
    return need <= cache_bytes and need * ranks <= available_memory() // 2
