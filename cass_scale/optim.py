"""One optimizer object for both arms, also where one arm takes Adam and the other SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cass_scale.errors import ConfigError

ALGORITHMS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


class PerArm(torch.optim.Optimizer):
    """Several torch optimizers behind one face: shared parameter groups, one step, one state.

    The loop, Accelerate and gradient scaling see one optimizer; each group is stepped by its own algorithm.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([g for part in parts for g in part.param_groups], {})
        # Share, do not copy: a learning rate set here must reach the part that steps the group.
        self.param_groups = [g for part in parts for g in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every part; with a closure, evaluate it once before."""
        loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [g for part in self.parts for g in part.param_groups]


def build(
    groups: list[dict[str, Any]], *, name: str, lr: float, weight_decay: float, momentum: float, fused: bool
) -> torch.optim.Optimizer:
    """An optimizer over the method's parameter groups; a group's own `algorithm` wins over `name`.

    Raises ConfigError for an unknown algorithm.
    """
    wanted = [group.get("algorithm") or name for group in groups]
    unknown = sorted(set(wanted) - set(ALGORITHMS))
    if unknown:
        known = ", ".join(ALGORITHMS)
        raise ConfigError(f"optim.name or arms.*.optimizer: {', '.join(unknown)} is unknown; choose {known}")

    def one(algorithm: str, own: list[dict[str, Any]]) -> torch.optim.Optimizer:
        extra: dict[str, Any] = {"momentum": momentum} if algorithm == "sgd" else {}
        return ALGORITHMS[algorithm](own, lr=lr, weight_decay=weight_decay, fused=fused, **extra)

    pairs = list(zip(groups, wanted, strict=True))
    parts = [one(name, [group for group, w in pairs if w == name]) for name in dict.fromkeys(wanted)]
    return parts[0] if len(parts) == 1 else PerArm(parts)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the scheduled rate times its own `lr_scale` (0 freezes, never clearing gradients)."""
    for group in optimizer.param_groups:
        rate = lr * group["lr_scale"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
