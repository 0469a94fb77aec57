"""How sure a score is: intervals over seeds and over test images, tests between two runs on the same images.

What is resampled is a unit: all images of a patient or group together, an image without one alone. Units are drawn
for all scores and runs alike, so that differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from cass_scale.evaluation.metrics import Floats

LEVEL = 0.95
BLOCKS = 200  # parts left out in turn, where there are more units
BLOCK = 1 << 22  # weights held at once
DEFINED = 0.9  # share of the replicates in which a score must be defined for an interval
ROUNDING = 1e-12  # sums in another order differ in their last digits
BIASED = frozenset({"ece"})  # resampling inflates it: no interval covers what it estimates

Interval = tuple[float, float]
Score = Callable[[Floats], dict[str, Floats]]  # weights of images [R, N] -> score name -> [R]


class Resampled(NamedTuple):
    """Scores by name, means over trainings: of all images, of each replicate [R], with each part left out [B]."""

    point: dict[str, float]
    drawn: dict[str, Floats]
    left_out: dict[str, Floats]
    units: int
    each: dict[str, Floats]  # of all images, by every training [S]

    def minus(self, other: Resampled) -> Resampled:
        """Paired differences to another run that was resampled with the same seed."""
        return Resampled(
            {name: value - other.point[name] for name, value in self.point.items()},
            {name: values - other.drawn[name] for name, values in self.drawn.items()},
            {name: values - other.left_out[name] for name, values in self.left_out.items()},
            self.units,
            {name: values - other.each[name] for name, values in self.each.items()},
        )

    def interval(self, name: str) -> Interval | None:
        """95 % interval of a score over images and trainings; None where resampling cannot give one (see `bca`).

        Its squared arms are those of the images' interval and of Student's over the trainings together (MOVER: Zou
        and Donner 2008, "Construction of confidence limits about effect measures"), so it is never shorter than
        either: resampled with replacement, two to five trainings would seem to differ far less than they do.
        """
        point, images = self.point[name], bca(self.point[name], self.drawn[name], self.left_out[name], self.units)
        if name in BIASED or images is None:
            return None
        trainings = over_seeds(self.each[name].tolist())[2] or (point, point)
        below, above = (math.hypot(one - point, other - point) for one, other in zip(images, trainings, strict=True))
        return point - below, point + above

    def effect(self, name: str) -> float | None:
        """Of a difference: Cohen's d of paired units, generalised from means to any score; None if nothing varies.

        Of several trainings, a unit's value is the mean over them: they are given, and do not add to the spread.
        """
        error = float(np.nanstd(self.drawn[name], ddof=1)) if np.isfinite(self.drawn[name]).sum() > 1 else 0.0
        return self.point[name] / (error * math.sqrt(self.units)) if error > 0 else None


def units_of(groups: Sequence[str]) -> NDArray[np.int64]:
    """Number of the unit that each image belongs to [N]; '' = no group, a unit of its own."""
    names = [group or f"\0{i}" for i, group in enumerate(groups)]
    return np.asarray(np.unique(names, return_inverse=True)[1], dtype=np.int64)


def resample(members: Sequence[Score], units: NDArray[np.int64], *, replicates: int, seed: int) -> Resampled:
    """The mean of the scores of `members` (one per training seed), and what resampling makes of it.

    Each replicate draws as many units as there are, with replacement, and asks all members about them.
    """
    random = np.random.default_rng(seed)
    n = int(units.max()) + 1
    rows = max(1, BLOCK // len(units))
    sizes = [min(rows, replicates - at) for at in range(0, replicates, rows)]
    blocks = [_by_member(members, _drawn(random, n, size)[:, units]) for size in sizes]
    drawn = {name: np.concatenate([block[name] for block in blocks], axis=1).mean(axis=0) for name in blocks[0]}
    part = np.random.default_rng(seed).permutation(n) % min(n, BLOCKS)  # of each unit; where they are few, one each
    without = (part[units] != np.arange(part.max() + 1)[:, None]).astype(np.float64)
    left_out = _by_member(members, without) if n > 1 else dict.fromkeys(drawn, np.zeros((1, 1)))
    whole = _by_member(members, np.ones((1, len(units))))
    return Resampled(
        {name: float(values.mean()) for name, values in whole.items()},
        drawn,
        {name: values.mean(axis=0) for name, values in left_out.items()},
        n,
        {name: values[:, 0] for name, values in whole.items()},
    )


def _drawn(random: np.random.Generator, n: int, size: int) -> Floats:
    return random.multinomial(n, np.full(n, 1 / n), size).astype(np.float64)


def _by_member(members: Sequence[Score], weights: Floats) -> dict[str, Floats]:
    """Score name -> [S, R]."""
    each = [member(weights) for member in members]
    return {name: np.stack([one[name] for one in each]) for name in each[0]}


def bca(point: float, drawn: Floats, left_out: Floats, units: int) -> Interval | None:
    """Interval from bootstrap replicates, corrected for bias, skewness and few units.

    BCa (Efron 1987, "Better Bootstrap Confidence Intervals") at the levels of Student's t, as Hesterberg 2015
    ("What Teachers Should Know About the Bootstrap") widens percentiles: of percentile, basic, BCa and these the
    one with the coverage nearest to 95 % in tests/evaluation/test_coverage.py. None with one unit, where all
    replicates agree (then nothing is known of the spread), or where under DEFINED of them are defined.
    """
    good = drawn[np.isfinite(drawn)]
    if units < 2 or not math.isfinite(point) or len(good) < max(2, DEFINED * len(drawn)) or np.ptp(good) == 0:
        return None
    below = ((good < point).mean() + (good <= point).mean()) / 2
    bias = norm.ppf(np.clip(below, 1 / len(good), 1 - 1 / len(good)))
    known = left_out[np.isfinite(left_out)]
    pull = known.mean() - known
    size = (pull**2).sum() ** 1.5
    skew = (pull**3).sum() / (6 * size) if size > 0 else 0.0
    z = student.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], units - 1) * math.sqrt(units / (units - 1))
    stretch = np.maximum(1 - skew * (bias + z), 1e-9)  # of few and very uneven units it could turn negative
    low, high = np.quantile(good, norm.cdf(bias + (bias + z) / stretch))
    return float(low), float(high)


def over_seeds(values: Sequence[float]) -> tuple[float, float, Interval | None]:
    """Mean, standard deviation, and Student's 95 % interval of the mean; no interval of one value."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, 0.0, None
    spread = float(np.std(values, ddof=1))
    half = float(student.ppf((1 + LEVEL) / 2, n - 1)) * spread / math.sqrt(n)
    return mean, spread, (mean - half, mean + half)


