from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cass_scale.errors import ConfigError
from cass_scale.losses import cosine, noise_rule


def test_same_direction_is_0_orthogonal_2_opposite_4() -> None:
    x = torch.eye(3)
    assert cosine(x, 5 * x).item() == pytest.approx(0, abs=1e-6)
    assert cosine(x, x.roll(1, 0)).item() == pytest.approx(2)
    assert cosine(x, -x).item() == pytest.approx(4)


def test_scale_of_an_image_does_not_matter() -> None:
    x, y = torch.randn(6, 10), torch.randn(6, 10)
    scale = torch.rand(6, 1) + 0.1
    torch.testing.assert_close(cosine(scale * x, y), cosine(x, y))


def test_zero_output_is_finite_with_finite_gradient() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    loss = cosine(x, torch.ones(2, 4))
    loss.backward()
    assert loss.item() == pytest.approx(2)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_activation_is_applied_to_the_logits_first(activation: str) -> None:
    x, y = torch.randn(6, 10), torch.randn(6, 10)
    a = (lambda z: z.softmax(1)) if activation == "softmax" else torch.sigmoid
    expected = F.mse_loss(F.normalize(a(x)), F.normalize(a(y)), reduction="sum") / 6  # |u - v|^2 = 2 - 2 cos
    torch.testing.assert_close(cosine(x, y, activation=activation), expected)  # type: ignore[arg-type]


def test_both_arms_get_gradients() -> None:
    x, y = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    cosine(x, y).backward()
    assert x.grad is not None and y.grad is not None
    assert x.grad.norm() > 0 and y.grad.norm() > 0


def test_unknown_activation_names_what_works() -> None:
    with pytest.raises(ConfigError, match=r"activation=relu.*none, softmax and sigmoid work"):
        cosine(torch.ones(2, 2), torch.ones(2, 2), activation="relu")  # type: ignore[arg-type]


def test_noise_rule_leaves_different_outputs_alone() -> None:
    x = torch.randn(16, 100)
    y = x.clone()
    y[3, 7] += 1e-6
    for before, after in zip((x, y), noise_rule(x, y, seed=0, step=3), strict=True):
        assert torch.equal(before, after)


def test_noise_rule_adds_noise_of_the_stated_size_to_equal_outputs() -> None:
    x = torch.zeros(64, 100)
    noisy_x, noisy_y = noise_rule(x, x.clone(), seed=0, step=3)
    assert noisy_x.mean().item() == pytest.approx(1e-6, rel=1e-3)
    assert noisy_x.std().item() == pytest.approx(1e-9, rel=0.05)
    assert noisy_y.mean().item() == pytest.approx(1e-10, rel=1e-3)
    assert noisy_y.double().std().item() == pytest.approx(1e-15, rel=0.05)


def test_noise_rule_is_a_function_of_seed_and_step_and_keeps_the_global_random_state() -> None:
    x = torch.zeros(4, 8)
    state = torch.get_rng_state()
    first = noise_rule(x, x, seed=1, step=5)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, noise_rule(x, x, seed=1, step=5)[0])
    assert not torch.equal(first, noise_rule(x, x, seed=1, step=6)[0])
    assert not torch.equal(first, noise_rule(x, x, seed=2, step=5)[0])


def test_noise_rule_is_inert_in_float32() -> None:
    """The rule is to make the loss non-zero; on outputs of order one it moves it by less than it resolves."""
    x = torch.randn(16, 1000)
    noisy = cosine(*noise_rule(x, x.clone(), seed=0, step=0))
    assert abs(noisy - cosine(x, x.clone())).item() <= 2.5e-7
    exact = cosine(*noise_rule(x.double(), x.double(), seed=0, step=0))
    assert 0 < exact.item() < 1e-11
