"""The scores of `metrics.py` for many weightings of the same images at once: what resampling needs.

A bootstrap replicate is a weight per image (how often it was drawn), a permutation one of 0 or 1. Every score is a
formula of weighted counts, so a thousand replicates are some matrix products.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from cass_scale.evaluation.metrics import BINS, Bools, Floats, confidence, judged, shares, squared_error, top3

BLOCK = 1 << 18  # weights worked on at once: arrays of 2 MiB, which stay in a core's cache


class Weighted:
    """Scores of predictions [N, C] against 0/1 truth [N, C] under weights; NaN where a score is undefined.

    `order` [N, C] is what the ROC area sorts by, the probabilities unless given.
    """

    def __init__(
        self,
        wanted: Floats,
        probability: Floats,
        *,
        multilabel: bool,
        threshold: float,
        positive: int | None = None,
        order: Floats | None = None,
    ) -> None:
        self.wanted, self.multilabel = wanted, multilabel
        self.p = probability if multilabel else shares(probability)
        self.against = judged(wanted, multilabel, positive)
        order = self.p if order is None else order
        self.areas = [Area(order[:, c], wanted[:, c] > 0) for c in self.against]
        self.answers = _Counts(wanted, self.p > 0.5) if multilabel else None
        self.rest = _Counts(wanted[:, self.against], self.p[:, self.against] > threshold)
        self.official = _Counts(wanted, probability > 0.5)
        self.gaps = _gaps(wanted, self.p, multilabel)
        self.error = squared_error(wanted, self.p, multilabel)

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        """Weights [R, N] -> score name -> [R]."""
        step = max(1, BLOCK // weights.shape[1])
        parts = [self._block(weights[i : i + step]) for i in range(0, len(weights), step)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _block(self, w: Floats) -> dict[str, Floats]:
        total = w.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = self._single(w, total) if self.answers is None else self._multi(w, self.answers)
            found |= self._one_versus_rest(w)
            found["ece"] = np.abs(w @ self.gaps).sum(axis=1) / total
            found["brier"] = (w @ self.error) / total
            tp, fp, fn, _ = (x.sum(axis=1) for x in self.official(w))
            found["official_f1"] = np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan)
            found["official_recall"] = tp / (tp + fn)
        return found

    def _single(self, w: Floats, total: Floats) -> dict[str, Floats]:
        (n, classes), truth, guess = self.wanted.shape, self.wanted.argmax(axis=1), self.p.argmax(axis=1)
        cells = csr_array((np.ones(n), (np.arange(n), truth * classes + guess)), shape=(n, classes * classes))
        matrix = np.asarray(w @ cells).reshape(-1, classes, classes)
        occurs, said, right = matrix.sum(axis=2), matrix.sum(axis=1), np.einsum("rcc->rc", matrix)
        accuracy, recall = right.sum(axis=1) / total, _mean(right / occurs, occurs > 0)
        place = np.arange(classes)
        return {
            "macro_f1": _mean(2 * right / (occurs + said), occurs > 0),
            "micro_f1": accuracy,
            "accuracy": accuracy,
            "top3": (w @ top3(self.wanted, self.p)) / total if classes > 3 else np.full(len(w), np.nan),
            "balanced_accuracy": recall,
            "recall": recall,
            "kappa": _kappa(matrix, 1 - np.eye(classes)),
            "quadratic_kappa": _kappa(matrix, np.square(place[:, None] - place, dtype=np.float64)),
        }

    def _multi(self, w: Floats, answers: _Counts) -> dict[str, Floats]:
        tp, fp, fn, tn = answers(w)
        occurs, both = tp + fn > 0, (tp + fn > 0) & (tn + fp > 0)
        tables: Floats = np.stack([tn, fp, fn, tp], axis=-1).reshape(*tp.shape, 2, 2)
        hits, false, missed = (x.sum(axis=1) for x in (tp, fp, fn))
        return {
            "macro_f1": _mean(2 * tp / (2 * tp + fp + fn), occurs),
            "micro_f1": np.where(hits + missed > 0, 2 * hits / (2 * hits + false + missed), np.nan),
            "recall": _mean(tp / (tp + fn), occurs),
            "balanced_accuracy": _mean((tp / (tp + fn) + tn / (tn + fp)) / 2, both),
            "kappa": _mean(_kappa(tables, 1 - np.eye(2)), both),
        }

    def _one_versus_rest(self, w: Floats) -> dict[str, Floats]:
        if not len(self.against):
            return {name: np.full(len(w), np.nan) for name in ("auc", "sensitivity", "specificity")}
        tp, fp, fn, tn = self.rest(w)
        both = (tp + fn > 0) & (tn + fp > 0)
        areas = np.stack([area(w) for area in self.areas], axis=1)
        return {
            "auc": _mean(areas, both),
            "sensitivity": _mean(tp / (tp + fn), both),
            "specificity": _mean(tn / (tn + fp), both),
        }


class _Counts:
    """Weighted true and false positives, false and true negatives [R, C] of 0/1 answers [N, C]."""

    def __init__(self, wanted: Floats, answer: Bools) -> None:
        self.parts = np.hstack([wanted * answer, (1 - wanted) * answer, wanted * ~answer, (1 - wanted) * ~answer])

    def __call__(self, w: Floats) -> list[Floats]:
        return np.split(w @ self.parts, 4, axis=1)


class Area:
    """The area under the ROC curve of one `score` [N] under weights [R, N]; ties count half: [R]."""

    def __init__(self, score: Floats, positive: Bools) -> None:
        negative = np.flatnonzero(~positive)
        self.negative = negative[np.argsort(score[negative], kind="stable")]
        self.positive = np.flatnonzero(positive)
        sides = (np.searchsorted(score[self.negative], score[self.positive], side) for side in ("left", "right"))
        self.below, self.upto = sides  # of each positive, how many negatives score less, or as much

    def __call__(self, weights: Floats) -> Floats:
        """Weights [R, N] -> [R]."""
        misses = np.zeros((len(weights), len(self.negative) + 1))
        np.cumsum(weights[:, self.negative], axis=1, out=misses[:, 1:])
        hits, under = weights[:, self.positive], misses[:, self.below] + misses[:, self.upto]
        return np.asarray(np.einsum("rn,rn->r", hits, under) / (2 * hits.sum(axis=1) * misses[:, -1]))


def _gaps(wanted: Floats, p: Floats, multilabel: bool) -> Floats:
    """What each image adds to each bin's gap between claim and truth: [N, BINS]."""
    claimed, right, place = confidence(wanted, p, multilabel)
    columns = claimed.shape[1] if multilabel else 1
    out = np.zeros((len(p), BINS))
    np.add.at(out, (np.repeat(np.arange(len(p)), columns), place.ravel()), ((claimed - right) / columns).ravel())
    return out


def _mean(values: Floats, which: Bools) -> Floats:
    """Mean along the last axis over `which`; NaN where there is none."""
    return np.asarray(np.where(which, values, 0.0).sum(axis=-1) / which.sum(axis=-1))


def _kappa(tables: Floats, penalty: Floats) -> Floats:
    """Cohen's kappa of tables [..., C, C] whose disagreements cost `penalty` [C, C]."""
    expected = tables.sum(axis=-1)[..., :, None] * tables.sum(axis=-2)[..., None, :]
    total = tables.sum(axis=(-1, -2))
    return np.asarray(1 - (tables * penalty).sum(axis=(-1, -2)) * total / (expected * penalty).sum(axis=(-1, -2)))
