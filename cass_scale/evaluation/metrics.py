"""Scores of predicted probabilities by scikit-learn, computed once on all of a split (no running averages).

`weighted.py` has the same scores for thousands of resampled splits at once; the tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from cass_scale.types import JSON

Array = NDArray[Any]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Scores = dict[str, float | None]

BINS = 15  # of the calibration error (Guo et al. 2017, arXiv 1706.04599)
LOWER_IS_BETTER = frozenset({"ece", "brier"})
_NONE = "no label occurs in the test images"
_ONE_SIDED = "no class has test images with it and without it"
_ALIKE = "all labels and all answers are one class"
ALWAYS = ("accuracy", "ece", "brier")  # defined wherever there is an image
UNDEFINED = {  # why a score is None
    "macro_f1": _NONE, "micro_f1": _NONE, "recall": _NONE, "official_f1": _NONE, "official_recall": _NONE,
    "balanced_accuracy": _ONE_SIDED, "auc": _ONE_SIDED, "kappa": _ALIKE, "quadratic_kappa": _ALIKE,
    "sensitivity": _ONE_SIDED, "specificity": _ONE_SIDED,
    "top3": "with 3 classes or fewer one of three answers is always right",
}  # fmt: skip


def scores(
    truth: Array,
    probability: Array,
    *,
    classes: Sequence[str],
    multilabel: bool,
    threshold: float = 0.5,
    positive: int | None = None,
) -> Scores:
    """Scores of `probability` [N, C] against `truth`, int64 [N] or 0/1 [N, C] when `multilabel`; None = undefined.

    Single-label. The answer is the class of the largest probability, the first one on a tie. Rows need not sum to
    one (a head of sigmoids): each is divided by its sum, for all but the official scores.
      macro_f1, balanced_accuracy (= recall): means of F1 and of recall over the classes that occur in `truth`; a
        class absent from it is left out, though predicting it still costs the class that was missed.
      accuracy (= micro_f1 = top-1), top3; kappa, quadratic_kappa: Cohen's, the second for classes in an order.
      brier: mean over images of the squared error summed over classes; with two classes half of it.
    Multi-label. A label is predicted where its probability is above 0.5.
      macro_f1, recall: means over the labels that occur in `truth`; micro_f1 pools all labels.
      balanced_accuracy (mean of recall and specificity), kappa: means over the labels with both values in `truth`.
      brier: mean over images and labels of the squared error.
    Both. auc, sensitivity, specificity: means over the classes with both values in `truth`, one versus rest; with
      two classes those of `positive`, the second unless given. The last two of "probability above `threshold`".
    ece: expected calibration error of the answer's probability, multi-label of all labels', in BINS equal bins.
    official_f1, official_recall: of the authors' notebook, pooled over classes, "probability above 0.5" against
      one-hot truth (pranavsinghps1/CASS @ 3efacfe).
    n: rows scored. Raises ValueError on NaN, on what is not a probability, and on shapes that disagree.
    """
    wanted = targets("truth", truth, classes=len(classes), multilabel=multilabel)
    check_probability(probability, wanted.shape)
    raw = probability.astype(np.float64)
    p = raw if multilabel else shares(raw)
    found = _multi(wanted, p) if multilabel else _single(wanted, p)
    found |= _one_versus_rest(wanted, p, judged(wanted, multilabel, positive), threshold)
    found |= {"ece": _ece(wanted, p, multilabel), "brier": _brier(wanted, p, multilabel)}
    flat, hot, occurs = wanted.ravel() > 0, raw.ravel() > 0.5, wanted.any()
    found["official_f1"] = float(sk.f1_score(flat, hot, zero_division=0)) if occurs else None
    found["official_recall"] = float(sk.recall_score(flat, hot)) if occurs else None
    return {**found, "n": float(len(wanted))}


def details(
    truth: Array, probability: Array, *, classes: Sequence[str], multilabel: bool, threshold: float = 0.5
) -> JSON:
    """What a table of means hides: scores `per_class`, and the `confusion` matrix, rows = truth.

    Multi-label: one 2 x 2 matrix per label, [[true negatives, false positives], [false negatives, true positives]].
    """
    wanted = targets("truth", truth, classes=len(classes), multilabel=multilabel)
    p = probability.astype(np.float64) if multilabel else shares(probability.astype(np.float64))
    answer = p > 0.5 if multilabel else np.eye(len(classes), dtype=bool)[p.argmax(axis=1)]
    columns = [(wanted[:, c] > 0, answer[:, c], p[:, c]) for c in range(len(classes))]
    if multilabel:
        matrix = [sk.confusion_matrix(true, said, labels=[False, True]).tolist() for true, said, _ in columns]
    else:
        matrix = (wanted.T @ answer).astype(int).tolist()
    per_class = {name: _of_class(*column, threshold) for name, column in zip(classes, columns, strict=True)}
    return {"per_class": per_class, "confusion": matrix}


def _of_class(true: Bools, said: Bools, p: Floats, threshold: float) -> Scores:
    both = true.any() and not true.all()
    sensitivity, specificity = _rates(true, p > threshold) if both else (None, None)
    return {
        "n": float(true.sum()),
        "f1": float(sk.f1_score(true, said, zero_division=0)) if true.any() else None,
        "precision": float(sk.precision_score(true, said)) if said.any() else None,
        "recall": float(sk.recall_score(true, said)) if true.any() else None,
        "auc": float(sk.roc_auc_score(true, p)) if both else None,
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


def macro_f1(wanted: Floats, p: Floats, *, multilabel: bool) -> float | None:
    """The score of that name alone, of checked 0/1 truth and probabilities [N, C]."""
    if not multilabel:
        truth, guess = wanted.argmax(axis=1), p.argmax(axis=1)
        return float(sk.f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0))
    occurring = np.flatnonzero(wanted.any(axis=0))
    each = [sk.f1_score(wanted[:, c], p[:, c] > 0.5, zero_division=0) for c in occurring]
    return float(np.mean(each)) if each else None


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


def check_probability(probability: Array, shape: tuple[int, ...]) -> None:
    """Raise ValueError when `probability` is not of `shape`, or holds what is no probability."""
    if probability.shape != shape:
        expected = f"{list(shape)} for {shape[0]} rows and {shape[1]} classes"
        raise ValueError(f"probability has shape {list(probability.shape)}, not {expected}")
    finite("probability", probability)
    low, high = float(probability.min()), float(probability.max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise ValueError(f"probability lies in [{low:.4g}, {high:.4g}], not in [0, 1]: apply softmax or sigmoid first")


def finite(what: str, values: Array) -> None:
    """Raise ValueError when `values` [N, ...] hold NaN or infinity, saying in how many rows."""
    bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if bad.any():
        raise ValueError(
            f"{what} holds NaN or infinity in {int(bad.sum())} of {len(values)} rows (the first is row "
            f"{int(bad.argmax())}): the encoder has diverged or its half precision overflowed"
        )


def shares(probability: Floats) -> Floats:
    """Rows [N, C] divided by their sums; a row of zeros says nothing, so all classes share it."""
    total = probability.sum(axis=1, keepdims=True)
    even = 1.0 / probability.shape[1]
    return np.asarray(np.where(total > 0, probability / np.where(total > 0, total, 1.0), even))


def judged(wanted: Floats, multilabel: bool, positive: int | None = None) -> NDArray[np.int64]:
    """Classes that can be set against the rest: with both values; of two exclusive ones `positive`, or the second."""
    found = np.flatnonzero(_varies(wanted))
    binary = wanted.shape[1] == 2 and not multilabel
    return found[found == (1 if positive is None else positive)] if binary else found


def confidence(wanted: Floats, p: Floats, multilabel: bool) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Claimed probability, whether it came true, and bin of calibration: [N], or of all labels [N, C]."""
    claimed = p if multilabel else p.max(axis=1)
    right = wanted if multilabel else (wanted.argmax(axis=1) == p.argmax(axis=1)).astype(np.float64)
    return claimed, right, np.clip(np.ceil(claimed * BINS).astype(np.int64) - 1, 0, BINS - 1)


