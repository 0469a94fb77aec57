"""The average is the mean of the weights it was shown, with BatchNorm's statistics of that mean."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cass_scale.average import Average
from cass_scale.methods.base import Method
from cass_scale.types import ArmOutput, Progress

STEPS = 12


class Small(Method):
    """A linear map of the pixels and a BatchNorm behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(12, 5), nn.BatchNorm1d(5)

    def outputs(self, views: list[Tensor]) -> dict[str, ArmOutput]:
        features = self.linear(views[0].flatten(1))
        return {"cnn": ArmOutput(features, self.norm(features))}


def walk(method: Small, step: int) -> None:
    with torch.no_grad():
        for p in method.parameters():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(step))


def at(step: int) -> Progress:
    return Progress(0, step, step * 4, STEPS * 4)


def batches() -> list[list[Tensor]]:
    made = torch.Generator().manual_seed(1)
    return [[torch.rand(n, 3, 2, 2, generator=made)] for n in (4, 6, 8)]


def trained(average: Average, method: Small) -> list[dict[str, Tensor]]:
    """Walk all steps; the weights after each."""
    seen = []
    for step in range(1, STEPS + 1):
        walk(method, step)
        average.update(method, at(step))
        seen.append({k: v.detach().clone() for k, v in method.named_parameters()})
    return seen


def test_the_mean_is_torchs_over_the_due_steps_and_the_mean_by_hand() -> None:
    method = Small()
    average = Average(method, start=0.5, every=3)
    seen = trained(average, method)
    due = [seen[step - 1] for step in (6, 9, 12)]
    shadow, theirs = Small(), AveragedModel(Small())
    for weights in due:
        shadow.load_state_dict(weights, strict=False)
        theirs.update_parameters(shadow)
    average.finish(method, batches())
    for name, p in method.named_parameters():
        assert torch.equal(p, theirs.module.get_parameter(name))
        torch.testing.assert_close(p, torch.stack([w[name] for w in due]).mean(0))


def test_batchnorm_is_estimated_anew_for_the_mean_weights() -> None:
    method = Small()
    average = Average(method, start=0.0, every=1)
    trained(average, method)
    with torch.no_grad():
        method.norm.running_mean += 100.0  # stale, whatever it was
    average.finish(method, batches())
    with torch.no_grad():
        outs = [method.linear(views[0].flatten(1)) for views in batches()]
    torch.testing.assert_close(method.norm.running_mean, torch.stack([o.mean(0) for o in outs]).mean(0))
    torch.testing.assert_close(method.norm.running_var, torch.stack([o.var(0) for o in outs]).mean(0))
    assert method.norm.momentum == 0.1
    assert all(p.grad is None for p in method.parameters())


def test_before_its_start_it_changes_nothing() -> None:
    method = Small()
    average = Average(method, start=2.0, every=1)
    last = trained(average, method)[-1]

    def unread() -> list[list[Tensor]]:
        raise AssertionError("no epoch is read for nothing")

    average.finish(method, (views for views in [None] if unread()))
    assert all(torch.equal(p, last[name]) for name, p in method.named_parameters())


def test_a_restored_average_goes_on_bit_for_bit() -> None:
    method = Small()
    average = Average(method, start=0.0, every=2)
    for step in range(1, 7):
        walk(method, step)
        average.update(method, at(step))
    file = io.BytesIO()
    torch.save({"average": average.state_dict(), "model": method.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = Small()
    other.load_state_dict(state["model"])
    resumed = Average(other, start=0.0, every=2)
    resumed.load_state_dict(state["average"])
    for each, one in ((average, method), (resumed, other)):
        for step in range(7, 11):
            walk(one, step)
            each.update(one, at(step))
        each.finish(one, batches())
    for name, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
