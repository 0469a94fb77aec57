"""One optimizer object for both arms, also where one arm takes Adam and the other SGD."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cass_scale.errors import ConfigError
from cass_scale.schedule import Rates

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

    A group also says how its rates follow the schedule, see `set_rates`. Raises ConfigError for an unknown algorithm.
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


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates, epoch: int) -> None:
    """Give every group the scheduled rates times its own `lr_scale` and, where it has one, `decay_scale`.

    A scale of 0 freezes, and so do `frozen_epochs`: the rate is 0 then. Gradients are never cleared for that, which
    ZeRO would not see.
    """
    for group in optimizer.param_groups:
        lr = 0.0 if epoch < group.get("frozen_epochs", 0) else rates.lr * group["lr_scale"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
        group["weight_decay"] = rates.weight_decay * group.get("decay_scale", 1.0)


@torch.no_grad()
def clip_each_(parameters: Iterable[nn.Parameter], most: float) -> None:
    """Shorten every gradient that is longer than `most`, each by its own norm; never waits for a device.

    facebookresearch/dino @ 7c446df, utils.py, clip_gradients.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    torch._foreach_mul_(gradients, list((most / (norms + 1e-6)).clamp(max=1.0)))
