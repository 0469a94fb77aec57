"""Clocks, spans and device-hours. Nothing here waits for a device; CUDA spans are event pairs read later.

Two totals, as in big_vision's Chrono: `total` is what a bill shows (process lifetimes times devices, restarts
and lost work included), `train` is data + views + step only.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")
TRAIN_SPANS = ("data", "views", "step")


class Meter:
    """Spans in seconds by name, and the lifetime of this and all earlier processes of the run.

    `born` is the process's start in `time.time()` seconds, so that imports are billed too; default: now.
    """

    def __init__(self, device: torch.device, world: int = 1, born: float | None = None) -> None:
        self.device, self.world = device, world
        self.spans: dict[str, float] = {}
        self.earlier = 0.0  # lifetimes of the processes before this one
        self._start = time.perf_counter() - (max(0.0, time.time() - born) if born else 0.0)
        self._pending: deque[tuple[str, Any, Any]] = deque()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block: host clock on CPU, a pair of events on CUDA."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            try:
                yield
            finally:
                self.add(name, time.perf_counter() - start)
            return
        pair = (_event(), _event())
        pair[0].record()
        try:
            yield
        finally:
            pair[1].record()
            self._pending.append((name, *pair))

    @contextmanager
    def host(self, name: str) -> Iterator[None]:
        """Time a block on the host clock, whatever the device: file writes, evaluation, waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def wait(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`; the time spent waiting for each is a span on the host clock."""
        source = iter(items)
        while True:
            start = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            finally:
                self.add(name, time.perf_counter() - start)
            yield item

    def add(self, name: str, seconds: float) -> None:
        """Book `seconds` under `name`."""
        self.spans[name] = self.spans.get(name, 0.0) + seconds

    def settle(self) -> None:
        """Book the CUDA spans whose events have completed; never waits."""
        while self._pending and self._pending[0][2].query():
            name, start, end = self._pending.popleft()
            self.add(name, start.elapsed_time(end) / 1000)

    def elapsed(self) -> float:
        """Seconds of life of this run, all its processes together."""
        return self.earlier + time.perf_counter() - self._start

    def device_hours(self) -> dict[str, float]:
        """`total` = lifetimes x devices; `train` = data + views + step, times devices."""
        train = sum(self.spans.get(name, 0.0) for name in TRAIN_SPANS)
        return {"total": self.elapsed() * self.world / 3600, "train": train * self.world / 3600}

    def report(self) -> dict[str, Any]:
        """Spans with what is left over as `other`, device-hours, and peak memory in bytes."""
        self.settle()
        other = max(0.0, self.elapsed() - sum(self.spans.values()))
        return {
            "spans": {**self.spans, "other": other},
            "device_hours": self.device_hours(),
            "peak_memory_bytes": peak_memory(self.device),
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self.settle()
        return {"spans": dict(self.spans), "elapsed": self.elapsed()}

    def load(self, state: dict[str, Any], lost_until: float) -> None:
        """Continue an earlier process; its work from the checkpoint to `lost_until` (s) is billed as `lost`.

        Spans of this process up to here (imports, data) are kept beside the earlier ones.
        """
        for name, seconds in state["spans"].items():
            self.add(name, seconds)
        self.earlier = max(state["elapsed"], lost_until)
        self.add("lost", self.earlier - state["elapsed"])


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on CUDA, the process's peak resident set on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
