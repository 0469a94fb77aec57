"""FLOPs of the real steps beside the analytic table: what is method, before anything is engineering."""

from __future__ import annotations

from functools import cache

import pytest

from cass_scale.cli import build, compose_config
from cass_scale.verbs import settings, wire

# Multiply-adds of a forward pass of ViT-B/16 and ResNet-50, 1e9, by the side of the image; a training step is three.
VIT, RESNET = {384: 55.5, 224: 17.6, 96: 3.19}, {384: 12.0, 224: 4.09, 96: 0.75}


@cache
def giga(*words: str) -> float:
    """Multiply-adds per image of the configured step, 1e9."""
    config = compose_config("pretrain", ["arms=paper_random", *words])
    return wire.cost(config, build, settings.arm_specs(config), 2).flops_per_image / 2e9


def learner(arm: str, size: int = 384) -> float:
    return giga("method=dino_paper", f"arm={arm}", f"arms.image_size={size}")


@pytest.mark.parametrize(("arm", "forward"), [("vit", VIT), ("cnn", RESNET)], ids=["vit", "cnn"])
def test_dino_costs_what_its_passes_cost(arm: str, forward: dict[int, float]) -> None:
    student, teacher = 3 * (2 * forward[224] + 8 * forward[96]), 2 * forward[224]
    assert giga("method=dino", f"arm={arm}") == pytest.approx(student + teacher, rel=0.03)
    student, teacher = 3 * 2 * forward[384], 2 * forward[384]
    assert learner(arm) == pytest.approx(student + teacher, rel=0.03)


def test_cass_and_supervised_are_one_pass_of_each_network() -> None:
    once = 3 * (VIT[384] + RESNET[384])
    assert giga() == pytest.approx(once, rel=0.03)
    assert giga("method=supervised") == pytest.approx(once, rel=0.03)
    assert giga("method=supervised", "arm=cnn") == pytest.approx(3 * RESNET[384], rel=0.03)


def test_the_pair_of_runs_that_cass_replaces() -> None:
    assert (learner("vit") + learner("cnn")) / giga() == pytest.approx(2.67, rel=0.03), "62.5 % saved by arithmetic"
    official = giga("method=dino", "arm=vit") + giga("method=dino", "arm=cnn")
    assert official / giga() == pytest.approx(1.32, rel=0.03)
    assert learner("vit", 224) / learner("vit") == pytest.approx(VIT[224] / VIT[384], rel=0.03)
