"""Supervised training as a method: the baseline with labels, and fine-tuning, on the one loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cass_scale.encoders import ArmSpec, Encoder
from cass_scale.methods.base import Arm, Arms, Method, wrong_number
from cass_scale.types import ArmOutput, Batch, Progress, StepOutput, ViewSpec

Criterion = Callable[[Tensor, Tensor], Tensor]  # logits [B, C], targets float [B, C] of 0 and 1 -> scalar


class Supervised(Method):
    """Encoders with linear heads of one logit per class, each trained end to end, side by side (paper, section 4.2).

    The arms share batches and nothing else: the sum of their losses gives each its own gradient. frozen: the heads
    alone are trained; the encoders stay in eval mode, their BatchNorm as pretraining left it.
    """

    needs = frozenset({"label"})
    objectives = frozenset({"focal"})

    def __init__(
        self,
        encoders: dict[str, tuple[Encoder, nn.Linear]],
        criterion: Criterion,
        *,
        frozen: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.arms = Arms({name: Arm(encoder, head) for name, (encoder, head) in encoders.items()})
        self.criterion, self.frozen = criterion, frozen
        for encoder, _ in encoders.values():
            encoder.requires_grad_(not frozen)

    @classmethod
    def problems(cls, arms: Mapping[str, ArmSpec], views: ViewSpec, objective: str) -> list[str]:
        """Any number of arms, one view or one for each arm."""
        return super().problems(arms, views, objective) + wrong_number(len(views.sizes), len(arms))

    def train(self, mode: bool = True) -> Supervised:
        """Training mode, but for frozen encoders."""
        super().train(mode)
        if self.frozen:
            for encoder in self.encoders().values():
                encoder.eval()
        return self

    def forward(self, views: list[Tensor], batch: Batch, progress: Progress) -> StepOutput:
        """Sum over the arms of the criterion of their logits [B, C]."""
        if batch.label is None:
            raise ValueError("supervised training needs a stream with labels")
        logits = [out.outputs for out in self.outputs(views).values()]
        target = one_hot(batch.label, logits[0].shape[1])
        return StepOutput(torch.stack([self.criterion(some, target) for some in logits]).sum(), {})

    def outputs(self, views: list[Tensor]) -> dict[str, ArmOutput]:
        """Features and logits per arm."""
        found: dict[str, ArmOutput] = self.arms(views)
        return found

    def encoders(self) -> dict[str, Encoder]:
        """The encoders, without their heads."""
        return self.arms.encoders()

    def param_groups(self) -> list[dict[str, Any]]:
        """One group per arm; of a frozen one its head."""
        groups = self.arms.param_groups()
        return [group | {"params": [p for p in group["params"] if p.requires_grad]} for group in groups]


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels int64 [B], or float [B, C] of 0 and 1 -> float [B, C]."""
    if labels.ndim == 2:
        return labels.float()
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()
