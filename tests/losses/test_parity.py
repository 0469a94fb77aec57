"""Every objective against its slow twin, against lightly where definitions agree, and its gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightly.loss import BarlowTwinsLoss, VICRegLoss
from torch import Tensor

from cass_scale.losses import barlow, cosine, focal, infonce, sinkhorn, vicreg
from tests.reference import losses as slow

Loss = Callable[[Tensor, Tensor], Tensor]


def pair(rows: int = 5, dims: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dims, generator=g, dtype=torch.float64)
    return x, 0.5 * x + torch.randn(rows, dims, generator=g, dtype=torch.float64)


TWINS: dict[str, tuple[Loss, Callable[[slow.Rows, slow.Rows], float]]] = {
    "cosine": (cosine, slow.cosine),
    "infonce": (infonce, lambda x, y: slow.infonce(x, y, 0.1)),
    "vicreg": (vicreg, slow.vicreg),
    "barlow": (barlow, lambda x, y: slow.barlow(x, y, 0.005)),
    "sinkhorn": (sinkhorn, lambda x, y: slow.sinkhorn(x, y, 0.1, 0.05, 3)),
}


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("shape", [(5, 7), (9, 3)])
def test_equals_its_slow_twin(name: str, shape: tuple[int, int]) -> None:
    loss, twin = TWINS[name]
    x, y = pair(*shape)
    assert loss(x, y).item() == pytest.approx(twin(x.tolist(), y.tolist()), rel=1e-10)


@pytest.mark.parametrize("name", TWINS)
def test_float32_is_close_to_float64(name: str) -> None:
    loss = TWINS[name][0]
    x, y = pair(16, 64)
    single = loss(x.float(), y.float())
    assert single.dtype == torch.float32
    assert single.shape == ()
    torch.testing.assert_close(single.double(), loss(x, y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "infonce", "vicreg", "barlow"])
def test_gradient_is_that_of_the_value(name: str) -> None:
    x, y = (v.requires_grad_() for v in pair(4, 3))
    assert torch.autograd.gradcheck(TWINS[name][0], (x, y))


@pytest.mark.parametrize("name", TWINS)
def test_arms_are_interchangeable(name: str) -> None:
    x, y = pair()
    torch.testing.assert_close(TWINS[name][0](x, y), TWINS[name][0](y, x))


@pytest.mark.parametrize("name", TWINS)
def test_order_of_images_does_not_matter_but_pairing_does(name: str) -> None:
    loss = TWINS[name][0]
    x, y = pair(8, 6)
    order = torch.tensor([3, 1, 7, 0, 5, 6, 2, 4])
    torch.testing.assert_close(loss(x[order], y[order]), loss(x, y))
    assert loss(x, y.roll(1, 0)) > loss(x, y)


def test_vicreg_equals_lightly() -> None:
    x, y = pair(16, 12)
    torch.testing.assert_close(vicreg(x, y), VICRegLoss()(x, y))
    ours = vicreg(x, y, invariance=3.0, variance=2.0, covariance=0.5)
    torch.testing.assert_close(ours, VICRegLoss(lambda_param=3.0, mu_param=2.0, nu_param=0.5)(x, y))


def test_barlow_equals_lightly() -> None:
    x, y = pair(16, 12)
    torch.testing.assert_close(barlow(x, y), BarlowTwinsLoss()(x, y))
    torch.testing.assert_close(barlow(x, y, offdiagonal=0.1), BarlowTwinsLoss(lambda_param=0.1)(x, y))


def test_focal_equals_its_slow_twin_and_its_gradient_is_right() -> None:
    logits = pair(6, 4)[0].requires_grad_()
    targets = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 1, 1]]
    weight = torch.tensor([0.2, 1.0, 0.5, 0.7], dtype=torch.float64)
    ours = focal(logits, targets, gamma=2.0, weight=weight)
    assert ours.item() == pytest.approx(slow.focal(logits.tolist(), targets.tolist(), 2.0, weight.tolist()))
    assert torch.autograd.gradcheck(lambda z: focal(z, targets, weight=weight), (logits,))
