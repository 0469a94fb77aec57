"""Label-free indicators against their definitions, and both arms together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cass_scale.evaluation.indicators import MOST, agreement, alpha_req, indicators, spread
from cass_scale.evaluation.knn import knn
from cass_scale.evaluation.together import both, ensemble


def with_spectrum(eigenvalues: np.ndarray, n: int = 400) -> np.ndarray:
    """Features [n, D] whose covariance has exactly these eigenvalues (up to a factor)."""
    rng = np.random.default_rng(0)
    d = len(eigenvalues)
    centred = rng.normal(size=(n, d))
    left = np.linalg.qr(centred - centred.mean(axis=0))[0]
    return left * np.sqrt(eigenvalues) @ np.linalg.qr(rng.normal(size=(d, d)))[0] + 5.0


def slow_alpha(eigenvalues: np.ndarray) -> float:
    """The line through (log j, log of the j-th eigenvalue), ranks 11 to 100, weights 1 / j, by its normal equations."""
    top = bottom = total = mean_x = mean_y = 0.0
    points = [(math.log(j), math.log(eigenvalues[j - 1]), 1 / j) for j in range(11, min(100, len(eigenvalues)) + 1)]
    total = sum(w for *_, w in points)
    mean_x, mean_y = sum(w * x for x, _, w in points) / total, sum(w * y for _, y, w in points) / total
    for x, y, w in points:
        top += w * (x - mean_x) * (y - mean_y)
        bottom += w * (x - mean_x) ** 2
    return -top / bottom


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_alpha_of_a_power_law_is_its_exponent(alpha: float) -> None:
    found = alpha_req(with_spectrum(np.arange(1, 121, dtype=float) ** -alpha))
    assert found == pytest.approx(alpha, abs=1e-6)


def test_alpha_of_any_spectrum_is_that_of_the_weighted_line() -> None:
    eigenvalues = np.sort(np.random.default_rng(3).gamma(0.5, size=130))[::-1]
    assert alpha_req(with_spectrum(eigenvalues)) == pytest.approx(slow_alpha(eigenvalues), abs=1e-6)
    first = np.r_[1e4, eigenvalues[1:]]
    assert alpha_req(with_spectrum(first)) == pytest.approx(slow_alpha(eigenvalues), abs=1e-6), "the first are left out"


def test_alpha_needs_enough_directions() -> None:
    assert alpha_req(np.random.default_rng(0).normal(size=(25, 200))) is None
    assert alpha_req(np.ones((100, 50), np.float32)) is None
    noise = np.random.default_rng(0).normal(size=(200, 3)) @ np.ones((3, 64))
    assert alpha_req(noise.astype(np.float32)) is None, "one direction and its rounding"


def test_agreement_is_the_share_of_common_neighbours() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6))
    y = x + rng.normal(size=(40, 6))
    shares = []
    for i in range(40):
        near = []
        for z in (x - x.mean(axis=0), y - y.mean(axis=0)):
            cosine = {j: z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]) for j in range(40) if j != i}
            near.append(set(sorted(cosine, key=lambda j: -cosine[j])[:10]))
        shares.append(len(near[0] & near[1]) / 10)
    found = agreement(x, y)
    assert found["mutual_knn"] == pytest.approx(np.mean(shares)) and found["chance"] == pytest.approx(10 / 39)
    turned = agreement(x, x @ np.linalg.qr(rng.normal(size=(6, 6)))[0])
    assert turned["mutual_knn"] == 1.0 and turned["cka"] == pytest.approx(1.0)
    assert agreement(x[:20], y[:20])["mutual_knn"] is None


def test_indicators_by_arm_and_pair_on_rows_spread_over_the_set() -> None:
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    found = indicators({"cnn": x, "vit": x[:, :4]})
    assert set(found["arms"]) == {"cnn", "vit"} and list(found["pairs"]) == ["cnn, vit"]
    assert 6 < found["arms"]["cnn"]["rankme"] <= 8 and 3 < found["arms"]["vit"]["rankme"] <= 4
    assert indicators({"vit": x})["pairs"] == {}
    many = np.arange(3 * MOST)[:, None]
    assert len(spread(many)) == MOST and spread(many)[[0, -1], 0].tolist() == [0, 3 * MOST - 1]


def test_both_arms_side_by_side_weigh_alike() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 5)), 1000 * rng.normal(size=(30, 9))
    joined = both({"cnn": x, "vit": y})["both"].astype(float)
    cosine = [z @ z.T / np.outer(*2 * [np.linalg.norm(z, axis=1)]) for z in (x, y, joined)]
    np.testing.assert_allclose(cosine[2], (cosine[0] + cosine[1]) / 2, atol=1e-6)
    assert both({"cnn": x}) == {} and np.isfinite(both({"a": np.zeros((2, 3)), "b": y[:2]})["both"]).all()


def test_two_arms_that_see_different_halves_do_better_together() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 4
    arms = {"a": (labels // 2)[:, None], "b": (labels % 2)[:, None]}  # each tells two of four classes apart
    arms = {name: np.eye(2)[half[:, 0]] + 0.1 * rng.normal(size=(80, 2)) for name, half in arms.items()}
    known, asked = slice(0, 40), slice(40, 80)

    def right(probability: np.ndarray) -> float:
        return float((probability.argmax(axis=1) == labels[asked]).mean())

    said = {n: knn(x[known], labels[known], x[asked], classes=4, multilabel=False) for n, x in arms.items()}
    joined = both(arms)["both"]
    together = knn(joined[known], labels[known], joined[asked], classes=4, multilabel=False)
    assert max(right(p) for p in said.values()) < 0.8 and right(together) == 1.0
    assert right(ensemble(said)["ensemble"]) > 0.9
    assert ensemble({"a": said["a"]}) == {}
    np.testing.assert_allclose(ensemble(said)["ensemble"], (said["a"] + said["b"]) / 2)
