"""Intervals, tests and corrections against SciPy and against what can be worked out by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from cass_scale.evaluation import statistics as module
from cass_scale.evaluation.statistics import Resampled, bca, over_seeds, resample, sign_flips, units_of


def mean_of(values: np.ndarray):
    """A score: the weighted mean of a number per image."""
    return lambda weights: {"mean": weights @ values / weights.sum(axis=1)}


def pooled(a: np.ndarray, b: np.ndarray):
    return mean_of(np.concatenate([a, b]))


def alone(n: int) -> np.ndarray:
    return units_of([""] * n)


def test_over_seeds_is_students_interval() -> None:
    values = [0.8, 0.83, 0.79, 0.85, 0.81]
    mean, spread, interval = over_seeds(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, spread) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert interval == pytest.approx((low, high))
    assert over_seeds([0.5]) == (0.5, 0.0, None)
    assert over_seeds([0.5, 0.5]) == (0.5, 0.0, (0.5, 0.5))


def test_units_are_groups_and_images_without_one() -> None:
    units = units_of(["p1", "", "p2", "p1", ""])
    assert units[0] == units[3] and len(set(units.tolist())) == 4


def test_the_bootstrap_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(0).exponential(size=300)
    found = resample([mean_of(values)], alone(300), replicates=4000, seed=1)
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="BCa", rng=np.random.default_rng(2))
    assert found.point["mean"] == pytest.approx(values.mean())
    assert found.interval("mean") == pytest.approx(tuple(expected.confidence_interval), abs=0.01)
    assert found.drawn["mean"].std() == pytest.approx(values.std() / math.sqrt(300), rel=0.05)


def test_groups_are_drawn_whole() -> None:
    """20 patients with 10 equal images each: the interval is that of 20 numbers, not of 200."""
    each = np.random.default_rng(0).normal(size=20)
    values, groups = np.repeat(each, 10), [f"p{i // 10}" for i in range(200)]
    wide = resample([mean_of(values)], units_of(groups), replicates=2000, seed=0)
    assert wide.units == 20 and wide.drawn["mean"].std() == pytest.approx(each.std() / math.sqrt(20), rel=0.06)
    narrow = resample([mean_of(values)], alone(200), replicates=2000, seed=0)
    assert np.ptp(wide.interval("mean")) > 2.5 * np.ptp(narrow.interval("mean"))


def test_trainings_widen_the_interval_as_few_numbers_do() -> None:
    """Where images hardly vary it is Student's interval over the trainings, and otherwise never shorter than it."""
    values = np.random.default_rng(0).normal(size=50)
    values, each = values - values.mean(), [0.1, 0.2, 0.3]
    apart = resample([mean_of(1e-9 * values + x) for x in each], alone(50), replicates=200, seed=0)
    assert apart.point["mean"] == pytest.approx(0.2) and apart.each["mean"] == pytest.approx(each)
    assert apart.interval("mean") == pytest.approx(over_seeds(each)[2], abs=1e-6)
    rough = resample([mean_of(values + x) for x in each], alone(50), replicates=200, seed=0)
    once = resample([mean_of(values + 0.2)], alone(50), replicates=200, seed=0).interval("mean") or (0, 0)
    student = over_seeds(each)[2] or (0, 0)
    for side, sign in ((0, -1), (1, 1)):
        arms = [sign * (x[side] - rough.point["mean"]) for x in (rough.interval("mean"), once, student)]
        assert arms[0] == pytest.approx(math.hypot(*arms[1:]), rel=1e-6)
    same = resample([mean_of(np.zeros(50))] * 3, alone(50), replicates=100, seed=0)
    assert same.interval("mean") is None, "nothing varies, so nothing is known of the spread"


def test_blocks_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(30)
    first, second = (resample([mean_of(values)], alone(30), replicates=50, seed=s).drawn["mean"] for s in (0, 0))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, resample([mean_of(values)], alone(30), replicates=50, seed=1).drawn["mean"])
    monkeypatch.setattr(module, "BLOCK", 90)
    np.testing.assert_allclose(resample([mean_of(values)], alone(30), replicates=50, seed=0).drawn["mean"], first)


def test_many_units_are_left_out_in_parts() -> None:
    values = np.random.default_rng(0).exponential(size=5000)
    found = resample([mean_of(values)], alone(5000), replicates=10, seed=0)
    assert len(found.left_out["mean"]) == module.BLOCKS
    pull = found.left_out["mean"].mean() - found.left_out["mean"]
    skew = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    assert skew == pytest.approx(stats.skew(values) / (6 * math.sqrt(5000)), abs=0.012)


