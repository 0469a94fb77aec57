"""Maps of features, and how far classes are apart."""

from __future__ import annotations

import numpy as np
import pytest

from cass_scale.insight.embedding import plane, separation
from cass_scale.insight.unsuited import Unsuited


def clouds(distance: float, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = np.eye(3, 12) * distance
    labels = np.repeat(np.arange(3), n)
    return (rng.normal(size=(3 * n, 12)) + centres[labels]).astype(np.float32), labels


def slow_purity(x: np.ndarray, labels: np.ndarray, k: int) -> float:
    x = x - x.mean(axis=0)
    shares = []
    for i, row in enumerate(x):
        cosine = {j: row @ y / np.linalg.norm(row) / np.linalg.norm(y) for j, y in enumerate(x) if j != i}
        nearest = sorted(cosine, key=lambda j: -cosine[j])[:k]
        shares.append(np.mean([labels[j] == labels[i] for j in nearest]))
    return float(np.mean(shares))


def test_separation_is_that_of_a_slow_loop() -> None:
    x, labels = clouds(1.5)
    found = separation(x, labels, k=7)
    assert found["purity"] == pytest.approx(slow_purity(x.astype(float), labels, 7))
    assert found["chance"] == pytest.approx(19 / 59)


def test_separated_classes_score_high_and_dealt_ones_by_chance() -> None:
    x, labels = clouds(30.0)
    found = separation(x, labels)
    assert found["purity"] == 1.0 and found["silhouette"] > 0.9
    dealt = separation(x, np.arange(60) % 3)
    assert abs(dealt["purity"] - dealt["chance"]) < 0.1 and dealt["silhouette"] < 0.05


@pytest.mark.parametrize("labels", [np.zeros(60, int), np.arange(60)])
def test_one_class_or_as_many_as_images_cannot_be_separated(labels: np.ndarray) -> None:
    with pytest.raises(Unsuited, match="nothing to keep apart"):
        separation(clouds(1.0)[0], labels)


def test_tsne_keeps_clouds_apart_and_repeats_itself() -> None:
    x, labels = clouds(30.0)
    points = plane("tsne", x, seed=0)
    assert points.shape == (60, 2) and (plane("tsne", x, seed=0) == points).all()
    middle = np.stack([points[labels == c].mean(axis=0) for c in range(3)])
    assert (np.linalg.norm(points[:, None] - middle, axis=2).argmin(axis=1) == labels).all()


@pytest.mark.slow
def test_umap_keeps_clouds_apart_and_repeats_itself() -> None:
    pytest.importorskip("umap", reason="needs the extra `umap`")
    x, labels = clouds(30.0)
    points = plane("umap", x, seed=0)
    assert (plane("umap", x, seed=0) == points).all()
    middle = np.stack([points[labels == c].mean(axis=0) for c in range(3)])
    assert (np.linalg.norm(points[:, None] - middle, axis=2).argmin(axis=1) == labels).all()


def test_too_few_images_and_equal_features_have_no_map() -> None:
    with pytest.raises(Unsuited, match="5 images are too few"):
        plane("tsne", clouds(1.0)[0][:5], seed=0)
    with pytest.raises(Unsuited, match="the same features"):
        plane("tsne", np.ones((20, 4), np.float32), seed=0)
    assert plane("tsne", clouds(1.0)[0][:6], seed=0).shape == (6, 2)
