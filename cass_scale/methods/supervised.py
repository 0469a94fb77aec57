"""Supervised training of one encoder as a method, so that fine-tuning runs on the same loop."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from cass_scale.encoders import Encoder
from cass_scale.methods.base import Method
from cass_scale.types import ArmOutput, Batch, Progress, StepOutput

Criterion = Callable[[Tensor, Tensor], Tensor]  # logits [B, C], targets as the stream labels them -> scalar


class Supervised(Method):
    """An encoder with a fresh linear head of `classes` logits, trained end to end (paper, section 4.2)."""

    needs = frozenset({"label"})

    def __init__(self, name: str, encoder: Encoder, classes: int, criterion: Criterion) -> None:
        super().__init__()
        self.name, self.encoder = name, encoder
        self.head = nn.Linear(encoder.dim, classes)
        self.criterion = criterion

    def forward(self, views: list[Tensor], batch: Batch, progress: Progress) -> StepOutput:
        """Criterion of the logits [B, C] of the first view."""
        if batch.label is None:
            raise ValueError("supervised training needs a stream with labels")
        logits = self.head(self.encoder(views[0]))
        return StepOutput(self.criterion(logits, batch.label), {})

    def outputs(self, views: list[Tensor]) -> dict[str, ArmOutput]:
        """Features and logits of the one arm."""
        features = self.encoder(views[0])
        return {self.name: ArmOutput(features, self.head(features))}

    def encoders(self) -> dict[str, Encoder]:
        """The one encoder."""
        return {self.name: self.encoder}
