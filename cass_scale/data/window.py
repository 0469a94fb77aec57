"""What of 16 bits is shown: a window, applied to whole batches where they lie, on the device."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cass_scale.errors import ConfigError

LEVELS = 1 << 16


class Window(NamedTuple):
    """What becomes black and white: values (stored ones, or units where a format has them), or percentiles."""

    low: float
    high: float
    percent: bool = False  # of each image

    @property
    def fixed(self) -> tuple[float, float] | None:
        """The two values, unless they are percentiles."""
        return None if self.percent else (self.low, self.high)

    @property
    def value(self) -> list[float | str]:
        """As `data.window` has it."""
        return [f"{end:.17g}%" if self.percent else end for end in (self.low, self.high)]


def read_window(value: Any) -> Window | None:
    """`auto` is None; [100, 3000] and [1%, 99%] are Windows. Raises ConfigError."""
    if value == "auto":
        return None
    try:
        texts = [str(v) for v in value]
        low, high = (float(text.removesuffix("%")) for text in texts)
        percent, also = (text.endswith("%") for text in texts)
        good = percent == also and low < high and math.isfinite(high - low) and (not percent or 0 <= low < high <= 100)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ConfigError(f"data.window={value}: auto, [100,3000] (values) or [1%,99%] (percentiles) is needed")
    return Window(low, high, percent)


def stretch(images: Tensor, window: Window | None, own_scale: Tensor) -> Tensor:
    """uint16 [B, ...] -> new uint16 [B, ...] in which the window fills 0..65535; None: each image's min..max.

    Where `own_scale` (bool [B]) says that the reader has applied a window, only percentiles do anything.
    """
    flat = images.flatten(1).to(torch.int32)
    low, high = (end.float() for end in _ends(flat, window))
    if window is None or not window.percent:
        low, high = low.masked_fill(own_scale, 0), high.masked_fill(own_scale, LEVELS - 1)
    scale = torch.where(high > low, (LEVELS - 1) / (high - low), 0.0)
    shown = (flat.float() - low[:, None]) * scale[:, None]
    return shown.round().clamp(0, LEVELS - 1).to(torch.uint16).view(images.shape)


def _ends(flat: Tensor, window: Window | None) -> tuple[Tensor, Tensor]:
    """What becomes black and white in each of int32 [B, N]: [B] each."""
    if window is None:
        return flat.amin(1), flat.amax(1)
    if not window.percent:
        low, high = (torch.full(flat.shape[:1], end, device=flat.device) for end in (window.low, window.high))
        return low, high
    images, pixels = flat.shape
    rows = torch.arange(images, device=flat.device)[:, None]
    counts = torch.bincount((flat + LEVELS * rows).flatten(), minlength=LEVELS * images).view(images, LEVELS)
    ranks = [max(1, math.ceil(percent / 100 * pixels)) for percent in (window.low, window.high)]
    low, high = ((counts.cumsum(1) < rank).sum(1) for rank in ranks)
    return low, high
