"""Heads answer as the model that they were taken from, and come back from disk bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cass_scale import encoders
from cass_scale.encoders import ArmSpec
from cass_scale.errors import DataError
from cass_scale.evaluation import heads
from cass_scale.evaluation.heads import Head
from cass_scale.evaluation.linear import fit, linear


def features(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Nearly constant ones, as a collapsed encoder gives them, and labels of three of four classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return (100 + 1e-3 * rng.normal(size=(n, 8)) + 1e-3 * y[:, None]).astype(np.float32), y


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_probe_comes_back_and_answers_as_it_was_scored(tmp_path: Path, multilabel: bool) -> None:
    x, y = features()
    labels = np.stack([y == 0, y < 2, y < 9, y > 9], axis=1).astype(np.float32) if multilabel else y
    options = {"classes": 4, "multilabel": multilabel, "val_x": x[:20], "val_y": labels[:20]}
    scored, c = linear(x[20:40], labels[20:40], x[40:], **options)
    head, same = fit(x[20:40], labels[20:40], **options)
    encoder = encoders.build(ArmSpec("resnet10t"), 32, seed=0)[0]
    encoders.export(encoder, tmp_path / "export.safetensors", {})
    (tmp_path / "export").mkdir()
    (tmp_path / "export.safetensors").rename(tmp_path / "export/cnn.safetensors")
    heads.keep(tmp_path / "evaluate/linear-run", "cnn", encoder, head, tuple("abcd"), multilabel)
    _, kept = heads.load(tmp_path, "linear-run", "cnn")
    assert c == same and heads.kept(tmp_path) == {"linear-run": ["cnn"]}
    np.testing.assert_array_equal(kept.head(x[40:]), scored)
    assert kept.classes == tuple("abcd") and kept.multilabel is multilabel
    assert scored.std(axis=0).max() > 0.1, "it tells nearly equal features apart"
    if multilabel:
        assert (scored[:, 2] == 1).all() and (scored[:, 3] == 0).all(), "labels that always or never occur"
    else:
        assert (scored[:, 3] == 0).all(), "a class that was never seen"


@pytest.mark.parametrize(
    ("part", "wrong"),
    [("weight", np.zeros((2, 5))), ("weight", np.zeros(5)), ("bias", np.zeros(3)), ("link", "pickle")],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, part: str, wrong: object) -> None:
    encoder = encoders.build(ArmSpec("resnet10t"), 32, seed=0)[0]
    (tmp_path / "export").mkdir()
    encoders.export(encoder, tmp_path / "export/cnn.safetensors", {})
    good = {"mean": np.zeros(512), "weight": np.zeros((2, 512)), "bias": np.zeros(2), "link": "softmax"}
    heads.keep(tmp_path / "evaluate/x", "cnn", encoder, Head(**good), ("a", "b"), False)
    assert heads.load(tmp_path, "x", "cnn")[1].head.weight.shape == (2, 512)
    heads.keep(tmp_path / "evaluate/x", "cnn", encoder, Head(**good | {part: wrong}), ("a", "b"), False)
    with pytest.raises(DataError, match=r"cnn\.head\.safetensors is no whole head \(.*\): evaluate the run again"):
        heads.load(tmp_path, "x", "cnn")


def test_links() -> None:
    x, weight = np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    logits = torch.tensor([[0.0, 1.0, 1.0]])
    answers = {link: Head(np.ones(2), weight, np.zeros(3), link)(x)[0] for link in ("softmax", "sigmoid", "shares")}
    np.testing.assert_allclose(answers["softmax"], logits.softmax(1)[0], rtol=1e-6)
    np.testing.assert_allclose(answers["sigmoid"], logits.sigmoid()[0], rtol=1e-6)
    np.testing.assert_allclose(answers["shares"], logits.sigmoid()[0] / logits.sigmoid().sum(), rtol=1e-6)
    with pytest.raises(ValueError, match="features holds NaN or infinity in 1 of 1 rows"):
        Head(np.ones(2), weight, np.zeros(3), "softmax")(x * np.nan)
