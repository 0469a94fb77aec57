"""The cost of a step: equal to a count by hand and near the published figures, with nothing computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cass_scale import encoders, losses
from cass_scale.encoders import ArmSpec
from cass_scale.estimate import Estimate, estimate
from cass_scale.methods.base import Method
from cass_scale.methods.cass import CASS
from cass_scale.types import Batch, Crop, Progress, StepOutput, ViewSpec


class ByHand(Method):
    """Two linear maps with a ReLU between: 12 -> 8 -> 5."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 8, bias=False), nn.Linear(8, 5, bias=False)

    def forward(self, views: list[Tensor], batch: Batch, progress: Progress) -> StepOutput:
        loss = sum(self.b(torch.relu(self.a(view.flatten(1)))).sum() for view in views)
        return StepOutput(torch.as_tensor(loss), {})


def shared(size: int, count: int = 1) -> ViewSpec:
    return ViewSpec((Crop(size, count),))


def pair(cnn: str, vit: str, size: int, objective: str = "cosine", **keys: object) -> CASS:
    with torch.device("meta"):
        names = {"a": cnn, "b": vit}
        arms = {n: encoders.build(ArmSpec(m), size, 0, load=False) for n, m in names.items()}
        return CASS(arms, getattr(losses, objective), **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("micro_batch", [2, 5, 64])
@pytest.mark.parametrize("width", [2, 4])
def test_a_small_step_equals_the_count_by_hand(micro_batch: int, width: int) -> None:
    with torch.device("meta"):
        cost = estimate(ByHand(), shared(2), micro_batch, width)
    forward, weight_gradients, input_gradient = 12 * 8 + 8 * 5, 12 * 8 + 8 * 5, 8 * 5
    kept = 12 + 8  # the input, and the ReLU's result, which it shares with the next map
    parameters = 12 * 8 + 8 * 5
    assert cost.flops_per_image == 2 * (forward + weight_gradients + input_gradient)
    assert cost.parameters == parameters
    assert cost.memory_bytes == 16 * parameters + micro_batch * kept * width


def test_every_view_counts() -> None:
    with torch.device("meta"):
        one, two = (estimate(ByHand(), shared(2, count), 4, 4) for count in (1, 2))
    assert two.flops_per_image == 2 * one.flops_per_image


def test_the_papers_pair_costs_what_the_literature_says() -> None:
    cost = estimate(pair("resnet50", "vit_base_patch16_384", 384), shared(384), 2, 4)
    # Forward 12.0 GMAC of ResNet-50 and 55.5 of ViT-B/16 at 384 px, three times that with backward.
    assert cost.flops_per_image == pytest.approx(2 * 203e9, rel=0.03)
    assert cost.parameters == pytest.approx(25.56e6 + 86.86e6, rel=1e-3)


def test_memory_is_linear_in_the_batch_and_halves_its_activations_in_16_bit() -> None:
    method = pair("resnet10t", "vit_tiny_patch16_224", 64)

    def memory(micro_batch: int, width: int = 4) -> int:
        return estimate(method, shared(64), micro_batch, width).memory_bytes

    fixed = 16 * sum(p.numel() for p in method.parameters())
    eight = memory(8) - fixed
    assert eight > 0
    assert memory(64) - fixed == pytest.approx(8 * eight, rel=1e-6)
    assert memory(2) - fixed == pytest.approx(eight / 4, rel=0.01)  # counted on its own two images
    assert memory(8, 2) - fixed == pytest.approx(eight / 2, rel=0.01)


@pytest.mark.parametrize("objective", ["cosine", "infonce", "vicreg", "barlow", "sinkhorn"])
def test_every_objective_can_be_estimated(objective: str) -> None:
    method = pair("resnet10t", "vit_tiny_patch16_224", 32, objective, noise_rule=True, projection=16)
    cost = estimate(method, shared(32, 2), 4, 4)
    assert isinstance(cost, Estimate)
    assert cost.flops_per_image > 0
    assert all(p.is_meta for p in method.parameters())


@pytest.mark.parametrize(
    ("one", "other"), [("densenet121", "efficientnet_b0"), ("swin_tiny_patch4_window7_224", "convnext_atto")]
)
def test_other_pairs_can_be_estimated(one: str, other: str) -> None:
    assert estimate(pair(one, other, 64), shared(64), 2, 4).flops_per_image > 1e9