def sign_flips(pooled: Sequence[Score], units: NDArray[np.int64], *, flips: int, seed: int) -> dict[str, float]:
    """Two-sided p of the difference A - B of each score, under "it does not matter which run an answer is from".

    `pooled` scores (one per training seed) take weights of 2 N answers, those of A before those of B. In every
    flip the answers to each unit change sides with chance 1/2; for a mean over images this is Fisher's test by
    flipped signs (1935). p is at least 1 / (1 + flips); scores that are undefined have none. The trainings are taken
    as they are: p says nothing of others.
    """
    random = np.random.default_rng(seed)
    n, rows = int(units.max()) + 1, max(1, BLOCK // len(units))
    observed = {name: float(x[0]) for name, x in _apart(pooled, np.ones((1, len(units)))).items()}
    observed = {name: x for name, x in observed.items() if math.isfinite(x)}
    beyond, defined = dict.fromkeys(observed, 0), dict.fromkeys(observed, 0)
    for at in range(0, flips, rows):
        stays = random.integers(0, 2, (min(rows, flips - at), n))[:, units].astype(np.float64)
        found = _apart(pooled, stays)
        for name, x in observed.items():
            beyond[name] += int((np.abs(found[name]) >= abs(x) - ROUNDING).sum())
            defined[name] += int(np.isfinite(found[name]).sum())
    return {name: (1 + beyond[name]) / (1 + defined[name]) for name in observed}


def _apart(pooled: Sequence[Score], stays: Floats) -> dict[str, Floats]:
    """Mean over seeds of A - B when the answers with 0 in `stays` [R, N] are exchanged: score name -> [R]."""
    a = _by_member(pooled, np.concatenate([stays, 1 - stays], axis=1))
    b = _by_member(pooled, np.concatenate([1 - stays, stays], axis=1))
    return {name: (a[name] - b[name]).mean(axis=0) for name in a}
