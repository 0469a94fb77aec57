from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from cass_scale.evaluation.metrics import scores


def softmax_like(rng: np.random.Generator, n: int, c: int) -> np.ndarray:
    p = rng.random((n, c)) ** 3
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_single_label_agrees_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, p = rng.choice(4, 120, p=[0.6, 0.2, 0.15, 0.05]), softmax_like(rng, 120, 4)
    guess = p.argmax(axis=1)
    assert scores(truth, p, classes=list("abcd"), multilabel=False) == pytest.approx(
        {
            "macro_f1": sk.f1_score(truth, guess, average="macro"),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, guess),
            "auc": sk.roc_auc_score(truth, p, multi_class="ovr", average="macro"),
            "accuracy": sk.accuracy_score(truth, guess),
            "n": 120,
        }
    )


@pytest.mark.parametrize("seed", range(5))
def test_multi_label_agrees_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, p = (rng.random((90, 3)) < [0.5, 0.2, 0.1]).astype(np.float32), rng.random((90, 3))
    guess = (p > 0.5).astype(int)
    balanced = [sk.balanced_accuracy_score(truth[:, c], guess[:, c]) for c in range(3)]
    assert scores(truth, p, classes=list("abc"), multilabel=True) == pytest.approx(
        {
            "macro_f1": sk.f1_score(truth, guess, average="macro"),
            "balanced_accuracy": np.mean(balanced),
            "auc": sk.roc_auc_score(truth, p, average="macro"),
            "micro_f1": sk.f1_score(truth, guess, average="micro"),
            "n": 90,
        }
    )


def test_binary_auc_is_that_of_the_second_class() -> None:
    truth = np.array([0, 0, 1, 1])
    p = np.array([[0.2, 0.1], [0.3, 0.4], [0.1, 0.35], [0.6, 0.8]])  # columns that disagree on purpose
    assert scores(truth, p, classes=["healthy", "ill"], multilabel=False)["auc"] == 0.75


def test_a_class_absent_from_the_truth_does_not_count() -> None:
    rng = np.random.default_rng(0)
    truth, p = rng.integers(0, 2, 50), softmax_like(rng, 50, 3)
    guess = p.argmax(axis=1)
    assert (guess == 2).any()
    found = scores(truth, p, classes=list("abc"), multilabel=False)
    per_class = [sk.f1_score(truth == c, guess == c) for c in (0, 1)]
    assert found["macro_f1"] == pytest.approx(np.mean(per_class))
    assert found["balanced_accuracy"] == pytest.approx(np.mean([(guess[truth == c] == c).mean() for c in (0, 1)]))
    assert found["auc"] == pytest.approx(np.mean([sk.roc_auc_score(truth == c, p[:, c]) for c in (0, 1)]))


def test_a_label_absent_from_the_truth_does_not_count() -> None:
    truth = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]])  # b never, c always
    p = np.array([[0.9, 0.8, 0.9], [0.6, 0.1, 0.9], [0.7, 0.1, 0.1], [0.1, 0.1, 0.9]])
    found = scores(truth, p, classes=list("abc"), multilabel=True)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 6 / 7) / 2)  # of a and c
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)  # of a alone
    assert found["auc"] == 1.0
    assert found["micro_f1"] == pytest.approx(2 * 5 / (2 * 5 + 2 + 1))  # of all three


def test_nothing_occurs_and_nothing_can_be_said() -> None:
    found = scores(np.zeros((3, 2)), np.full((3, 2), 0.4), classes=["a", "b"], multilabel=True)
    assert found == {"macro_f1": None, "balanced_accuracy": None, "auc": None, "micro_f1": None, "n": 3}


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_constant_prediction_is_worth_chance_and_warns_of_nothing(multilabel: bool) -> None:
    truth = np.array([0] * 6 + [1] * 3 + [2])
    p = np.tile([0.6, 0.3, 0.1], (10, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(np.eye(3)[truth] if multilabel else truth, p, classes=list("abc"), multilabel=multilabel)
    assert found["auc"] == 0.5
    assert found["balanced_accuracy"] == pytest.approx(0.5 if multilabel else 1 / 3)
    assert found["macro_f1"] == pytest.approx(0.75 / 3)


def test_one_sample() -> None:
    found = scores(np.array([1]), np.array([[0.2, 0.7, 0.1]]), classes=list("abc"), multilabel=False)
    assert found == {"macro_f1": 1.0, "balanced_accuracy": 1.0, "auc": None, "accuracy": 1.0, "n": 1}


@pytest.mark.parametrize(
    ("truth", "p", "multilabel", "message"),
    [
        (
            [0, 1],
            [[np.nan, 0.5], [0.5, 0.5]],
            False,
            "probability holds NaN or infinity in 1 of 2 rows.*row 0",
        ),
        ([0, 1], [[2.0, -3.0], [0.5, 0.5]], False, r"lies in \[-3, 2\].*softmax or sigmoid first"),
        ([0, 1], [[1.0], [1.0]], False, r"shape \[2, 1\], not \[2, 2\] for 2 rows and 2 classes"),
        ([0, -1], [[1.0, 0.0]] * 2, False, r"class numbers -1\.\.0, not 0\.\.1: leave rows without a label"),
        ([0.0, 1.0], [[1.0, 0.0]] * 2, False, r"float64 \[2\], not integers"),
        ([[0, 2]], [[0.5, 0.5]], True, "other than 0 and 1"),
        ([0, 1], [[0.5, 0.5]] * 2, True, r"shape \[2\], not \[N, 2\]"),
        ([], np.zeros((0, 2)), False, "holds no rows"),
    ],
)
def test_what_cannot_be_scored_is_refused(truth: list, p: list, multilabel: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores(np.array(truth), np.array(p), classes=["a", "b"], multilabel=multilabel)
