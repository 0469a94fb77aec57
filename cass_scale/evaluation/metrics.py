"""Scores of predicted probabilities, computed once on all of a split (no running averages)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, recall_score, roc_auc_score

Array = NDArray[Any]
Floats = NDArray[np.float64]


def scores(truth: Array, probability: Array, *, classes: Sequence[str], multilabel: bool) -> dict[str, float | None]:
    """Scores of `probability` [N, C] against `truth`, int64 [N] or 0/1 [N, C] when `multilabel`.

    Single-label (the class of the largest probability, the first one on a tie):
      macro_f1, balanced_accuracy: means of F1 and of recall over the classes that occur in `truth`; a class
        absent from it is left out, though predicting it still costs the class that was missed.
      auc: mean of the one-versus-rest areas under the ROC curve over the same classes, None when `truth`
        holds one class only; with two classes the area of the second.
      accuracy.
    Multi-label (a label is predicted where its probability is above 0.5):
      macro_f1: mean of F1 over the labels that occur in `truth`; micro_f1 pools all labels; None when no
        label occurs.
      balanced_accuracy: mean over labels of (sensitivity + specificity) / 2; auc: mean of areas; both over
        the labels with both values in `truth`, None when there is none.
    n: rows scored. Raises ValueError on NaN, on what is not a probability, and on shapes that disagree.
    """
    wanted = targets("truth", truth, classes=len(classes), multilabel=multilabel)
    if probability.shape != wanted.shape:
        expected = f"{list(wanted.shape)} for {len(wanted)} rows and {len(classes)} classes"
        raise ValueError(f"probability has shape {list(probability.shape)}, not {expected}")
    finite("probability", probability)
    low, high = float(probability.min()), float(probability.max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise ValueError(f"probability lies in [{low:.4g}, {high:.4g}], not in [0, 1]: apply softmax or sigmoid first")
    found = _multi(wanted, probability) if multilabel else _single(wanted, probability)
    return {**found, "n": float(len(wanted))}


def targets(what: str, truth: Array, *, classes: int, multilabel: bool) -> Floats:
    """`truth`, int64 [N] or 0/1 [N, C], as float64 [N, C]; ValueError naming `what` on anything else."""
    if len(truth) == 0:
        raise ValueError(f"{what} holds no rows: nothing to learn from or to score")
    if not multilabel:
        if truth.ndim != 1 or not np.issubdtype(truth.dtype, np.integer):
            raise ValueError(f"{what} is {truth.dtype} {list(truth.shape)}, not integers [N] of class numbers")
        if truth.min() < 0 or truth.max() >= classes:
            raise ValueError(
                f"{what} holds class numbers {truth.min()}..{truth.max()}, not 0..{classes - 1}: "
                "leave rows without a label (-1) out"
            )
        return np.eye(classes)[truth]
    if truth.ndim != 2 or truth.shape[1] != classes:
        raise ValueError(f"{what} has shape {list(truth.shape)}, not [N, {classes}] as multi-label needs")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError(f"{what} holds values other than 0 and 1: multi-label truth is 0/1 per label")
    return truth.astype(np.float64)


def finite(what: str, values: Array) -> None:
    """Raise ValueError when `values` [N, ...] hold NaN or infinity, saying in how many rows."""
    bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if bad.any():
        raise ValueError(
            f"{what} holds NaN or infinity in {int(bad.sum())} of {len(values)} rows (the first is row "
            f"{int(bad.argmax())}): the encoder has diverged or its half precision overflowed"
        )


def _single(wanted: Floats, probability: Array) -> dict[str, float | None]:
    truth, guess = wanted.argmax(axis=1), probability.argmax(axis=1)
    present = np.unique(truth)
    return {
        "macro_f1": float(f1_score(truth, guess, labels=present, average="macro", zero_division=0)),
        "balanced_accuracy": float(recall_score(truth, guess, labels=present, average="macro")),
        # With two columns the area of the second is the convention; both agree when rows sum to one.
        "auc": _auc(wanted[:, -1:], probability[:, -1:]) if wanted.shape[1] == 2 else _auc(wanted, probability),
        "accuracy": float((truth == guess).mean()),
    }


def _multi(wanted: Floats, probability: Array) -> dict[str, float | None]:
    guess = (probability > 0.5).astype(np.float64)
    occurs, both = wanted.any(axis=0), _varies(wanted)
    macro = micro = balanced = None
    if occurs.any():
        macro = float(np.mean(f1_score(wanted[:, occurs], guess[:, occurs], average=None, zero_division=0)))
        micro = float(f1_score(wanted.ravel(), guess.ravel(), zero_division=0))
    if both.any():
        truth, guess = wanted[:, both], guess[:, both]
        sensitivity = (truth * guess).sum(axis=0) / truth.sum(axis=0)
        specificity = ((1 - truth) * (1 - guess)).sum(axis=0) / (1 - truth).sum(axis=0)
        balanced = float(((sensitivity + specificity) / 2).mean())
    return {
        "macro_f1": macro,
        "balanced_accuracy": balanced,
        "auc": _auc(wanted, probability),
        "micro_f1": micro,
    }


def _varies(wanted: Floats) -> NDArray[np.bool_]:
    return np.asarray(wanted.any(axis=0) & ~wanted.all(axis=0))


def _auc(wanted: Floats, probability: Array) -> float | None:
    areas = [roc_auc_score(wanted[:, c], probability[:, c]) for c in np.flatnonzero(_varies(wanted))]
    return float(np.mean(areas)) if areas else None
