from __future__ import annotations

import pytest
import torch

from cass_scale.errors import ConfigError
from cass_scale.schedule import constant, cosine, make_schedule, triangle_cosine, warmup_cosine
from cass_scale.types import Progress


def at(samples: int, total: int = 1000) -> Progress:
    return Progress(epoch=0, step=-1, samples=samples, total_samples=total)  # step must not be read


def test_cosine_goes_from_start_to_end_and_stays() -> None:
    assert [cosine(f, start=3.0, end=1.0) for f in (0.0, 0.5, 1.0, 1.5)] == pytest.approx([3, 2, 1, 1])


def test_warmup_rises_linearly_then_anneals() -> None:
    f = [warmup_cosine(v, warmup=0.2, end=0.1) for v in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert f == pytest.approx([0.1, 0.55, 1.0, 0.55, 0.1])
    assert [constant(v, warmup=0.2) for v in (0.0, 0.1, 0.2, 1.0)] == pytest.approx([0, 0.5, 1, 1])


def test_cosine16_equals_torch_stepped_past_its_end() -> None:
    """CosineAnnealingLR(T_max=16) without restart, as the notebook steps it: period 32."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16, eta_min=1e-6)
    ours = make_schedule("cosine16", batch_size=16)
    for step in range(200):
        assert ours(at(step * 16), 1e-3) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(("step", "lr"), [(297, 1.21334e-4), (594, 1.238e-5)])
def test_cosine16_gives_the_rates_the_authors_logged(step: int, lr: float) -> None:
    """Fine-tuning, base 3e-4, batch 16, 297 steps per epoch: the rates that the notebook logged."""
    assert make_schedule("cosine16", batch_size=16)(at(step * 16), 3e-4) == pytest.approx(lr, rel=3e-4)


def test_triangle_has_period_32_and_mean_half_way() -> None:
    one = [triangle_cosine(s, end=0.001) for s in range(32)]
    assert [triangle_cosine(s + 32, end=0.001) for s in range(32)] == pytest.approx(one)
    assert sum(one) / 32 == pytest.approx(0.5005)


@pytest.mark.parametrize("kind", ["constant", "cosine", "cosine16"])
def test_rate_is_a_function_of_samples_not_of_calls(kind: str) -> None:
    lr = make_schedule(kind, batch_size=16)
    first = [lr(at(s), 1e-3) for s in (0, 16, 160)]
    assert [lr(at(s), 1e-3) for s in (0, 16, 160)] == first


@pytest.mark.parametrize("kind", ["constant", "cosine", "cosine16"])
def test_floor_is_absolute_and_never_raises_a_rate(kind: str) -> None:
    lr = make_schedule(kind, batch_size=1, floor=1e-6)
    bottom = at(1000) if kind == "cosine" else at(16)
    assert lr(bottom, 1e-3) == pytest.approx(1e-3 if kind == "constant" else 1e-6)
    assert lr(bottom, 1e-8) == pytest.approx(1e-8)
    assert lr(bottom, 0.0) == 0.0  # a frozen group stays frozen


def test_warmup_starts_at_the_floor_and_reaches_the_base() -> None:
    for kind in ("cosine", "constant"):
        lr = make_schedule(kind, batch_size=1, warmup=0.1, floor=1e-6)
        assert [lr(at(s), 1e-3) for s in (0, 50, 100)] == pytest.approx([1e-6, 5.005e-4, 1e-3])


@pytest.mark.parametrize(
    ("kind", "warmup", "message"),
    [
        ("linear", 0.0, "schedule.kind=linear: constant, cosine, cosine16 exist"),
        ("cosine", 5.0, r"warmup=5.0: a fraction of the run, from 0 up to but not including 1"),
        ("cosine16", 0.1, "schedule.warmup=0.1 contradicts schedule.kind=cosine16"),
    ],
)
def test_bad_schedules_are_refused(kind: str, warmup: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_schedule(kind, batch_size=16, warmup=warmup)