def top3(wanted: Floats, p: Floats) -> Floats:
    """1 where the true class is among the three largest probabilities, ties as scikit-learn has them: [N]."""
    ranked = np.argsort(p, axis=1, kind="stable")[:, ::-1][:, :3]
    return np.asarray((ranked == wanted.argmax(axis=1)[:, None]).any(axis=1).astype(np.float64))


def squared_error(wanted: Floats, p: Floats, multilabel: bool) -> Floats:
    """Brier score of each image [N]; the classes of a single label sum up, over two classes half of it."""
    error = ((p - wanted) ** 2).sum(axis=1)
    return np.asarray(error / (p.shape[1] if multilabel or p.shape[1] == 2 else 1))


def _single(wanted: Floats, p: Floats) -> Scores:
    truth, guess = wanted.argmax(axis=1), p.argmax(axis=1)
    present, classes = np.unique(truth), wanted.shape[1]
    accuracy = float((truth == guess).mean())
    recall = float(sk.recall_score(truth, guess, labels=present, average="macro"))
    alike = len(set(truth.tolist()) | set(guess.tolist())) == 1
    everything = list(range(classes))
    hits = sk.top_k_accuracy_score(truth, p, k=3, labels=everything) if classes > 3 else None
    return {
        "macro_f1": macro_f1(wanted, p, multilabel=False),
        "micro_f1": accuracy,
        "accuracy": accuracy,
        "top3": None if hits is None else float(hits),
        "balanced_accuracy": recall,
        "recall": recall,
        "kappa": None if alike else float(sk.cohen_kappa_score(truth, guess, labels=everything)),
        "quadratic_kappa": None
        if alike
        else float(sk.cohen_kappa_score(truth, guess, labels=everything, weights="quadratic")),
    }


