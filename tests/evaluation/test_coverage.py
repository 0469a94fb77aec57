"""Do 95 % intervals hold the truth 95 times of 100? Simulated studies of a population whose scores are known."""

from __future__ import annotations

import numpy as np
import pytest

from cass_scale.evaluation.statistics import Resampled, Score, resample, sign_flips, units_of
from cass_scale.evaluation.weighted import Weighted

STUDIES, REPLICATES = 250, 250
NAMES = ("accuracy", "macro_f1", "auc", "brier")


def study(
    rng: np.random.Generator, groups: int, per: int, skill: float = 1.5
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """`per` images of each of `groups` patients, who share their class and half of their noise; 3 uneven classes."""
    y = np.repeat(rng.choice(3, groups, p=[0.5, 0.3, 0.2]), per)
    shared = np.repeat(rng.normal(size=(groups, 3)), per, axis=0) if per > 1 else rng.normal(size=(groups, 3))
    logits = (shared + rng.normal(size=(groups * per, 3))) / np.sqrt(2) + skill * np.eye(3)[y]
    p = np.exp(logits)
    return np.eye(3)[y], p / p.sum(axis=1, keepdims=True), [f"p{i // per}" for i in range(groups * per)]


def score(wanted: np.ndarray, p: np.ndarray) -> Weighted:
    return Weighted(wanted, p, multilabel=False, threshold=0.5)


def percentiles(found: Resampled, name: str) -> tuple[float, float]:
    low, high = np.nanquantile(found.drawn[name], [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize(("groups", "per"), [(60, 1), (30, 4)], ids=["60 images", "30 patients of 4 images"])
def test_coverage(groups: int, per: int) -> None:
    """The intervals of `bca` cover as they say, and at least as well as plain percentiles do."""
    rng = np.random.default_rng(0)
    wanted, p, _ = study(rng, 100_000, 1)
    truth = {name: values[0] for name, values in score(wanted, p)(np.ones((1, len(p)))).items()}
    ours, plain = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0)
    for number in range(STUDIES):
        wanted, p, names = study(rng, groups, per)
        found = resample([score(wanted, p)], units_of(names), replicates=REPLICATES, seed=number)
        for name in NAMES:
            for counts, interval in ((ours, found.interval(name)), (plain, percentiles(found, name))):
                counts[name] += interval is not None and interval[0] <= truth[name] <= interval[1]
    covered = {name: count / STUDIES for name, count in ours.items()}
    assert all(0.92 <= share <= 0.985 for share in covered.values()), covered
    assert abs(np.mean(list(covered.values())) - 0.95) <= abs(np.mean(list(plain.values())) / STUDIES - 0.95) + 0.005


def test_images_of_one_patient_are_no_independent_witnesses() -> None:
    """Drawn one by one, 30 patients of 4 images look like 120: the intervals are too short by far."""
    rng = np.random.default_rng(1)
    wanted, p, _ = study(rng, 100_000, 1)
    truth, hits = score(wanted, p)(np.ones((1, len(p))))["brier"][0], 0
    for number in range(80):
        wanted, p, names = study(rng, 20, 10)
        low, high = resample([score(wanted, p)], units_of([""] * len(names)), replicates=200, seed=number).interval(
            "brier"
        ) or (0, 0)
        hits += low <= truth <= high
    assert hits / 80 < 0.8


def test_false_alarms_of_sign_flips() -> None:
    """Two runs of the same skill, whose mistakes go together: p is below 0.05 in about 5 of 100 studies."""
    rng = np.random.default_rng(2)
    p_values: list[dict[str, float]] = []
    for number in range(STUDIES):
        wanted, base, names = study(rng, 40, 1)
        a, b = (np.exp(np.log(base) + 0.7 * rng.normal(size=base.shape)) for _ in range(2))
        both = score(np.concatenate([wanted, wanted]), np.concatenate([a / 9, b / 9]).clip(max=1))
        p_values.append(sign_flips([both], units_of(names), flips=199, seed=number))
    for name in NAMES:
        assert np.mean([p[name] <= 0.05 for p in p_values]) < 0.085


def draw(rng: np.random.Generator, trainings: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """What 40 images have in common for every training, and what each training adds [S, 40] by luck; the truth is 0."""
    own = 0.5 * rng.normal(size=(trainings, 40)) + spread * rng.normal(size=(trainings, 1))
    return rng.normal(size=40), own


def means(values: np.ndarray) -> list[Score]:
    """The score of each training: the weighted mean of a number per image [S, N]."""
    return [lambda w, x=one: {"mean": w @ x / w.sum(axis=1)} for one in values]


@pytest.mark.parametrize("trainings", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.02, 0.15, 0.7], ids=["images decide", "both", "trainings decide"])
def test_coverage_over_images_and_trainings(trainings: int, spread: float) -> None:
    """Of the mean over trainings to come on images to come, whichever varies more; two trainings may cover more."""
    rng, hits = np.random.default_rng(3), 0
    for number in range(STUDIES):
        shared, own = draw(rng, trainings, spread)
        found = resample(means(shared + own), np.arange(40), replicates=100, seed=number)
        low, high = found.interval("mean") or (1, 1)
        hits += low <= 0 <= high
    assert hits / STUDIES >= 0.93, hits / STUDIES


@pytest.mark.parametrize("trainings", [3, 5])
def test_false_winners_of_methods_that_are_equal(trainings: int) -> None:
    """A training is better or worse by luck, the method is not: sign flips alone would name a winner far too often."""
    rng, alone, wins, units = np.random.default_rng(4), 0, 0, np.arange(40)
    for number in range(STUDIES):
        shared, own = draw(rng, 2 * trainings, 0.15)
        a, b = np.split(shared + own, 2)
        p = sign_flips(means(np.hstack([a, b])), units, flips=199, seed=number)["mean"]
        first, second = (resample(means(x), units, replicates=100, seed=number) for x in (a, b))
        low, high = first.minus(second).interval("mean") or (0, 0)
        alone += p < 0.05
        wins += p < 0.05 and not low <= 0 <= high
    assert alone / STUDIES > 0.1 and wins / STUDIES <= 0.06, (alone, wins)
