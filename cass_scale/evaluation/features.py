"""Frozen features of any number of encoders in one pass over the images, and kept for the next time."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cass_scale.colour import to_unit
from cass_scale.encoders import Encoder
from cass_scale.records import atomic_write_bytes
from cass_scale.types import Batch, Stream

Features = dict[str, NDArray[np.float32]]  # by arm [N, dim]; row i of every array is the same image


def embed(
    encoders: Mapping[str, Encoder], stream: Stream, autocast: Callable[[], AbstractContextManager[None]]
) -> Iterator[tuple[Batch, Features]]:
    """Every batch of one epoch of `stream` with its features by arm, in eval mode."""
    for encoder in encoders.values():
        encoder.eval()
    with torch.inference_mode():
        for batch in stream.epoch(0):
            images = to_unit(batch.images)
            with autocast():
                found = {name: encoder(images).float() for name, encoder in encoders.items()}
            yield batch, {name: features.cpu().numpy() for name, features in found.items()}


def extract(
    encoders: Mapping[str, Encoder], stream: Stream, autocast: Callable[[], AbstractContextManager[None]]
) -> Features:
    """Features of one epoch of `stream`, in its order."""
    parts = [features for _, features in embed(encoders, stream, autocast)]
    return {name: np.concatenate([one[name] for one in parts]) for name in encoders}


def key(*decides: object) -> str:
    """32 hex digits of everything that decides features: weights, images, size, precision, versions."""
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]


def remembered(folder: Path, keys: Mapping[str, str], rows: int, compute: Callable[[list[str]], Features]) -> Features:
    """Features by arm out of `folder`; `compute(arms)` gives those that are not there, and they are kept.

    keys: arm -> what `key` says of it. A file that is cut or has other than `rows` rows is made again; a folder
    that cannot be written costs the next evaluation, nothing else.
    """
    found = {arm: kept for arm, name in keys.items() if (kept := _read(folder / f"{name}.npy", rows)) is not None}
    missing = [arm for arm in keys if arm not in found]
    new = compute(missing) if missing else {}
    for arm, features in new.items():
        buffer = io.BytesIO()
        np.save(buffer, features, allow_pickle=False)
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(folder / f"{keys[arm]}.npy", buffer.getvalue())
    return {arm: found[arm] if arm in found else new[arm] for arm in keys}


def _read(path: Path, rows: int) -> NDArray[np.float32] | None:
    try:
        kept = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    good = isinstance(kept, np.ndarray) and kept.dtype == np.float32 and kept.ndim == 2 and len(kept) == rows
    return kept if good else None
