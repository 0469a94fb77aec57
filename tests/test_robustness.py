"""Robustness as the paper computes it, the worst drop, and intervals that cover what they claim to cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from cass_scale import robustness
from cass_scale.published import tables
from cass_scale.robustness import average, estimate, gap, holm, noise, paired_p, share_less, variance, worst_drop

TRUE = np.array([[0.0, 0.5, 1.0], [0.0, 1.0, 2.0]])


def test_the_papers_number_follows_from_its_table_by_this_definition() -> None:
    lines = tables()["tables"]["7"]["values"][:3]  # Figure 2a ends at 200 epochs
    means = np.array([[line[arm][0] for line in lines] for arm in ("cnn", "vit")])
    assert variance(means) == pytest.approx(tables()["variances"]["epochs"]["cass"], abs=1e-7)


def test_the_worst_drop_is_that_of_the_arm_that_falls_most() -> None:
    assert worst_drop(np.array([[0.9, 0.8, 0.85], [0.7, 0.9, 0.95]])) == pytest.approx(0.25)
    assert variance(np.ones((2, 3))) == worst_drop(np.ones((2, 3))) == 0.0


def test_the_interval_of_a_mean_is_students() -> None:
    scores = np.array([[[0.1, 0.4, 0.3, 0.7]]])
    found = estimate(average, scores)
    half = 3.182446 * scores.std(ddof=1) / 2
    assert found.interval == pytest.approx((found.value - half, found.value + half), abs=0.01)
    assert found.seeds == 4 and found.value == pytest.approx(0.375)


def test_too_few_seeds_have_no_interval() -> None:
    assert estimate(average, np.array([[[0.1, 0.4]]])).interval is None
    assert estimate(average, np.array([[[0.1, 0.4, 0.3]]])).interval is not None
    assert math.isnan(noise(np.ones((1, 2, 1))))


def test_differences_are_paired_by_seed() -> None:
    shared = np.array([[[0.1, 0.9, 0.5, 0.3, 0.7]]])
    close = estimate(gap, shared + np.array([0.010, 0.012, 0.011, 0.009, 0.013]), shared)
    assert close.interval is not None and 0 < close.interval[0] < 0.011 < close.interval[1] < 0.02
    saved = estimate(share_less, shared * 0.25, shared)
    assert saved.value == pytest.approx(0.75) and saved.interval == pytest.approx((0.75, 0.75))


def test_what_cannot_be_negative_has_no_negative_bound() -> None:
    scores = np.random.default_rng(0).normal(0, 1, (2, 3, 3))
    without, with_bound = estimate(variance, scores).interval, estimate(variance, scores, least=0.0).interval
    assert without is not None and without[0] < 0 and with_bound == (0.0, without[1])
    assert estimate(average, np.array([[[0.9, 1.0, 0.98]]]), most=1.0).high == 1.0


def test_seeds_alone_make_the_variance_that_noise_says() -> None:
    dice = np.random.default_rng(1)
    drawn = dice.normal(0, 0.3, (400, 2, 3, 5))
    seen, said = np.mean([variance(one.mean(-1)) for one in drawn]), np.mean([noise(one) for one in drawn])
    assert seen == pytest.approx(said, rel=0.1)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_95_of_100_intervals_hold_the_truth(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "DRAWS", 1000)
    dice, hits = np.random.default_rng(seeds), np.zeros(3)
    for _ in range(300):
        mean = estimate(average, dice.normal(0, 1, (1, 1, seeds)))
        a, b = (TRUE[..., None] + dice.normal(0, 0.3, (2, 3, seeds)) for _ in range(2))
        one, less = estimate(variance, a), estimate(lambda x, y: variance(x) - variance(y), a, b)
        for i, (found, truth) in enumerate(((mean, 0.0), (one, variance(TRUE)), (less, 0.0))):
            assert found.interval is not None
            hits[i] += found.interval[0] <= truth <= found.interval[1]
    assert (hits / 300 > 0.91).all() and (hits / 300 < 0.99).all(), hits / 300


def test_holm() -> None:
    """The example of Holm's own procedure: smallest p times 4, then 3, 2, 1, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_p_of_paired_differences_is_students() -> None:
    differences = np.array([0.02, 0.05, 0.01, 0.04])
    found, interval = paired_p(differences), estimate(average, differences[None, None]).interval
    assert found == pytest.approx(float(ttest_1samp(differences, 0.0).pvalue)) and interval is not None
    assert (found < 0.05) == (interval[0] > 0), "alone, p and the interval say the same"
    assert paired_p(differences[:2]) is None and paired_p(np.zeros(3)) == 1.0 and paired_p(np.ones(3)) == 0.0
