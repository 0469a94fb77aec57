"""Schedules: pure functions of samples seen, so they do not change with the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from cass_scale.errors import ConfigError
from cass_scale.types import Progress

Schedule = Callable[[Progress, float], float]
KINDS = ("constant", "cosine", "cosine16")


class Rates(NamedTuple):
    """What an optimizer step is taken with; each parameter group scales them."""

    lr: float
    weight_decay: float


def constant(fraction: float, *, warmup: float = 0.0, start: float = 0.0) -> float:
    """One, after a linear rise from `start` over the first `warmup` of the run."""
    return 1.0 if fraction >= warmup else start + (1.0 - start) * fraction / warmup


def cosine(fraction: float, *, start: float = 1.0, end: float = 0.0) -> float:
    """From `start` at fraction 0 to `end` at fraction 1 along half a cosine."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, fraction))))


def warmup_cosine(fraction: float, *, warmup: float = 0.0, end: float = 0.0) -> float:
    """Linear from `end` to 1 over the first `warmup` of the run, then half a cosine down to `end`."""
    if fraction < warmup:
        return constant(fraction, warmup=warmup, start=end)
    return cosine((fraction - warmup) / (1.0 - warmup), end=end)


def triangle_cosine(step: float, *, t_max: int = 16, end: float = 0.0) -> float:
    """From 1 at step 0 to `end` at step `t_max` and back: a cosine of period 2 t_max that never anneals.

    This is CosineAnnealingLR(T_max=16) stepped per iteration and past its end, as the CASS notebook does
    (the paper's "maximum of 16 iterations" is literal). Its mean is half way.
    """
    return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * step / t_max))


def make_schedule(kind: str, *, batch_size: int, warmup: float = 0.0, floor: float = 1e-6) -> Schedule:
    """Learning rate as a function (progress, base) -> lr, for each parameter group's own base.

    batch_size: global, so that samples seen / batch_size counts optimizer steps for `cosine16` on any number
    of ranks. warmup: fraction of the run. floor: absolute lr at the bottom; a base below it stays below, so a
    group frozen by base 0 stays at 0.

    Raises:
        ConfigError: unknown kind, warmup outside 0..1, or a warmup for `cosine16`, which has none.
    """
    if kind not in KINDS:
        raise ConfigError(f"schedule.kind={kind}: {', '.join(KINDS)} exist")
    if not 0.0 <= warmup < 1.0:
        raise ConfigError(f"schedule.warmup={warmup}: a fraction of the run, from 0 up to but not including 1, works")
    if kind == "cosine16" and warmup > 0.0:
        raise ConfigError(
            f"schedule.warmup={warmup} contradicts schedule.kind=cosine16, which has none; use kind=cosine, or warmup=0"
        )

    def lr(progress: Progress, base: float) -> float:
        if base <= 0.0:
            return 0.0
        end = min(floor, base) / base
        if kind == "cosine":
            return base * warmup_cosine(progress.fraction, warmup=warmup, end=end)
        if kind == "cosine16":
            return base * triangle_cosine(progress.samples / batch_size, end=end)
        return base * constant(progress.fraction, warmup=warmup, start=end)

    return lr
