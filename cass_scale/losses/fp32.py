"""One decorator for all losses: single precision, whatever autocast says around them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def _raised(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def fp32(loss: Callable[P, R]) -> Callable[P, R]:
    """Run `loss` without autocast, its half-precision tensors cast to float32; float64 stays float64.

    A method computes its loss inside `forward`, where DDP and ZeRO hooks fire and where Accelerate's autocast
    still holds. Half precision breaks losses: F.normalize in float16 gives NaN, exp(1 / 0.05) overflows it.
    The device is that of the first tensor argument.
    """

    @wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(v.device.type for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        raised = [_raised(v) for v in args]
        named = {k: _raised(v) for k, v in kwargs.items()}
        # Estimates run on the meta device, which knows no autocast.
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            return loss(*raised, **named)  # type: ignore[arg-type]

    return wrapped
