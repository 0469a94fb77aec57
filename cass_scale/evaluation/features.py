"""Frozen features of any number of encoders in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cass_scale.encoders import Encoder
from cass_scale.types import Batch, Stream


class Features(NamedTuple):
    """What protocols work on; row i of every array is the same image."""

    by_arm: dict[str, NDArray[np.float32]]  # [N, dim] each
    labels: NDArray[np.generic]  # int64 [N], or float32 [N, C] when multi-label
    groups: NDArray[np.int64]  # int64 [N]; -1 = none


def embed(
    encoders: Mapping[str, Encoder], stream: Stream, autocast: Callable[[], AbstractContextManager[None]]
) -> Iterator[tuple[Batch, dict[str, NDArray[np.float32]]]]:
    """Every batch of one epoch of `stream` with its features by arm, [B, dim], in eval mode."""
    for encoder in encoders.values():
        encoder.eval()
    with torch.inference_mode():
        for batch in stream.epoch(0):
            images = batch.images.float() / 255
            with autocast():
                found = {name: encoder(images).float() for name, encoder in encoders.items()}
            yield batch, {name: features.cpu().numpy() for name, features in found.items()}


def extract(
    encoders: Mapping[str, Encoder], stream: Stream, autocast: Callable[[], AbstractContextManager[None]]
) -> Features:
    """Features of one epoch of `stream`, in its order; the stream must give labels."""
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in encoders}
    labels, groups = [], []
    for batch, found in embed(encoders, stream, autocast):
        for name, features in found.items():
            parts[name].append(features)
        if batch.label is None:
            raise ValueError("evaluation needs a stream with labels")
        labels.append(batch.label.cpu())
        groups.append(torch.full_like(batch.index, -1).cpu() if batch.group is None else batch.group.cpu())
    by_arm = {name: np.concatenate(some) for name, some in parts.items()}
    return Features(by_arm, torch.cat(labels).numpy(), torch.cat(groups).numpy())
