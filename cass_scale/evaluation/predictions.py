"""What an evaluation said about every held-back image, in one file: enough for every score, interval and comparison."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cass_scale.errors import DataError
from cass_scale.evaluation.metrics import Array, Floats
from cass_scale.records import atomic_write_bytes

Texts = NDArray[np.str_]
ARM = "probability/"  # what the arrays of the arms are called in the file


@dataclass(frozen=True)
class Predictions:
    """Answers to N images by each arm, trained S times; row i of every array is the same image."""

    id: NDArray[np.int64]  # [N] row of the manifest
    key: Texts  # [N] path relative to the root of the set
    sha256: Texts  # [N]
    group: Texts  # [N] patient or group, '' = none
    split: Texts  # [N]
    label: Array  # int64 [N], or uint8 [N, C] of 0/1 when multi-label
    classes: Texts  # [C]
    trainings: NDArray[np.int64]  # [S] seed or fold of each training
    probability: dict[str, NDArray[np.float32]]  # arm -> [S, N, C]; sigmoids as they are, rows need not sum to one

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return self.label.ndim == 2

    @property
    def wanted(self) -> Floats:
        """The labels as 0/1, [N, C]."""
        return self.label.astype(np.float64) if self.multilabel else np.eye(len(self.classes))[self.label]

    def take(self, rows: Array) -> Predictions:
        """The same for some of the images, by number or mask."""
        per_image = {name: getattr(self, name)[rows] for name in ("id", "key", "sha256", "group", "split", "label")}
        some = {arm: p[:, rows] for arm, p in self.probability.items()}
        return Predictions(**per_image, classes=self.classes, trainings=self.trainings, probability=some)

    def save(self, path: Path) -> None:
        """Write a .npz without pickles, atomically."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "probability"}
        arrays |= {f"{ARM}{arm}": p.astype(np.float32) for arm, p in self.probability.items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        atomic_write_bytes(path, buffer.getvalue())

    @staticmethod
    def load(path: Path) -> Predictions:
        """What `save` wrote. Raises DataError when the file is absent, broken or of something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found: dict[str, Any] = {name: file[name] for name in file.files}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as why:
            raise DataError(f"{path} holds no predictions ({why}); run `cass-scale evaluate` again") from why
        arms = {name.removeprefix(ARM): found.pop(name) for name in list(found) if name.startswith(ARM)}
        try:
            return Predictions(**found, probability=arms)
        except TypeError as why:
            raise DataError(
                f"{path} holds other arrays than predictions have; run `cass-scale evaluate` again"
            ) from why
