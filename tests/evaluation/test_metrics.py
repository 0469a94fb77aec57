from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
    multilabel_f1_score,
    multilabel_recall,
)

from cass_scale.evaluation.metrics import UNDEFINED, details, scores


def softmax_like(rng: np.random.Generator, n: int, c: int) -> np.ndarray:
    p = rng.random((n, c)) ** 3
    return p / p.sum(axis=1, keepdims=True)


def per_label(score, truth: np.ndarray, guess: np.ndarray) -> float:
    return float(np.mean([score(truth[:, c], guess[:, c]) for c in range(truth.shape[1])]))


@pytest.mark.parametrize("seed", range(5))
def test_single_label_agrees_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, p = rng.choice(4, 120, p=[0.6, 0.2, 0.15, 0.05]), softmax_like(rng, 120, 4)
    guess, hot = p.argmax(axis=1), np.eye(4)[truth]
    specificity = [sk.recall_score(truth != c, p[:, c] <= 0.3) for c in range(4)]
    assert scores(truth, p, classes=list("abcd"), multilabel=False, threshold=0.3) == pytest.approx(
        {
            "macro_f1": sk.f1_score(truth, guess, average="macro"),
            "micro_f1": sk.f1_score(truth, guess, average="micro"),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, guess),
            "recall": sk.recall_score(truth, guess, average="macro"),
            "auc": sk.roc_auc_score(truth, p, multi_class="ovr", average="macro"),
            "accuracy": sk.accuracy_score(truth, guess),
            "top3": sk.top_k_accuracy_score(truth, p, k=3),
            "kappa": sk.cohen_kappa_score(truth, guess),
            "quadratic_kappa": sk.cohen_kappa_score(truth, guess, weights="quadratic"),
            "sensitivity": per_label(sk.recall_score, hot, p > 0.3),
            "specificity": np.mean(specificity),
            "brier": sk.brier_score_loss(truth, p, labels=[0, 1, 2, 3]),
            "ece": float(multiclass_calibration_error(torch.tensor(p), torch.tensor(truth), 4, n_bins=15)),
            "official_f1": float(multilabel_f1_score(torch.tensor(p), torch.tensor(hot), 4, average="micro")),
            "official_recall": float(multilabel_recall(torch.tensor(p), torch.tensor(hot), 4, average="micro")),
            "n": 120,
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("seed", range(5))
def test_multi_label_agrees_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, p = (rng.random((90, 3)) < [0.5, 0.2, 0.1]).astype(np.float32), rng.random((90, 3))
    guess = (p > 0.5).astype(int)
    assert scores(truth, p, classes=list("abc"), multilabel=True, threshold=0.3) == pytest.approx(
        {
            "macro_f1": sk.f1_score(truth, guess, average="macro"),
            "micro_f1": sk.f1_score(truth, guess, average="micro"),
            "recall": sk.recall_score(truth, guess, average="macro"),
            "balanced_accuracy": per_label(sk.balanced_accuracy_score, truth, guess),
            "auc": sk.roc_auc_score(truth, p, average="macro"),
            "kappa": per_label(sk.cohen_kappa_score, truth, guess),
            "sensitivity": sk.recall_score(truth, p > 0.3, average="macro"),
            "specificity": sk.recall_score(1 - truth, p <= 0.3, average="macro"),
            "brier": per_label(sk.brier_score_loss, truth, p),
            "ece": float(binary_calibration_error(torch.tensor(p).ravel(), torch.tensor(truth).ravel(), n_bins=15)),
            "official_f1": float(multilabel_f1_score(torch.tensor(p), torch.tensor(truth), 3, average="micro")),
            "official_recall": sk.recall_score(truth, guess, average="micro"),
            "n": 90,
        },
        abs=1e-6,
    )


def test_two_classes_are_judged_by_the_second() -> None:
    truth, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    found = scores(truth, np.stack([1 - p, p], axis=1), classes=["healthy", "ill"], multilabel=False, threshold=0.3)
    assert (found["auc"], found["sensitivity"], found["specificity"]) == (0.75, 1.0, 0.5)
    assert found["brier"] == pytest.approx(sk.brier_score_loss(truth, p))


def test_the_positive_of_two_classes_can_be_the_first() -> None:
    """Sorted by name, abnormal stands before normal: what is looked for is the first."""
    truth, p = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9]])
    keys = {"classes": ["abnormal", "normal"], "multilabel": False, "threshold": 0.3}
    found, other = scores(truth, p, **keys, positive=0), scores(truth, p, **keys)
    assert (found["sensitivity"], found["specificity"]) == (0.5, 0.5) and found["auc"] == 0.75
    assert (other["sensitivity"], other["specificity"]) == (1.0, 0.5)
    assert {name for name in found if found[name] != other[name]} == {"sensitivity"}


