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
        self.now = ""  # the span that is under way
        self.steps = 0  # of this process
        self._loaded: dict[str, float] = {}  # spans of the processes before this one
        self.earlier = 0.0  # lifetimes of the processes before this one
        self._hours = {"total": 0.0, "train": 0.0}  # device-hours of those processes, on as many devices as each had
        self._trained = 0.0  # their seconds of training, which `spans` holds too
        self._peak = 0  # bytes
        self._start = time.perf_counter() - (max(0.0, time.time() - born) if born else 0.0)
        self._pending: deque[tuple[str, Any, Any]] = deque()
        if device.type == "cuda" and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(device)  # what an earlier run of this process took is not ours

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block: host clock on CPU, a pair of events on CUDA."""
        if self.device.type != "cuda":
            with self.host(name):
                yield
            return
        pair = (_event(), _event())
        pair[0].record()
        self.now = name
        try:
            yield
        finally:
            self.now = ""
            pair[1].record()
            self._pending.append((name, *pair))

    @contextmanager
    def host(self, name: str) -> Iterator[None]:
        """Time a block on the host clock, whatever the device: file writes, evaluation, waiting for data."""
        start, self.now = time.perf_counter(), name
        try:
            yield
        finally:
            self.now = ""
            self.add(name, time.perf_counter() - start)

    def wait(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`; the time spent waiting for each is a span on the host clock."""
        source = iter(items)
        while True:
            try:
                with self.host(name):
                    item = next(source)
            except StopIteration:
                return
            yield item

    def add(self, name: str, seconds: float) -> None:
        """Book `seconds` under `name`."""
        self.spans[name] = self.spans.get(name, 0.0) + seconds

    def pace(self) -> dict[str, float]:
        """Means over the steps of this process: seconds at work on the device, and waiting for data."""
        own = {name: self.spans.get(name, 0.0) - self._loaded.get(name, 0.0) for name in TRAIN_SPANS}
        steps = max(1, self.steps)
        return {"steps": self.steps, "step_s": (own["views"] + own["step"]) / steps, "data_s": own["data"] / steps}

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
        own = {"total": self.elapsed() - self.earlier, "train": _trained(self.spans) - self._trained}
        return {kind: self._hours[kind] + seconds * self.world / 3600 for kind, seconds in own.items()}

    def report(self) -> dict[str, Any]:
        """Spans with what is left over as `other`, device-hours, and peak memory in bytes, over all processes."""
        self.settle()
        other = max(0.0, self.elapsed() - sum(self.spans.values()))
        return {
            "spans": {**self.spans, "other": other},
            "device_hours": self.device_hours(),
            "peak_memory_bytes": self._highest(),
        }

    def _highest(self) -> int:
        return max(self._peak, peak_memory(self.device))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self.settle()
        return {
            "spans": dict(self.spans),
            "elapsed": self.elapsed(),
            "device_hours": self.device_hours(),
            "world": self.world,
            "peak": self._highest(),
        }

    def load(self, state: dict[str, Any] | None, lost_until: float) -> None:
        """Continue an earlier process; its work from the checkpoint to `lost_until` (s) is billed as `lost`.

        Spans of this process up to here (imports, data) are kept beside the earlier ones. None: it was killed
        before its first checkpoint, and all is lost.
        """
        nothing: dict[str, Any] = {
            "spans": {},
            "elapsed": 0.0,
            "device_hours": self._hours,
            "world": self.world,
            "peak": 0,
        }
        state = nothing | (state or {})
        self._loaded = dict(state["spans"])
        for name, seconds in state["spans"].items():
            self.add(name, seconds)
        self.earlier = max(state["elapsed"], lost_until)
        lost = self.earlier - state["elapsed"]
        self.add("lost", lost)
        hours = state["device_hours"]
        self._hours = {"total": hours["total"] + lost * state["world"] / 3600, "train": hours["train"]}
        self._trained, self._peak = _trained(state["spans"]), state["peak"]


def _trained(spans: dict[str, float]) -> float:
    return sum(spans.get(name, 0.0) for name in TRAIN_SPANS)


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on CUDA, the process's peak resident set on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
