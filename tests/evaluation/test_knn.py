from __future__ import annotations

import numpy as np
import pytest

from cass_scale.evaluation import knn as module
from cass_scale.evaluation.knn import knn


def slow(train_x, label_vectors, test_x, k: int, temperature: float) -> np.ndarray:
    answers = []
    for q in test_x:
        cosine = [float(q @ x / (np.linalg.norm(q) * np.linalg.norm(x))) for x in train_x]
        nearest = sorted(range(len(cosine)), key=lambda i: -cosine[i])[:k]
        votes = [np.exp(cosine[i] / temperature) for i in nearest]
        weighted = [v * label_vectors[i] for v, i in zip(votes, nearest, strict=True)]
        answers.append(np.sum(weighted, axis=0) / sum(votes))
    return np.array(answers)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 1.0), (500, 0.2)])
def test_agrees_with_a_slow_loop(rng: np.random.Generator, k: int, temperature: float) -> None:
    x, q, y = rng.normal(size=(60, 7)), rng.normal(size=(11, 7)), rng.integers(0, 3, 60)
    found = knn(x, y, q, classes=3, multilabel=False, k=k, temperature=temperature)
    np.testing.assert_allclose(found, slow(x, np.eye(3)[y], q, k, temperature), atol=1e-9)


def test_multi_label_is_the_weighted_mean_of_label_vectors(rng: np.random.Generator) -> None:
    x, q = rng.normal(size=(60, 7)).astype(np.float32), rng.normal(size=(11, 7)).astype(np.float32)
    y = (rng.random((60, 4)) < 0.3).astype(np.float32)
    found = knn(x, y, q, classes=4, multilabel=True, k=9)
    np.testing.assert_allclose(found, slow(x.astype(float), y, q.astype(float), 9, 0.07), atol=1e-6)


def test_chunks_change_nothing(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x, q, y = rng.normal(size=(60, 7)), rng.normal(size=(11, 7)), rng.integers(0, 3, 60)
    whole = knn(x, y, q, classes=3, multilabel=False)
    monkeypatch.setattr(module, "CHUNK", 60 * 4)  # 4, 4 and 3 rows
    np.testing.assert_allclose(knn(x, y, q, classes=3, multilabel=False), whole, atol=1e-12)


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_constant_features_answer_with_the_class_frequencies(rng: np.random.Generator, noise: float) -> None:
    y = np.sort(rng.integers(0, 3, 200))  # sorted: picking the first k rows would name one class
    features = rng.normal(size=512)

    def collapsed(n: int) -> np.ndarray:
        return (features * (1 + noise * rng.uniform(-1, 1, (n, 512)))).astype(np.float32)

    found = knn(collapsed(200), y, collapsed(5), classes=3, multilabel=False)
    np.testing.assert_allclose(found, np.tile(np.bincount(y) / 200, (5, 1)), atol=1e-6)


def test_a_nearly_collapsed_encoder_is_still_read(rng: np.random.Generator) -> None:
    y = rng.integers(0, 2, 200)
    bent = rng.normal(size=(2, 256))
    # All cosines between rows exceed 0.9999999: in float32 they would be ties.
    x = (5 + 1e-4 * (bent[y] + 0.3 * rng.normal(size=(200, 256)))).astype(np.float32)
    found = knn(x[:150], y[:150], x[150:], classes=2, multilabel=False)
    assert (found.argmax(axis=1) == y[150:]).all()


def test_ties_share_the_places_that_are_left() -> None:
    x = np.array([[1.0, 0], [0, 1], [0, 1], [0, 1]])  # one nearer, three tied for the one place left
    y = np.array([0, 1, 1, 2])
    found = knn(x, y, np.array([[2.0, 1]]), classes=3, multilabel=False, k=2, temperature=1.0)
    near, far = np.exp(2 / 5**0.5), np.exp(1 / 5**0.5)
    np.testing.assert_allclose(found, [[near, far * 2 / 3, far / 3]] / (near + far))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_only_the_direction_counts_and_zeros_are_allowed(rng: np.random.Generator, scale: float) -> None:
    x, q, y = rng.normal(size=(30, 5)), rng.normal(size=(4, 5)), rng.integers(0, 2, 30)
    found = knn((x * scale).astype(np.float32), y, q, classes=2, multilabel=False, k=3, temperature=0.001)
    np.testing.assert_allclose(found, knn(x, y, q, classes=2, multilabel=False, k=3, temperature=0.001), atol=1e-2)
    dead = knn(x, y, np.zeros((1, 5)), classes=2, multilabel=False)
    np.testing.assert_allclose(dead, [np.bincount(y) / 30], atol=1e-12)


def test_no_test_rows() -> None:
    assert knn(np.eye(2), np.array([0, 1]), np.zeros((0, 2)), classes=2, multilabel=False).shape == (0, 2)


def test_what_cannot_work_is_refused() -> None:
    x, y = np.eye(3), np.array([0, 1, 1])
    for wrong in ({"k": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="k >= 1 and temperature > 0"):
            knn(x, y, x, classes=2, multilabel=False, **wrong)
    with pytest.raises(ValueError, match="test features holds NaN or infinity in 3 of 3 rows"):
        knn(x, y, x * np.nan, classes=2, multilabel=False)
    with pytest.raises(ValueError, match="train_y holds class numbers"):
        knn(x, y, x, classes=1, multilabel=False)
