"""How much scores move with a setting, with intervals over seeds. Pure functions of numbers; never imports torch.

Scores are arrays [arms, settings, seeds]. A statistic is a function of their means over seeds, [arms, settings] or, of
many resamples at once, [arms, settings, draws].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from cass_scale.grid import SEEDS_FOR_INTERVAL

Floats = NDArray[np.float64]
Statistic = Callable[..., Any]  # of one array of means, or of several
DRAWS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; without one where there are too few seeds."""

    value: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high), or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def variance(means: Floats) -> Any:
    """Sample variance over settings, averaged over arms: the paper's "mean-variance" (arXiv 2301.12025, 5.3.1).

    That it divides by n - 1 and stops at 200 epochs follows from Table 7, which then gives the 0.0001791 of the text.
    """
    return means.var(axis=1, ddof=1).mean(axis=0)


def worst_drop(means: Floats) -> Any:
    """From the best setting to the worst, of the arm that falls most."""
    return (means.max(axis=1) - means.min(axis=1)).max(axis=0)


def average(means: Floats) -> Any:
    """Over arms and settings."""
    return means.mean(axis=(0, 1))


def gap(means: Floats, others: Floats) -> Any:
    """Difference of the averages."""
    return average(means) - average(others)


def share_less(means: Floats, others: Floats) -> Any:
    """How much less the first average is than the second, as a share of the second."""
    return 1 - average(means) / average(others)


def noise(scores: Floats) -> float:
    """The variance that seeds alone would make of settings which do not differ. scores: [arms, settings, seeds]."""
    return float((scores.var(axis=2, ddof=1) / scores.shape[2]).mean()) if scores.shape[2] > 1 else math.nan


def estimate(statistic: Statistic, *scores: Floats, least: float = -math.inf, most: float = math.inf) -> Estimate:
    """`statistic` of the means over seeds, with a bootstrap interval; all `scores` [..., seeds] share their seeds.

    Seeds are drawn with replacement, the same for all arms, settings and sides: differences are paired. The interval is
    Student's t times the bootstrap's standard error, freed of its bias for few seeds: of a mean it is exactly Student's
    interval, where percentiles of 3 to 5 seeds would be far too narrow. least, most: bounds of the statistic.
    """
    number = scores[0].shape[-1]
    value = float(statistic(*(side.mean(axis=-1) for side in scores)))
    if number < SEEDS_FOR_INTERVAL:
        return Estimate(value, None, None, number)
    picked = np.random.default_rng(0).integers(0, number, (DRAWS, number))
    drawn = statistic(*(side[..., picked].mean(axis=-1) for side in scores))
    half = float(-stdtrit(number - 1, 0.025) * np.std(drawn) * math.sqrt(number / (number - 1)))
    return Estimate(value, max(least, value - half), min(most, value + half), number)


def paired_p(differences: Floats) -> float | None:
    """Two-sided p of paired differences [seeds], Student's; None of fewer seeds than an interval needs."""
    number = len(differences)
    if number < SEEDS_FOR_INTERVAL:
        return None
    error, mean = float(differences.std(ddof=1)) / math.sqrt(number), float(differences.mean())
    return float(2 * stdtr(number - 1, -abs(mean) / error)) if error > 0 else float(mean == 0)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for being several (Holm 1979): the chance of any false finding stays under the level."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p)[order] * (len(p) - np.arange(len(p)))
    out = np.empty(len(p))
    out[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(x) for x in out]