def test_a_head_of_sigmoids_is_scored_as_shares_and_officially_as_it_is() -> None:
    """The notebook takes every class above 0.5: none of the first image, both of the second."""
    truth, p = np.array([0, 1]), np.array([[0.4, 0.2], [0.7, 0.9]])
    found = scores(truth, p, classes=["a", "b"], multilabel=False)
    assert found["accuracy"] == 1 and found["auc"] == 1
    assert found["official_f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1)) and found["official_recall"] == 0.5
    assert found["brier"] == pytest.approx(((1 / 3) ** 2 + (7 / 16) ** 2) / 2)
    none = scores(truth, p * 0, classes=["a", "b"], multilabel=False)
    assert none["auc"] == 0.5 and none["brier"] == 0.25, "rows of zeros say nothing"


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
    undefined = {name for name, value in found.items() if value is None}
    assert undefined == found.keys() - {"n", "brier", "ece"} and undefined <= UNDEFINED.keys()


@pytest.mark.parametrize("multilabel", [False, True])
def test_details_per_class_and_confusion(multilabel: bool) -> None:
    rng = np.random.default_rng(1)
    truth = (rng.random((80, 3)) < 0.3).astype(int) if multilabel else rng.choice(3, 80)
    p = rng.random((80, 3)) if multilabel else softmax_like(rng, 80, 3)
    found = details(truth, p, classes=list("abc"), multilabel=multilabel, threshold=0.4)
    hot = truth if multilabel else np.eye(3)[truth]
    guess = p > 0.5 if multilabel else np.eye(3)[p.argmax(axis=1)]
    for c, name in enumerate("abc"):
        row = found["per_class"][name]
        assert row["f1"] == pytest.approx(sk.f1_score(hot[:, c], guess[:, c]))
        assert row["precision"] == pytest.approx(sk.precision_score(hot[:, c], guess[:, c]))
        assert row["auc"] == pytest.approx(sk.roc_auc_score(hot[:, c], p[:, c])) and row["n"] == hot[:, c].sum()
        assert row["specificity"] == pytest.approx(sk.recall_score(1 - hot[:, c], p[:, c] <= 0.4))
    expected = (
        sk.multilabel_confusion_matrix(truth, guess) if multilabel else sk.confusion_matrix(truth, guess.argmax(axis=1))
    )
    assert found["confusion"] == expected.tolist()


def test_details_of_a_class_that_is_absent_are_null() -> None:
    found = details(np.array([0, 0]), np.eye(3)[[0, 1]], classes=list("abc"), multilabel=False)
    never = {"n": 0, "f1": None, "precision": None, "recall": None, "auc": None, "sensitivity": None}
    assert found["per_class"]["c"] == never | {"specificity": None}
    assert found["per_class"]["b"]["precision"] == 0 and found["confusion"] == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


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


def test_all_labels_equal() -> None:
    found = scores(np.array([1]), np.array([[0.2, 0.7, 0.1]]), classes=list("abc"), multilabel=False)
    undefined = {name for name, value in found.items() if value is None}
    assert undefined == {"auc", "sensitivity", "specificity", "kappa", "quadratic_kappa", "top3"}
    assert found["macro_f1"] == found["balanced_accuracy"] == found["accuracy"] == found["official_f1"] == 1


def test_a_single_class() -> None:
    found = scores(np.array([0, 0]), np.ones((2, 1)), classes=["only"], multilabel=False)
    assert found["accuracy"] == 1 and found["auc"] is None
    many = scores(np.array([[1], [0]]), np.array([[0.9], [0.2]]), classes=["only"], multilabel=True)
    assert many["macro_f1"] == many["auc"] == many["kappa"] == 1


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
