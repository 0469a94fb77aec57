"""The contract between the loop and a method, and what methods are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from cass_scale.encoders import ArmSpec, Encoder
from cass_scale.errors import ConfigError
from cass_scale.types import ArmOutput, Batch, Progress, StepOutput, ViewSpec


class Method(nn.Module):
    """What the loop trains. Subclasses own encoders, heads and the loss; never a logger, path or rank."""

    needs: frozenset[str] = frozenset()  # optional batch fields it requires, e.g. {"label"}
    objectives: frozenset[str] = frozenset()  # losses it can work with; none: it brings its own
    exported: str = "the trained encoders"  # what `encoders` gives, for the record
    averaged: bool = False  # whether that is a running mean of the weights already

    @classmethod
    def problems(cls, arms: Mapping[str, ArmSpec], views: ViewSpec, objective: str) -> list[str]:
        """What of these the method cannot work with, and what would work; found before anything is built."""
        if not cls.objectives or objective in cls.objectives:
            return []
        return [f"objective={objective}: {cls.__name__} works with {', '.join(sorted(cls.objectives))}"]

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
        """Parameter groups as `optim.build` takes them. Default: one group."""
        return [{"params": list(self.parameters()), "lr_scale": 1.0, "algorithm": None}]

    def after_step(self, progress: Progress) -> None:
        """Called once after every optimizer step, e.g. for an EMA teacher."""

    def on_epoch(self, epoch: int) -> None:
        """Called before every epoch."""


class Arm(nn.Module):
    """An encoder and what turns its features [B, dim] into outputs [B, K]."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, view: Tensor) -> ArmOutput:
        """View float [B, 3, S, S] in [0, 1] -> features [B, dim], outputs [B, K]."""
        features = self.encoder(view)
        return ArmOutput(features, self.head(features))


class Arms(nn.ModuleDict):
    """Arms by name that look at one shared view, or at a view each."""

    def forward(self, views: list[Tensor]) -> dict[str, ArmOutput]:
        """Features and outputs per arm, in the order of the configuration."""
        return {name: self[name](view) for name, view in views_by_arm(views, list(self)).items()}

    def encoders(self) -> dict[str, Encoder]:
        """The encoders, without their heads."""
        return {name: arm.encoder for name, arm in self._typed()}

    def param_groups(self, scale: float = 1.0) -> list[dict[str, Any]]:
        """One group per arm, so that each may have its own optimizer (Table 10)."""
        return [
            {"params": list(arm.parameters()), "lr_scale": scale, "algorithm": arm.encoder.spec.optimizer, "arm": name}
            for name, arm in self._typed()
        ]

    def _typed(self) -> Iterable[tuple[str, Arm]]:
        return cast(Iterable[tuple[str, Arm]], self.items())


def views_by_arm(views: list[Tensor], arms: Sequence[str]) -> dict[str, Tensor]:
    """One shared view for all arms, or view i for arm i. Raises ConfigError for any other number of views."""
    if wrong := wrong_number(len(views), len(arms)):
        raise ConfigError(*wrong)
    return dict(zip(arms, views * len(arms), strict=False))


def wrong_number(views: int, arms: int) -> list[str]:
    """What `views_by_arm` would refuse."""
    fits = views in (1, arms)
    return [] if fits else [f"views: {views} views for {arms} arms; give 1 to share, or 1 per arm"]
