from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cass_scale.evaluation import linear as module
from cass_scale.evaluation.draws import folds
from cass_scale.evaluation.linear import linear
from cass_scale.evaluation.metrics import scores

CASES = [(120, 10, 3), (40, 90, 4), (150, 12, 2)]  # more rows than features, fewer, two classes


def sample(n: int, d: int, c: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated float32 features of very unequal scale, and labels that depend on them."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, d))
    y = (hidden[:, :4] @ rng.normal(size=(4, c)) + rng.normal(size=(n, c))).argmax(axis=1)
    x = hidden @ (rng.normal(size=(d, d)) / np.arange(1, d + 1)[:, None]) * 10.0 ** rng.uniform(-3, 3, d) + 7
    return x.astype(np.float32), y


def reference(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, c: float) -> np.ndarray:
    scaler = StandardScaler().fit(train_x.astype(float))
    model = LogisticRegression(C=c, max_iter=100_000, tol=1e-9)
    model.fit(scaler.transform(train_x.astype(float)), train_y)
    return model.predict_proba(scaler.transform(test_x.astype(float)))


@pytest.mark.parametrize(("n", "d", "classes"), CASES)
@pytest.mark.parametrize("c", [1e-3, 1.0])
def test_it_is_scikit_learns_logistic_regression(
    n: int, d: int, classes: int, c: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = sample(n + 20, d, classes)
    monkeypatch.setattr(module, "GRID", (c,))
    p, chosen = linear(x[:n], y[:n], x[n:], classes=classes, multilabel=False, val_x=x[:n], val_y=y[:n])
    wanted = reference(x[:n], y[:n], x[n:], 2 * c if classes == 2 else c)
    assert chosen == c
    np.testing.assert_allclose(p, wanted, atol=2e-3)


def test_multi_label_is_one_binary_regression_per_label(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = sample(140, 10, 4)
    labels = np.stack([y == 0, y < 2, np.zeros(140), np.ones(140)], axis=1).astype(np.float32)
    monkeypatch.setattr(module, "GRID", (0.1,))
    p, _ = linear(x[:120], labels[:120], x[120:], classes=4, multilabel=True)
    for label in (0, 1):
        wanted = reference(x[:120], labels[:120, label], x[120:], 0.1)[:, 1]
        np.testing.assert_allclose(p[:, label], wanted, atol=2e-3)
    assert (p[:, 2] == 0).all() and (p[:, 3] == 1).all()


def test_c_is_the_best_on_val_and_val_is_not_trained_on() -> None:
    x, y = sample(300, 40, 3)
    train, val, test = slice(0, 60), slice(60, 160), slice(160, 300)
    options = {"classes": 3, "multilabel": False}
    p, chosen = linear(x[train], y[train], x[test], val_x=x[val], val_y=y[val], **options)
    names = list("abc")
    by_c = {
        c: scores(y[val], reference(x[train], y[train], x[val], c), classes=names, multilabel=False)["macro_f1"]
        for c in module.GRID
    }
    assert by_c[chosen] >= max(by_c.values()) - 1e-9
    assert len(set(by_c.values())) > 1
    np.testing.assert_allclose(p, reference(x[train], y[train], x[test], chosen), atol=2e-3)


def test_without_val_c_comes_from_folds_and_the_answer_from_all_of_train() -> None:
    x, y = sample(260, 40, 3)
    p, chosen = linear(x[:60], y[:60], x[60:], classes=3, multilabel=False, seed=1)
    again, _ = linear(x[:60], y[:60], x[60:], classes=3, multilabel=False, seed=1)
    np.testing.assert_array_equal(p, again)
    np.testing.assert_allclose(p, reference(x[:60], y[:60], x[60:], chosen), atol=2e-3)


def test_with_groups_what_was_memorised_about_a_patient_does_not_count() -> None:
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), 6)
    face = rng.normal(size=(40, 100))  # tells patients apart, says nothing about the class
    y = rng.integers(0, 2, 40)[patient]
    x, wanted = face[patient] + 0.1 * rng.normal(size=(240, 100)), np.eye(2)[y]

    def accuracy(groups: np.ndarray | None) -> float:
        out = module._held_out(x, wanted, folds(wanted, groups, module.FOLDS, 0), False)
        assert out is not None
        return float((out[-1].argmax(axis=1) == y).mean())

    assert accuracy(None) > 0.95
    assert accuracy(patient) < 0.65


@pytest.mark.parametrize("noise", [0.0, 1e-7])
@pytest.mark.parametrize("multilabel", [False, True])
def test_constant_features_answer_with_the_class_frequencies(noise: float, multilabel: bool) -> None:
    rng = np.random.default_rng(0)
    y = rng.choice(3, 100, p=[0.7, 0.2, 0.1])
    wanted = np.eye(3)[y] if multilabel else y
    features = rng.normal(size=64)
    x = (features * (1 + noise * rng.uniform(-1, 1, (110, 64)))).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p, chosen = linear(x[:100], wanted, x[100:], classes=3, multilabel=multilabel)
    np.testing.assert_allclose(p, np.tile(np.bincount(y) / 100, (10, 1)), atol=1e-4)
    assert chosen == min(module.GRID)  # all equal: the strongest penalty


def test_a_constant_feature_among_others_is_ignored() -> None:
    x, y = sample(80, 5, 3)
    constant = np.full((80, 1), 4.2, np.float32)
    constant[60:] = 1e6  # in test it takes a value never met in train
    options = {"classes": 3, "multilabel": False}
    plain, _ = linear(x[:60], y[:60], x[60:], **options)
    beside, _ = linear(np.hstack([x, constant])[:60], y[:60], np.hstack([x, constant])[60:], **options)
    np.testing.assert_allclose(beside, plain, atol=1e-4)


def test_a_class_absent_from_train_gets_zero_and_a_single_class_gets_one() -> None:
    x, y = sample(80, 5, 3)
    p, _ = linear(x[:60], y[:60], x[60:], classes=5, multilabel=False)
    assert (p[:, 3:] == 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)
    p, _ = linear(x[:60], np.full(60, 2), x[60:], classes=3, multilabel=False)
    np.testing.assert_array_equal(p, np.tile([0.0, 0, 1], (20, 1)))


def test_it_reads_real_digits() -> None:
    x, y = load_digits(return_X_y=True)
    keep = np.random.default_rng(0).permutation(len(x))[:600]  # the file is sorted by writer
    x, y = x[keep].astype(np.float32), y[keep]
    p, _ = linear(x[:400], y[:400], x[500:], classes=10, multilabel=False, val_x=x[400:500], val_y=y[400:500])
    assert (p.argmax(axis=1) == y[500:]).mean() > 0.85


def test_c_that_cannot_be_chosen_is_said() -> None:
    x, y = sample(20, 5, 2)
    with pytest.warns(UserWarning, match=r"C=0\.01 is not chosen but assumed: train is a single group"):
        _, chosen = linear(x, y, x, classes=2, multilabel=False, groups=np.zeros(20, np.int64))
    assert chosen == 0.01
    with pytest.warns(UserWarning, match="no label occurs"):
        linear(x, np.eye(2)[y], x, classes=2, multilabel=True, val_x=x[:3], val_y=np.zeros((3, 2)))


def test_a_fit_that_stopped_early_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = sample(100, 10, 3)
    monkeypatch.setattr(module, "MAX_ITER", 2)
    monkeypatch.setattr(module, "GRID", (10.0,))
    with pytest.warns(ConvergenceWarning, match=r"C=10 stopped before it converged, after 2 iterations"):
        linear(x, y, x, classes=3, multilabel=False)


def test_what_cannot_be_learnt_from_is_refused() -> None:
    x, y = sample(20, 5, 2)
    broken = x.copy()
    broken[3, 1] = np.inf
    options = {"classes": 2, "multilabel": False}
    with pytest.raises(ValueError, match=r"train features holds NaN or infinity in 1 of 20 rows.*row 3"):
        linear(broken, y, x, **options)
    with pytest.raises(ValueError, match="test features"):
        linear(x, y, broken, **options)
    with pytest.raises(ValueError, match="val features"):
        linear(x, y, x, val_x=broken, val_y=y, **options)
    with pytest.raises(ValueError, match="val_y holds no rows"):
        linear(x, y, x, val_x=x[:0], val_y=y[:0], **options)
    with pytest.raises(ValueError, match="both val_x and val_y, or neither"):
        linear(x, y, x, val_x=x, **options)
