"""infonce, vicreg, barlow, sinkhorn: what each must prefer, and that a constant output is no optimum."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cass_scale.errors import ConfigError
from cass_scale.losses import barlow, infonce, sinkhorn, vicreg
from cass_scale.losses.sinkhorn import balanced_targets

CONTRAST = {f.__name__: f for f in (infonce, vicreg, barlow, sinkhorn)}


def constant(rows: int, dims: int) -> Tensor:
    return torch.linspace(-1, 1, dims).expand(rows, dims)


@pytest.mark.parametrize("name", CONTRAST)
def test_constant_outputs_cost_more_than_different_agreeing_ones(name: str) -> None:
    loss = CONTRAST[name]
    torch.manual_seed(0)
    good = torch.linalg.qr(torch.randn(32, 32)).Q[:, :16] * math.sqrt(32)
    assert loss(good, good) < 0.8 * loss(constant(32, 16), constant(32, 16))


@pytest.mark.parametrize("name", CONTRAST)
def test_one_image_is_refused_with_a_way_out(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} compares.*got 1 per step: train.batch_size of 2 or more"):
        CONTRAST[name](torch.randn(1, 8), torch.randn(1, 8))


def test_infonce_at_chance_is_ln_batch_and_perfect_is_0() -> None:
    assert infonce(constant(16, 8), constant(16, 8)).item() == pytest.approx(math.log(16), rel=1e-5)
    assert infonce(torch.eye(8), torch.eye(8), temperature=0.01).item() == pytest.approx(0, abs=1e-6)


def test_infonce_ignores_how_far_an_arm_tells_its_own_images_apart() -> None:
    """Negatives are the other arm's outputs only: x enters each row as a query, never as its own negative."""
    x, y = torch.eye(4)[:, :3], torch.eye(4)[:, :3]
    one_way = torch.nn.functional.cross_entropy(x @ y.T / 0.1, torch.arange(4))
    torch.testing.assert_close(infonce(x, y), one_way)


def test_balanced_targets_use_every_column_equally() -> None:
    torch.manual_seed(0)
    scores = torch.nn.functional.normalize(torch.randn(64, 10) + 3 * torch.eye(10)[0])  # all lean to column 0
    assert scores.div(0.05).softmax(1).sum(0).max() > 4 * 6.4
    q = balanced_targets(scores, epsilon=0.05, iterations=3)
    torch.testing.assert_close(q.sum(1), torch.ones(64))
    assert q.sum(0).max() < 2 * 6.4
    exact = balanced_targets(scores, epsilon=0.05, iterations=300)
    torch.testing.assert_close(exact.sum(0), torch.full((10,), 6.4), rtol=1e-3, atol=1e-3)


def test_balanced_targets_with_more_columns_than_images() -> None:
    torch.manual_seed(0)
    q = balanced_targets(torch.nn.functional.normalize(torch.randn(16, 1000)), epsilon=0.05, iterations=3)
    torch.testing.assert_close(q.sum(1), torch.ones(16))
    torch.testing.assert_close(q.sum(0), torch.full((1000,), 0.016), rtol=0.2, atol=0)


def test_sinkhorn_targets_carry_no_gradient() -> None:
    x, y = torch.randn(8, 6, requires_grad=True), torch.randn(8, 6)
    sinkhorn(x, y).backward()
    scores = torch.nn.functional.normalize(x - x.mean(1, keepdim=True))
    other = torch.nn.functional.normalize(y - y.mean(1, keepdim=True))
    targets = balanced_targets(other, epsilon=0.05, iterations=3)
    expected = 0.5 * torch.nn.functional.cross_entropy(scores / 0.1, targets)
    torch.testing.assert_close(x.grad, torch.autograd.grad(expected, x)[0])
