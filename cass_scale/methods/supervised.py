"""Supervised training of one encoder as a method, so that fine-tuning runs on the same loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cass_scale.encoders import Encoder
from cass_scale.methods.base import Method
from cass_scale.types import ArmOutput, Batch, Progress, StepOutput

Criterion = Callable[[Tensor, Tensor], Tensor]  # logits [B, C], targets as the stream labels them -> scalar


class Supervised(Method):
    """An encoder with a fresh linear head of `classes` logits, trained end to end (paper, section 4.3).

    frozen: the head alone is trained; the encoder stays in eval mode, its BatchNorm as pretraining left it.
    """

    needs = frozenset({"label"})

    def __init__(
        self, name: str, encoder: Encoder, classes: int, criterion: Criterion, *, frozen: bool = False
    ) -> None:
        super().__init__()
        self.name, self.encoder = name, encoder
        self.head = nn.Linear(encoder.dim, classes)
        self.criterion, self.frozen = criterion, frozen

    def train(self, mode: bool = True) -> Supervised:
        """Training mode, but for a frozen encoder."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def param_groups(self) -> list[dict[str, Any]]:
        """All parameters, or those of the head."""
        trained = self.head if self.frozen else self
        return [{"params": list(trained.parameters()), "lr_scale": 1.0, "algorithm": None}]

    def forward(self, views: list[Tensor], batch: Batch, progress: Progress) -> StepOutput:
        """Criterion of the logits [B, C] of the first view."""
        if batch.label is None:
            raise ValueError("supervised training needs a stream with labels")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoder(views[0])
        return StepOutput(self.criterion(self.head(features), batch.label), {})

    def outputs(self, views: list[Tensor]) -> dict[str, ArmOutput]:
        """Features and logits of the one arm."""
        features = self.encoder(views[0])
        return {self.name: ArmOutput(features, self.head(features))}

    def encoders(self) -> dict[str, Encoder]:
        """The one encoder."""
        return {self.name: self.encoder}
