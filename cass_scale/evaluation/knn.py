"""The weighted nearest-neighbour vote on frozen features."""

from __future__ import annotations

import numpy as np

from cass_scale.evaluation.metrics import Array, Floats, finite, targets

CHUNK = 1 << 23  # cosines held at once: 64 MiB
TIE = 1e-12  # cosines closer than this differ by the float32 rounding of the features: (1e-6)**2


def knn(
    train_x: Array,
    train_y: Array,
    test_x: Array,
    *,
    classes: int,
    multilabel: bool,
    k: int = 20,
    temperature: float = 0.07,
) -> Floats:
    """Probability [M, C] of test rows: the `k` nearest train rows vote, weighted exp(cosine / temperature).

    Protocol of Wu et al. 2018 (arXiv 1805.01978, section 3.4) with the defaults of DINO (arXiv 2104.14294,
    section 3.2; facebookresearch/dino eval_knn.py). `train_x` [N, D], `test_x` [M, D], `train_y` int64 [N],
    or 0/1 [N, C] when `multilabel` (the weighted mean of the label vectors). With fewer than `k` train rows
    all vote. Rows as near as the k-th (within the rounding of the features) share the places that are left:
    the order of the train rows never matters, and constant features answer with the class frequencies. A row
    of zeros has cosine 0 to all. Raises ValueError on NaN features, k < 1 or temperature <= 0.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"knn needs k >= 1 and temperature > 0, not k={k} and temperature={temperature}")
    votes = targets("train_y", train_y, classes=classes, multilabel=multilabel)
    bank, queries = _directions("train features", train_x), _directions("test features", test_x)
    k = min(k, len(bank))
    step = max(1, CHUNK // len(bank))
    chunks = [_vote(queries[i : i + step] @ bank.T, votes, k, temperature) for i in range(0, len(queries), step)]
    return np.concatenate(chunks) if chunks else np.zeros((0, classes))


def _directions(what: str, x: Array) -> Floats:
    finite(what, x)
    x = x.astype(np.float64)  # in float32 the cosines of a nearly collapsed encoder all round to 1
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny))


def _vote(cosine: Floats, votes: Floats, k: int, temperature: float) -> Floats:
    kth = np.partition(cosine, -k, axis=1)[:, -k, None]
    nearer, tied = cosine > kth + TIE, np.abs(cosine - kth) <= TIE
    share = (k - nearer.sum(axis=1, keepdims=True)) / tied.sum(axis=1, keepdims=True)
    # Relative to the nearest: the factor cancels in the mean and a small temperature cannot overflow.
    weight = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / temperature)
    weight *= nearer + tied * share
    return np.asarray((weight @ votes) / weight.sum(axis=1, keepdims=True))
