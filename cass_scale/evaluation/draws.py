"""Which labelled images a training learns from: fractions, balanced subsets, folds; pure functions of the seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cass_scale import rng
from cass_scale.errors import DataError
from cass_scale.evaluation.metrics import Array, Floats
from cass_scale.types import JSON

Rows = NDArray[np.int64]
SIZES = {"S": 0.01, "M": 0.1, "F": 1.0}  # of the images to learn from; about those of arXiv 2108.10048, table 1


class Draw(NamedTuple):
    """One training: its number (a seed or a fold), the seed of its weights and order, and what it learns from."""

    number: int
    seed: int
    train: Rows  # ids, ascending
    val: Rows  # ids; may be empty


@dataclass(frozen=True)
class Condition:
    """How much is learnt from, and the trainings under which that is repeated."""

    name: str  # '' = all images; else part of a file's name
    about: JSON  # labels, subset, folds: for the record
    draws: tuple[Draw, ...]


@dataclass(frozen=True)
class Pool:
    """The labelled images that may be learnt from."""

    train: Rows  # ids
    val: Rows  # ids
    wanted: Floats  # 0/1 labels by id [N, C]
    groups: Rows  # by id [N]; -1 = none
    classes: Sequence[str]


def conditions(
    pool: Pool,
    *,
    labels: Sequence[float],
    subset: Sequence[str | int] | None,
    folds: int | None,
    seeds: Sequence[int],
    random: bool,
) -> list[Condition]:
    """Every amount that is asked for, each under its seeds or folds.

    labels: shares of the training images, stratified. subset: S, M, F or numbers of images, balanced by class, in
    place of labels. folds: one of so many parts of training and validation images validates, and the amount is
    drawn from the others. random: whether training on given images depends on the seed; where nothing does, one
    training stands for all. Raises DataError where a class would be left without an image.
    """
    starts = _by_fold(pool, folds, seeds[0]) if folds else [Draw(seed, seed, pool.train, pool.val) for seed in seeds]
    found = []
    for amount in labels if subset is None else subset:
        whole = amount in (1.0, "F")
        kept = starts if folds or random or not whole else starts[:1]
        kind = "labels" if subset is None else "subset"
        parts = [] if amount == 1.0 and subset is None else [f"{kind}{amount}"]
        about = {"labels": None, "subset": None, kind: amount, "folds": folds}
        draws = tuple(one._replace(train=_drawn(pool, one, amount, kind)) for one in kept)
        found.append(Condition("-".join([*parts, f"folds{folds}"] if folds else parts), about, draws))
    return found


def _by_fold(pool: Pool, number: int, seed: int) -> list[Draw]:
    ids = np.sort(np.concatenate([pool.train, pool.val]))
    fold = folds(pool.wanted[ids], pool.groups[ids], number, seed)
    if fold.max() + 1 < number:
        raise DataError(f"folds={number}: there are fewer patients, groups or single images than folds")
    found = [Draw(k, seed + k, ids[fold != k], ids[fold == k]) for k in range(number)]
    for draw in found:
        lost = _lost(pool, ids, draw.train)
        if lost:
            raise DataError(
                f"folds={number}: all images of {', '.join(lost)} fall into one fold, so another is never trained on "
                "them; it takes images of two patients, groups or single ones: leave the class out, or give more"
            )
    return found


def _drawn(pool: Pool, start: Draw, amount: str | float, kind: str) -> Rows:
    """Ids to learn from, out of `start.train`."""
    ids, wanted = start.train, pool.wanted[start.train]
    if amount in (1.0, "F"):
        return ids
    if kind == "labels":
        chosen = ids[fraction(wanted, float(amount), start.seed)]
    else:
        present = int(wanted.any(axis=0).sum())
        n = round(SIZES[str(amount)] * len(ids)) if amount in SIZES else int(amount)
        chosen = ids[balanced(wanted, max(n, present) if amount in SIZES else n, start.seed)]
    if lost := _lost(pool, ids, chosen):
        counts = {name: int(pool.wanted[ids][:, list(pool.classes).index(name)].sum()) for name in lost}
        few = ", ".join(f"{name} ({n} training images)" for name, n in counts.items())
        enough = f"labels={math.ceil(500 / min(counts.values())) / 1000:g}" if kind == "labels" else f"subset={present}"
        raise DataError(f"{kind}={amount} leaves no image of {few}: {enough} or more keeps one of every class")
    return chosen


def _lost(pool: Pool, before: Rows, after: Rows) -> list[str]:
    """Classes that occur among the ids `before`, and not among `after`."""
    gone = pool.wanted[before].any(axis=0) & ~pool.wanted[after].any(axis=0)
    return [pool.classes[c] for c in np.flatnonzero(gone).tolist()]


def fraction(wanted: Floats, share: float, seed: int) -> Rows:
    """Rows of `wanted` [N, C]: of each class its share, rounded; a larger share of the same seed holds a smaller one.

    A row with several labels counts by its rarest.
    """
    stratum, order = strata(wanted), _order(len(wanted), seed)
    parts = [order[stratum[order] == s] for s in np.unique(stratum)]
    return np.sort(np.concatenate([part[: math.floor(share * len(part) + 0.5)] for part in parts]))


def balanced(wanted: Floats, n: int, seed: int) -> Rows:
    """`n` rows of `wanted` [N, C], as many of each class as of any other, as far as there are (arXiv 2108.10048, A).

    Again and again an image of the class with the fewest so far; of several labels, none of them is a class too.
    """
    kinds = np.hstack([wanted > 0, ~wanted.any(axis=1, keepdims=True)])
    order = _order(len(wanted), seed)
    waiting = [order[kind[order]].tolist()[::-1] for kind in kinds.T]
    have, chosen = np.zeros(len(waiting)), set[int]()
    while len(chosen) < min(n, len(wanted)):
        left = [c for c, rows in enumerate(waiting) if rows]
        row = waiting[min(left, key=lambda c: have[c])].pop()
        if row not in chosen:
            chosen.add(row)
            have += kinds[row]
    return np.array(sorted(chosen), dtype=np.int64)


def folds(wanted: Floats, groups: Array | None, number: int, seed: int) -> Rows:
    """Fold of each row [N]: groups (-1 = none) sorted by class and size, then dealt like cards; 0 for a single group.

    A row counts by its rarest label, a group by its first row.
    """
    n, stratum = len(wanted), strata(wanted)
    own = np.arange(n)
    key = own if groups is None else np.where(groups < 0, groups.max() + 1 + own, groups)
    _, first, unit, size = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((np.random.default_rng(seed).random(len(first)), size, stratum[first]))
    dealt = np.empty(len(first), dtype=np.int64)
    dealt[order] = np.arange(len(first)) % number
    return np.asarray(dealt[unit])


def strata(wanted: Floats) -> Rows:
    """The rarest label of each row of `wanted` [N, C], or C where it has none."""
    rarest = np.where(wanted > 0, wanted.sum(axis=0), np.inf).argmin(axis=1)
    return np.asarray(np.where(wanted.any(axis=1), rarest, wanted.shape[1]))


def _order(n: int, seed: int) -> Rows:
    order: torch.Tensor = rng.permutation(seed, 0, n, rng.SUBSET)
    return order.numpy()
