"""The contract between the loop and a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cass_scale.encoders import Encoder
from cass_scale.errors import ConfigError
from cass_scale.types import ArmOutput, Batch, Progress, StepOutput


class Method(nn.Module):
    """What the loop trains. Subclasses own encoders, heads and the loss; never a logger, path or rank."""

    needs: frozenset[str] = frozenset()  # optional batch fields it requires, e.g. {"label"}

    def forward(self, views: list[Tensor], batch: Batch, progress: Progress) -> StepOutput:
        """Views, float [B, 3, S, S] in [0, 1] each -> loss. The loss lives here, so that DDP's hooks fire."""
        raise TypeError(f"{type(self).__name__} must define forward")

    def encoders(self) -> dict[str, Encoder]:
        """What downstream tasks may load, by arm name."""
        raise TypeError(f"{type(self).__name__} must define encoders")

    def outputs(self, views: list[Tensor]) -> dict[str, ArmOutput]:
        """Per arm, features and the outputs that the objective compares: what the collapse monitor reads."""
        raise TypeError(f"{type(self).__name__} must define outputs")

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups with `lr_scale` (0 freezes) and an optional `algorithm`. Default: one group."""
        return [{"params": list(self.parameters()), "lr_scale": 1.0, "algorithm": None}]

    def after_step(self, progress: Progress) -> None:
        """Called once after every optimizer step, e.g. for an EMA teacher."""

    def on_epoch(self, epoch: int) -> None:
        """Called before every epoch."""


def views_by_arm(views: list[Tensor], arms: Sequence[str]) -> dict[str, Tensor]:
    """One shared view for all arms, or view i for arm i. Raises ConfigError for any other number of views."""
    if len(views) not in (1, len(arms)):
        raise ConfigError(f"views: {len(views)} views for {len(arms)} arms; give 1 to share, or 1 per arm")
    return dict(zip(arms, views * len(arms), strict=False))
