"""The linear probe: L2-regularised logistic regression on frozen, standardised features.

The objective is that of scikit-learn's `LogisticRegression` (the tests compare the two), minimised by SciPy's
L-BFGS in the principal axes of the features, each scaled by its curvature, and for all labels of a
multi-label set at once: where features are strongly correlated, lbfgs as it stands needs a thousand steps
and more, and this needs tens. With two classes the softmax has two columns: scikit-learn's binary C doubled.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax
from sklearn.exceptions import ConvergenceWarning

from cass_scale.evaluation.draws import folds
from cass_scale.evaluation.heads import Head
from cass_scale.evaluation.metrics import Array, Floats, finite, macro_f1, targets

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of scikit-learn: 1 / (weight of the penalty)
FOLDS = 5
FALLBACK = 2  # place in GRID that is taken where nothing can be held out
MAX_ITER, TOLERANCE = 1000, 1e-5
FLAT = 1e-6  # a feature that varies by less than this share of its size holds float32 rounding only


def linear(train_x: Array, train_y: Array, test_x: Array, **options: Any) -> tuple[Floats, float]:
    """Probability [M, C] for `test_x` [M, D] by `fit` of the train rows with these options, and its C."""
    finite("test features", test_x)
    head, c = fit(train_x, train_y, **options)
    return head(test_x), c


def fit(
    train_x: Array,
    train_y: Array,
    *,
    classes: int,
    multilabel: bool,
    val_x: Array | None = None,
    val_y: Array | None = None,
    groups: Array | None = None,
    seed: int = 0,
) -> tuple[Head, float]:
    """A model of the train rows only, and the C it was fitted with.

    C is the one of GRID with the highest macro F1 (metrics.py) on `val_x`, `val_y` if given, else on the
    pooled predictions of stratified folds of the train rows that never split a group (`groups` int64 [N],
    -1 = none); on a tie the strongest penalty. `train_y` is int64 [N], or 0/1 [N, C] when `multilabel`: then
    one sigmoid per label and one C for all. Classes are not weighted, as in the probes of CLIP (arXiv
    2103.00020, A.3) and DINOv2 (facebookresearch/dinov2 eval/log_regression.py): probabilities keep their
    meaning, and constant features answer with the class frequencies. A label that never (always) occurs in
    train gets 0 (1). ConvergenceWarning when a fit stopped early, UserWarning when C could not be chosen;
    ValueError on NaN.
    """
    wanted = targets("train_y", train_y, classes=classes, multilabel=multilabel)
    finite("train features", train_x)
    if val_x is not None and val_y is not None:
        finite("val features", val_x)
        held = targets("val_y", val_y, classes=classes, multilabel=multilabel)
        heads = _path(train_x, wanted, GRID, multilabel)
        best = _best(held, np.stack([head(val_x) for head in heads]), multilabel)
        return heads[best], GRID[best]
    if val_x is not None or val_y is not None:
        raise ValueError("linear needs both val_x and val_y, or neither")
    best = _best(wanted, _held_out(train_x, wanted, folds(wanted, groups, FOLDS, seed), multilabel), multilabel)
    return _path(train_x, wanted, GRID[best : best + 1], multilabel)[0], GRID[best]


def _best(wanted: Floats, candidates: Floats | None, multilabel: bool) -> int:
    """Place in GRID of the highest macro F1 of `candidates` [len(GRID), N, C]; the first one on a tie."""
    each = [] if candidates is None else [macro_f1(wanted, p, multilabel=multilabel) for p in candidates]
    found = [f for f in each if f is not None]
    if not found:
        why = "train is a single group" if candidates is None else "no label occurs in what is held out"
        warnings.warn(f"linear probe: C={GRID[FALLBACK]:g} is not chosen but assumed: {why}", stacklevel=3)
        return FALLBACK
    return int(np.argmax(found))


def _held_out(x: Array, wanted: Floats, fold: NDArray[np.int64], multilabel: bool) -> Floats | None:
    """Probabilities [len(GRID), N, C] of each row by models of the other folds; None with one fold."""
    if not fold.any():
        return None
    out = np.empty((len(GRID), *wanted.shape))
    for f in range(int(fold.max()) + 1):
        held = fold == f
        out[:, held] = [head(x[held]) for head in _path(x[~held], wanted[~held], GRID, multilabel)]
    return out


def _path(x: Array, wanted: Floats, grid: tuple[float, ...], multilabel: bool) -> list[Head]:
    """Models of `x` [N, D], one per C of `grid`; each starts from the last one."""
    mean, axes, variance = _principal_axes(x)
    z, frequency = (x - mean) @ axes, wanted.mean(axis=0)
    free = (frequency > 0) & (frequency < 1)
    weights = np.zeros((len(variance) + 1, int(free.sum())))
    found = []
    for c in grid:
        if free.any():
            weights = _solve(z, wanted[:, free], variance, c, weights, multilabel)
        weight, bias = (
            np.zeros((len(free), x.shape[1])),
            np.where(frequency > 0, np.inf if multilabel else 0.0, -np.inf),
        )
        weight[free], bias[free] = (axes @ weights[:-1]).T, weights[-1]
        found.append(Head(mean, weight, bias, "sigmoid" if multilabel else "softmax"))
    return found


def _principal_axes(x: Array) -> tuple[Floats, Floats, Floats]:
    """Mean [D], axes [D, R] that also standardise, and the variance [R] along each, of `x` [N, D].

    A rotation leaves the L2 penalty as it is, and axes without variance never get a weight: nothing is lost.
    """
    x = x.astype(np.float64)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    flat = spread <= FLAT * np.abs(x).max(axis=0)
    scale = np.where(flat, 0.0, 1.0 / np.where(flat, 1.0, spread))
    z = (x - mean) * scale
    n, d = z.shape
    variance, vectors = np.linalg.eigh((z.T @ z if n >= d else z @ z.T) / n)
    keep = variance > 1e-10 * variance[-1]
    variance, vectors = variance[keep], vectors[:, keep]
    if n < d:
        vectors = z.T @ vectors / np.sqrt(n * variance)
    return mean, scale[:, None] * vectors, variance


def _solve(z: Floats, wanted: Floats, variance: Floats, c: float, start: Floats, multilabel: bool) -> Floats:
    """Weights [R + 1, K], last row the intercepts: the minimum of mean loss + |weights|^2 / (2 c N)."""
    n, penalty = len(z), 1.0 / (c * len(z))
    curvature = 0.25 * variance + penalty  # bounds the diagonal of the Hessian of either loss
    scale = np.append(1.0 / np.sqrt(curvature), 1.0)[:, None]
    ridge = np.append(penalty / curvature, 0.0)[:, None]

    def objective(flat: Floats) -> tuple[float, Floats]:
        scaled = flat.reshape(start.shape)
        weights = scaled * scale
        logits = z @ weights[:-1] + weights[-1]
        if multilabel:
            loss, p = float(np.logaddexp(0, logits).sum() - (wanted * logits).sum()), expit(logits)
        else:
            log_p = log_softmax(logits, axis=1)
            loss, p = -float((wanted * log_p).sum()), np.exp(log_p)
        error = (p - wanted) / n
        gradient = np.vstack([z.T @ error, error.sum(axis=0)]) * scale + ridge * scaled
        return loss / n + float((ridge * scaled**2).sum()) / 2, gradient.ravel()

    options = {"maxiter": MAX_ITER, "gtol": TOLERANCE, "ftol": 64 * np.finfo(np.float64).eps}
    found = minimize(objective, (start / scale).ravel(), jac=True, method="L-BFGS-B", options=options)
    if not found.success:
        what = f"linear probe: C={c:g} stopped before it converged, after {found.nit} iterations"
        warnings.warn(f"{what} ({found.message})", ConvergenceWarning, stacklevel=2)
    return np.asarray(found.x.reshape(start.shape) * scale)