def _multi(wanted: Floats, p: Floats) -> Scores:
    guess = (p > 0.5).astype(np.float64)
    occurs, both = wanted.any(axis=0), np.flatnonzero(_varies(wanted))
    found: Scores = dict.fromkeys(("macro_f1", "micro_f1", "recall", "balanced_accuracy", "kappa"))
    if occurs.any():
        pairs = [(wanted[:, c], guess[:, c]) for c in np.flatnonzero(occurs)]  # one column is no multi-label to sklearn
        found["macro_f1"] = macro_f1(wanted, p, multilabel=True)
        found["recall"] = float(np.mean([sk.recall_score(*pair) for pair in pairs]))
        found["micro_f1"] = float(sk.f1_score(wanted.ravel(), guess.ravel(), zero_division=0))
    if len(both):
        found["balanced_accuracy"] = float(np.mean([_rates(wanted[:, c], guess[:, c] > 0) for c in both]))
        found["kappa"] = float(np.mean([sk.cohen_kappa_score(wanted[:, c], guess[:, c]) for c in both]))
    return found


def _one_versus_rest(wanted: Floats, p: Floats, against: NDArray[np.int64], threshold: float) -> Scores:
    if not len(against):
        return {"auc": None, "sensitivity": None, "specificity": None}
    rates = np.mean([_rates(wanted[:, c], p[:, c] > threshold) for c in against], axis=0)
    area = float(np.mean([sk.roc_auc_score(wanted[:, c], p[:, c]) for c in against]))
    return {"auc": area, "sensitivity": float(rates[0]), "specificity": float(rates[1])}


def _rates(truth: Array, positive: Bools) -> tuple[float, float]:
    """Sensitivity and specificity; `truth` holds both values."""
    return float(sk.recall_score(truth, positive)), float(sk.recall_score(truth, positive, pos_label=0))


def _ece(wanted: Floats, p: Floats, multilabel: bool) -> float:
    claimed, right, place = (x.ravel() for x in confidence(wanted, p, multilabel))
    gaps = np.bincount(place, weights=claimed - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(claimed))


def _brier(wanted: Floats, p: Floats, multilabel: bool) -> float:
    return float(squared_error(wanted, p, multilabel).mean())


def _varies(wanted: Floats) -> Bools:
    return np.asarray(wanted.any(axis=0) & ~wanted.all(axis=0))
