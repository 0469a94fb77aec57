"""One optimizer for both arms takes the steps that two separate ones would take."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cass_scale import optim
from cass_scale.errors import ConfigError
from cass_scale.schedule import Rates

KEYS: dict[str, Any] = {"name": "adam", "lr": 1e-3, "weight_decay": 0.1, "momentum": 0.9, "fused": True}
PAIRS = [("adam", "sgd"), ("sgd", "adam"), ("adamw", "sgd"), ("adam", None), (None, None), ("sgd", "sgd")]


def two() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(6, 4), nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 4))]


def groups(modules: list[nn.Module], algorithms: tuple[str | None, ...], scale: float = 1.0) -> list[dict[str, Any]]:
    pairs = zip(modules, algorithms, strict=True)
    return [
        {"params": list(m.parameters()), "lr_scale": scale, "algorithm": a, "arm": i} for i, (m, a) in enumerate(pairs)
    ]


def step(modules: list[nn.Module], optimizers: list[torch.optim.Optimizer], number: int) -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(number))
    (modules[0](x) - modules[1](x)).square().sum().backward()
    for one in optimizers:
        one.step()
        one.zero_grad()


def weights(modules: list[nn.Module]) -> Tensor:
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


@pytest.mark.parametrize("algorithms", PAIRS)
def test_steps_equal_two_separate_torch_optimizers(algorithms: tuple[str | None, str | None]) -> None:
    ours, theirs = two(), two()
    one = optim.build(groups(ours, algorithms), **KEYS)
    separate: list[torch.optim.Optimizer] = []
    for module, algorithm in zip(theirs, algorithms, strict=True):
        if algorithm == "sgd":
            separate.append(torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1))
        else:
            kind = torch.optim.AdamW if algorithm == "adamw" else torch.optim.Adam
            separate.append(kind(module.parameters(), lr=1e-3, weight_decay=0.1))
    for number in range(12):
        rate = 1e-3 * (number % 4 + 1)
        optim.set_rates(one, Rates(rate, 0.1), 0)
        for each in separate:
            each.param_groups[0]["lr"] = rate
        step(ours, [one], number)
        step(theirs, separate, number)
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(weights(ours), weights(two()), atol=1e-3)


@pytest.mark.parametrize("algorithms", [("adam", "sgd"), ("adam", "adam")])
def test_a_restored_optimizer_goes_on_bit_for_bit(algorithms: tuple[str, str]) -> None:
    whole = two()
    straight = optim.build(groups(whole, algorithms), **KEYS)
    for number in range(3):
        step(whole, [straight], number)
    file = io.BytesIO()
    torch.save({"optimizer": straight.state_dict(), "models": [m.state_dict() for m in whole]}, file)

    resumed = two()
    again = optim.build(groups(resumed, algorithms), **KEYS)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for module, own in zip(resumed, state["models"], strict=True):
        module.load_state_dict(own)
    again.load_state_dict(state["optimizer"])
    for number in range(3, 6):
        for optimizer in (straight, again):
            optim.set_rates(optimizer, Rates(2e-3 * number, 0.1), 0)
        step(whole, [straight], number)
        step(resumed, [again], number)
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("restored", [False, True])
def test_the_rate_reaches_the_groups_of_both_parts(restored: bool) -> None:
    modules = two()
    one = optim.build(groups(modules, ("adam", "sgd")), **KEYS)
    if restored:  # torch's load_state_dict makes new groups
        one.load_state_dict(one.state_dict())
    optim.set_rates(one, Rates(0.0, 0.1), 0)
    before = weights(modules)
    step(modules, [one], 0)
    assert torch.equal(weights(modules), before)
    optim.set_rates(one, Rates(0.1, 0.1), 0)
    step(modules, [one], 1)
    assert not any(torch.equal(weights([now]), weights([was])) for now, was in zip(modules, two(), strict=True))


@pytest.mark.parametrize("algorithm", ["adam", "adamw", "sgd"])
def test_a_group_of_scale_0_does_not_move_under_weight_decay_or_momentum(algorithm: str) -> None:
    modules = two()
    frozen, free = groups(modules, (algorithm, "sgd" if algorithm == "adam" else "adam"))
    one = optim.build([frozen | {"lr_scale": 0.0}, free], **KEYS)
    before = weights(modules[:1]), weights(modules[1:])
    for number in range(4):
        optim.set_rates(one, Rates(0.1, 0.1), 0)
        step(modules, [one], number)
    assert torch.equal(weights(modules[:1]), before[0])
    assert not torch.equal(weights(modules[1:]), before[1])


def test_a_rate_held_in_a_tensor_is_filled_not_replaced() -> None:
    modules = two()
    one = torch.optim.Adam(groups(modules, (None, None), scale=0.5), lr=torch.tensor(1.0))
    rate = one.param_groups[0]["lr"]
    optim.set_rates(one, Rates(0.3, 0.1), 0)
    assert one.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.15)


def test_zero_grad_and_a_closure_reach_both_parts() -> None:
    modules = two()
    one = optim.build(groups(modules, ("adam", "sgd")), **KEYS)
    for module in modules:
        for p in module.parameters():
            p.grad = torch.ones_like(p)
    assert one.step(lambda: 7.0) == 7.0
    one.zero_grad()
    assert all(p.grad is None for m in modules for p in m.parameters())


def test_gradient_scaling_skips_a_step_of_both_parts_when_one_overflows() -> None:
    modules = two()
    one = optim.build(groups(modules, ("adam", "sgd")), **KEYS)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = weights(modules)
    for scale, moves in ((float("inf"), False), (1.0, True)):
        loss = sum(m(torch.ones(2, 6)).sum() for m in modules) * scale
        scaler.scale(torch.as_tensor(loss)).backward()
        scaler.step(one)
        scaler.update()
        one.zero_grad()
        assert torch.equal(weights(modules), before) is not moves


def test_an_unknown_algorithm_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"optim\.name or arms\.\*\.optimizer: lars is unknown; choose adam, adamw, sgd"
    ):
        optim.build(groups(two(), ("adam", "lars")), **KEYS)
