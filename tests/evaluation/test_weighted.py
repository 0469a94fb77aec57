"""Scores under weights are those of scikit-learn on rows repeated so often."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cass_scale.evaluation import weighted as module
from cass_scale.evaluation.metrics import scores
from cass_scale.evaluation.weighted import Area, Weighted

CASES = [(1, False), (2, False), (3, False), (5, False), (1, True), (2, True), (4, True)]


def sample(classes: int, multilabel: bool, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probabilities of two digits, so that there are ties, also at thresholds and bin edges."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, classes)) < 0.3).astype(int) if multilabel else rng.choice(classes, n)
    return truth, rng.random((n, classes)).round(2)


def one_hot(truth: np.ndarray, classes: int) -> np.ndarray:
    return truth.astype(float) if truth.ndim == 2 else np.eye(classes)[truth]


@pytest.mark.parametrize(("classes", "multilabel"), CASES)
@pytest.mark.parametrize("n", [1, 7, 60])
def test_weights_are_repetitions(classes: int, multilabel: bool, n: int) -> None:
    truth, p = sample(classes, multilabel, n)
    times = np.random.default_rng(1).multinomial(n, np.full(n, 1 / n), 12)
    found = Weighted(one_hot(truth, classes), p, multilabel=multilabel, threshold=0.3)(times.astype(float))
    names = [str(c) for c in range(classes)]
    for r, counts in enumerate(times):
        rows = np.repeat(np.arange(n), counts)
        expected = scores(truth[rows], p[rows], classes=names, multilabel=multilabel, threshold=0.3)
        assert expected.pop("n") == n
        got = {name: None if np.isnan(values[r]) else values[r] for name, values in found.items()}
        assert got == pytest.approx(expected, abs=1e-12)


def test_the_positive_of_two_classes_can_be_the_first() -> None:
    truth, p = sample(2, False, 60)
    keys = {"multilabel": False, "threshold": 0.3, "positive": 0}
    found = Weighted(np.eye(2)[truth], p, **keys)(np.ones((1, 60)))
    expected = scores(truth, p, classes=["a", "b"], **keys)
    for name in ("auc", "sensitivity", "specificity"):
        assert found[name][0] == pytest.approx(expected[name])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, p = sample(3, False, 40)
    score, weights = Weighted(np.eye(3)[truth], p, multilabel=False, threshold=0.5), rng_weights(9, 40)
    whole = score(weights)
    monkeypatch.setattr(module, "BLOCK", 80)
    for name, values in score(weights).items():
        np.testing.assert_allclose(values, whole[name])


def rng_weights(replicates: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).random((replicates, n))


def test_area_takes_real_weights_and_ties() -> None:
    rng = np.random.default_rng(2)
    y, score, w = rng.random(50) < 0.4, rng.integers(0, 6, 50) / 5, rng.random((3, 50))
    expected = [roc_auc_score(y, score, sample_weight=one) for one in w]
    assert Area(score, y)(w) == pytest.approx(expected)


def test_the_order_of_the_area_can_be_given() -> None:
    truth, p = sample(3, False, 30)
    hot = np.eye(3)[truth]
    plain, ranked = (
        Weighted(hot, p, multilabel=False, threshold=0.5, order=order)(np.ones((1, 30)))["auc"]
        for order in (None, np.exp(3 * (p / p.sum(axis=1, keepdims=True))))
    )
    assert plain == pytest.approx(ranked)
