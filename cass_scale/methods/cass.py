"""CASS: two encoders of different kinds look at one view; the objective compares their outputs.

Singh, Cirrone 2023, arXiv 2301.12025, section 3 and algorithm 1; the notebook of the authors' repository
(pranavsinghps1/CASS @ 3efacfe) for what the text leaves open. `configs/method/cass*.yaml` name the variants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cass_scale.encoders import ArmSpec, Encoder
from cass_scale.errors import ConfigError
from cass_scale.losses.cosine import noise_rule
from cass_scale.methods.base import Arm, Arms, Method, views_by_arm, wrong_number
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
    authors. `side_by_side` runs the second arm on a CUDA stream of its own. Raises ConfigError unless there are
    two arms with outputs of one width.
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
        side_by_side: bool = False,
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
        self.side_by_side = side_by_side

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
        if self.side_by_side and views[0].is_cuda:
            return self._outputs_side_by_side(views_by_arm(views, list(self.arms)))
        found: dict[str, ArmOutput] = self.arms(views)
        return found

    def _outputs_side_by_side(self, by_arm: dict[str, Tensor]) -> dict[str, ArmOutput]:
        """The second arm on a stream of its own; autograd runs each backward pass where its forward pass ran."""
        (first, one), (second, two) = self.arms.items()
        here, own = torch.cuda.current_stream(), torch.cuda.Stream()
        own.wait_stream(here)
        with torch.cuda.stream(own):
            other: ArmOutput = two(by_arm[second])
        outputs: ArmOutput = one(by_arm[first])
        here.wait_stream(own)
        # The allocator must not give a stream's memory away while the other one still reads it.
        by_arm[second].record_stream(own)
        for tensor in other:
            tensor.record_stream(here)
        return {first: outputs, second: other}

    def encoders(self) -> dict[str, Encoder]:
        """Both encoders, without their heads."""
        return self.arms.encoders()

    def param_groups(self) -> list[dict[str, Any]]:
        """One group per arm."""
        return self.arms.param_groups(0.0 if self.frozen else 1.0)
