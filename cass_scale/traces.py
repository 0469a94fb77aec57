"""torch's profiler over some steps, on request: one Chrome trace per rank."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from cass_scale.errors import ConfigError


def steps(text: str) -> tuple[int, int]:
    """First and last step of `10-12` or `10`. Raises ConfigError for anything else."""
    found = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if last < first:
        raise ConfigError(f"profile.steps={text}: a step or a first and a last one is needed, as in 10-12")
    return first, last


def tracer(text: str, file: Path, device: torch.device) -> Callable[[int | None], None]:
    """To be called with the number of every step before it begins, and with None behind the last one.

    From the first to the last step of `text` everything is recorded; then `file`, to be opened in
    chrome://tracing or ui.perfetto.dev, is written. A run that starts behind the first step records the rest.
    """
    first, last = steps(text)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    under_way: list[profile] = []

    def before(step: int | None) -> None:
        if step is not None and not under_way and first <= step <= last:
            under_way.append(profile(activities=kinds, record_shapes=True))
            under_way[0].start()
        elif under_way and (step is None or step > last):
            recorded = under_way.pop()
            recorded.stop()
            file.parent.mkdir(exist_ok=True)
            recorded.export_chrome_trace(str(file))

    return before
