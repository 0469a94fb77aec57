"""Frozen features of any number of encoders in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cass_scale.colour import to_unit
from cass_scale.encoders import Encoder
from cass_scale.types import Stream


class Features(NamedTuple):
    """What protocols work on; row i of every array is the same image."""

    by_arm: dict[str, NDArray[np.float32]]  # [N, dim] each
    labels: NDArray[np.generic]  # int64 [N], or float32 [N, C] when multi-label
    groups: NDArray[np.int64]  # int64 [N]; -1 = none


def extract(
    encoders: Mapping[str, Encoder], stream: Stream, autocast: Callable[[], AbstractContextManager[None]]
) -> Features:
    """Features of one epoch of `stream`, in its order, in eval mode; the stream must give labels."""
    parts: dict[str, list[Tensor]] = {name: [] for name in encoders}
    labels, groups = [], []
    for encoder in encoders.values():
        encoder.eval()
    with torch.inference_mode():
        for batch in stream.epoch(0):
            images = to_unit(batch.images)
            with autocast():
                for name, encoder in encoders.items():
                    parts[name].append(encoder(images).float().cpu())
            if batch.label is None:
                raise ValueError("evaluation needs a stream with labels")
            labels.append(batch.label.cpu())
            groups.append(torch.full_like(batch.index, -1).cpu() if batch.group is None else batch.group.cpu())
    by_arm = {name: torch.cat(some).numpy() for name, some in parts.items()}
    return Features(by_arm, torch.cat(labels).numpy(), torch.cat(groups).numpy())