@pytest.mark.parametrize(
    ("drawn", "units"),
    [([0.5] * 100, 20), ([math.nan] * 20 + [0.4, 0.6] * 40, 20), ([0.4, 0.6] * 50, 1)],
    ids=["no spread", "a fifth undefined", "one patient"],
)
def test_where_there_is_no_interval(drawn: list[float], units: int) -> None:
    assert bca(0.5, np.array(drawn), np.array([0.5, 0.5]), units) is None
    assert bca(math.nan, np.arange(100.0), np.arange(9.0), 9) is None


def test_few_and_uneven_units_stay_within_the_replicates() -> None:
    drawn = np.random.default_rng(0).random(200)
    low, high = bca(0.9, drawn, np.array([0.0, 1.0, 1.0]), 3) or (0, 0)
    assert drawn.min() <= low < high <= drawn.max()


def test_calibration_error_has_no_interval() -> None:
    shape = Resampled(
        {"ece": 0.1}, {"ece": np.random.default_rng(0).random(100)}, {"ece": np.ones(5)}, 50, {"ece": np.array([0.1])}
    )
    assert shape.interval("ece") is None


def test_paired_differences_and_effect() -> None:
    """The effect of a mean is Cohen's d of the paired differences; pairing removes what both runs share."""
    rng = np.random.default_rng(0)
    hard = rng.normal(size=400)
    a, b = hard + 0.2 + 0.3 * rng.normal(size=400), hard + 0.3 * rng.normal(size=400)
    runs = [resample([mean_of(x)], alone(400), replicates=3000, seed=3) for x in (a, b)]
    difference = runs[0].minus(runs[1])
    d = (a - b).mean() / (a - b).std(ddof=1)
    assert difference.effect("mean") == pytest.approx(d, rel=0.05)
    low, high = difference.interval("mean") or (0, 0)
    assert (low, high) == pytest.approx(stats.ttest_rel(a, b).confidence_interval(0.95), abs=0.01)
    assert np.ptp(runs[0].interval("mean")) > 2 * (high - low)
    assert runs[0].minus(runs[0]).effect("mean") is None


def test_the_effect_of_several_trainings_is_that_of_their_means() -> None:
    rng = np.random.default_rng(1)
    d = 0.2 + 0.5 * rng.normal(size=(3, 400)) + np.array([[-0.3], [0.0], [0.3]])
    found = resample([mean_of(x) for x in d], alone(400), replicates=3000, seed=3)
    mean = d.mean(axis=0)
    assert found.effect("mean") == pytest.approx(mean.mean() / mean.std(ddof=1), rel=0.05)


def test_sign_flips_are_exact_for_a_few_images() -> None:
    a, b = np.array([1.0, 1, 0, 1, 1, 1, 0, 1]), np.array([0.0, 0, 0, 1, 0, 0, 1, 1])
    d = a - b
    signs = np.array(list(product([1, -1], repeat=8)))
    exact = (np.abs((signs * d).mean(axis=1)) >= abs(d.mean()) - 1e-12).mean()
    p = sign_flips([pooled(a, b)], alone(8), flips=20_000, seed=0)["mean"]
    assert p == pytest.approx(exact, abs=0.01)
    expected = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", rng=np.random.default_rng(0)
    )
    assert p == pytest.approx(expected.pvalue, abs=0.01)


def test_sign_flips_exchange_whole_groups() -> None:
    """100 images of 4 patients, all better in A: of 16 ways to exchange patients two are as extreme."""
    a, b = np.ones(100), np.zeros(100)
    groups = units_of([f"p{i % 4}" for i in range(100)])
    assert sign_flips([pooled(a, b)], groups, flips=4000, seed=0)["mean"] == pytest.approx(2 / 16, abs=0.02)
    assert sign_flips([pooled(a, b)], alone(100), flips=999, seed=0)["mean"] == 1 / 1000


def test_no_difference_is_no_evidence_and_an_undefined_score_has_no_p() -> None:
    a = np.random.default_rng(0).random(20)
    assert sign_flips([pooled(a, a)], alone(20), flips=99, seed=0)["mean"] == 1
    undefined = [lambda weights: {"auc": np.full(len(weights), np.nan)}]
    assert sign_flips(undefined, alone(20), flips=9, seed=0) == {}
