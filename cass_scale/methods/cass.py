"""CASS: two encoders of different kinds look at one view; the objective compares their outputs.

Singh, Cirrone 2023, arXiv 2301.12025, section 3 and algorithm 1; the notebook of the authors' repository
(pranavsinghps1/CASS @ 3efacfe) for what the text leaves open. `configs/method/cass*.yaml` name the variants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cass_scale.encoders import ArmSpec, Encoder
from cass_scale.errors import ConfigError
from cass_scale.losses.cosine import noise_rule
from cass_scale.methods.base import Arm, Arms, Method, wrong_number
from cass_scale.types import ARMS, ArmOutput, Batch, Progress, StepOutput, ViewSpec

Objective = Callable[[Tensor, Tensor], Tensor]


def projector(dim: int, hidden: int, outputs: int) -> nn.Module:
    """A small BatchNorm projector: its batch statistics alone keep outputs from becoming one constant."""
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs),
    )


class CASS(Method):
    """Two arms, one view, one objective between their outputs; `2 - 2 cos` in the paper.

    `projection` > 0 replaces both heads by BatchNorm projectors of that output width. `frozen` gives the null
    control: learning rate 0, so that only BatchNorm's running statistics move, as in the recorded run of the
    authors. Raises ConfigError unless there are two arms with outputs of one width.
    """

    objectives = frozenset({"cosine", "infonce", "vicreg", "barlow", "sinkhorn"})

    def __init__(
        self,
        encoders: dict[str, tuple[Encoder, nn.Linear]],
        objective: Objective,
        *,
        projection: int = 0,
        projection_hidden: int = 512,
        frozen: bool = False,
        noise_rule: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        widths = {name: projection or head.out_features for name, (_, head) in encoders.items()}
        if len(widths) != ARMS or len(set(widths.values())) > 1:
            given = ", ".join(f"{name} {width}" for name, width in widths.items())
            raise ConfigError(f"arms.*.outputs: {given}; the objective compares two arms with outputs of one width")
        arms = {
            name: Arm(e, projector(e.dim, projection_hidden, projection) if projection else head)
            for name, (e, head) in encoders.items()
        }
        self.arms = Arms(arms)
        self.objective = objective
        self.frozen, self.noise_rule, self.seed = frozen, noise_rule, seed

    @classmethod
    def problems(cls, arms: Mapping[str, ArmSpec], views: ViewSpec, objective: str) -> list[str]:
        """Two arms, outputs of one width, one view or one for each arm."""
        found = super().problems(arms, views, objective) + wrong_number(len(views.sizes), ARMS)
        if len(arms) != ARMS:
            found.append(f"arms: {len(arms)} arms ({', '.join(arms)}); CASS compares exactly two")
        if len(widths := {str(spec.outputs) for spec in arms.values()}) > 1:
            given = ", ".join(sorted(widths))
            found.append(f"arms.*.outputs: {given}; the objective compares outputs of one width")
        return found

    def forward(self, views: list[Tensor], batch: Batch, progress: Progress) -> StepOutput:
        """One pass through both arms; the loss of this micro-batch and the mean cosine between the arms."""
        x, y = (out.outputs for out in self.outputs(views).values())
        if self.noise_rule:
            x, y = noise_rule(x, y, seed=self.seed, step=progress.step)
        loss = self.objective(x, y)
        agreement = F.cosine_similarity(x.detach().float(), y.detach().float()).mean()
        return StepOutput(loss, {"agreement": agreement})

    def outputs(self, views: list[Tensor]) -> dict[str, ArmOutput]:
        """Features and outputs per arm, in the order of the configuration."""
        found: dict[str, ArmOutput] = self.arms(views)
        return found

    def encoders(self) -> dict[str, Encoder]:
        """Both encoders, without their heads."""
        return self.arms.encoders()

    def param_groups(self) -> list[dict[str, Any]]:
        """One group per arm."""
        return self.arms.param_groups(0.0 if self.frozen else 1.0)
