"""DINO: an encoder learns to predict, from some views, what a running mean of itself says of others.

Caron et al. 2021, arXiv 2104.14294; the authors' code (facebookresearch/dino @ 7c446df) and the learner that the CASS
paper names (lucidrains/vit-pytorch v0.35.8, vit_pytorch/dino.py). `configs/method/dino*.yaml` name the recipes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from itertools import groupby
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cass_scale import dist
from cass_scale.encoders import ArmSpec, Encoder
from cass_scale.errors import ConfigError
from cass_scale.losses.dino import sharpened
from cass_scale.methods.base import Arm, Method
from cass_scale.methods.heads import Head
from cass_scale.schedule import constant, cosine
from cass_scale.types import ArmOutput, Batch, Progress, StepOutput, ViewSpec

Objective = Callable[[Tensor, Tensor], Tensor]  # targets [T, B, K], scores [S, B, K] -> scalar
GLOBALS = 2  # the first views: all that the teacher sees


class DINO(Method):
    """One encoder as student, and its running mean as teacher: what is exported, watched and scored.

    sees: the views that the student answers for. freeze: epochs in which the prototypes rest. ema: share of the
    teacher that stays at every step, to `ema_end` along half a cosine. temperature: of the teacher, reached on a
    straight line from `temperature_start` over `warmup` of the run. centre: share of the centre that stays.

    Both are in training mode: the teacher's BatchNorm normalises by the batch, and its running statistics are those of
    its own passes, as in the authors' code, which averages parameters only. Raises ConfigError unless there is one arm.
    """

    objectives = frozenset({"dino"})
    exported = "the teacher, the moving average that DINO's authors evaluate; the student as <arm>_student"
    averaged = True

    def __init__(
        self,
        encoders: dict[str, tuple[Encoder, nn.Linear]],
        objective: Objective,
        *,
        head: Callable[[int], Head],
        sees: Literal["all", "locals"] = "all",
        freeze: int = 1,
        ema: float = 0.996,
        ema_end: float = 1.0,
        temperature: float = 0.04,
        temperature_start: float = 0.04,
        warmup: float = 0.0,
        centre: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(encoders) != 1:
            raise ConfigError(_one_arm(list(encoders)))
        ((self.name, (encoder, _)),) = encoders.items()
        self.student = Arm(encoder, head(encoder.dim))
        self.teacher = Arm(encoder.steady(), deepcopy(self.student.head)).requires_grad_(False)
        self.objective, self.sees, self.freeze = objective, sees, freeze
        self.ema, self.ema_end, self.stays = ema, ema_end, centre
        self.temperature, self.start, self.warmup = temperature, temperature_start, warmup
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(self._head().prototypes.out_features))
        self._means: list[Tensor] = []  # of the teacher's scores, one per micro-batch since the last step

    @classmethod
    def problems(cls, arms: Mapping[str, ArmSpec], views: ViewSpec, objective: str) -> list[str]:
        """One arm, and two global views of one size before all others."""
        found = super().problems(arms, views, objective)
        if len(arms) != 1:
            found.append(_one_arm(list(arms)))
        if views.per_arm != "shared":
            found.append(f"views.per_arm={views.per_arm}: DINO has one arm; use shared")
        if len(views.sizes) < GLOBALS or len(set(views.sizes[:GLOBALS])) > 1:
            found.append(f"views.crops: sizes {views.sizes}; DINO's first {GLOBALS} views are global, of one size")
        return found

    def forward(self, views: list[Tensor], batch: Batch, progress: Progress) -> StepOutput:
        """Loss of this micro-batch, and how evenly the teacher spreads its answers: 1 is the uniform one (collapse)."""
        with torch.no_grad():
            said = scores(self.teacher, views[:GLOBALS])
            self._means.append(said.mean(dim=(0, 1)))
        targets = sharpened(said, self.centre, temperature=self._temperature(progress))
        answers = scores(self.student, views if self.sees == "all" else _locals(views))
        entropy = torch.special.entr(targets).sum(dim=-1).mean() / math.log(targets.shape[-1])
        return StepOutput(self.objective(targets, answers), {"teacher_entropy": entropy})

    def _temperature(self, progress: Progress) -> float:
        share = constant(progress.fraction, warmup=self.warmup, start=self.start / self.temperature)
        return self.temperature * share

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Move the teacher towards the student and the centre towards the teacher's mean score over all ranks."""
        begun = progress.fraction * (progress.step - 1) / progress.step  # the authors count steps from 0
        stays = cosine(begun, start=self.ema, end=self.ema_end)
        average = get_ema_multi_avg_fn(stays)
        average(list(self.teacher.parameters()), list(self.student.parameters()), None)
        self.centre.lerp_(dist.all_reduce_mean(torch.stack(self._means).mean(dim=0)), 1 - self.stays)
        self._means.clear()

    def outputs(self, views: list[Tensor]) -> dict[str, ArmOutput]:
        """The teacher's features of the first view, and its probabilities: equal for all images after a collapse."""
        features, said = self.teacher(views[0])
        return {self.name: ArmOutput(features, sharpened(said, self.centre, temperature=self.temperature))}

    def encoders(self) -> dict[str, Encoder]:
        """The teacher under the arm's name, and the student beside it."""
        return {self.name: self.teacher.encoder, f"{self.name}_student": self.student.encoder}

    def param_groups(self) -> list[dict[str, Any]]:
        """The student's alone. Biases and norms never decay; the prototypes rest in the first epochs."""
        last = {id(p) for p in self._head().prototypes.parameters()}
        kinds: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for p in self.student.parameters():
            kinds.setdefault((p.ndim > 1, id(p) in last), []).append(p)
        common = {"lr_scale": 1.0, "algorithm": self.student.encoder.spec.optimizer, "arm": self.name}
        return [
            {"params": some, "decay_scale": float(decays), "frozen_epochs": self.freeze if rests else 0} | common
            for (decays, rests), some in kinds.items()
        ]

    def _head(self) -> Head:
        return cast(Head, self.student.head)


def scores(arm: Arm, views: list[Tensor]) -> Tensor:
    """Views [B, 3, S, S] of any sizes -> scores [V, B, K]; neighbours of one size pass as one batch, as in
    the authors' code (utils.py, MultiCropWrapper): BatchNorm sees them together."""
    runs = (list(same) for _, same in groupby(views, key=lambda view: view.shape[-1]))
    features = torch.cat([arm.encoder(torch.cat(run)) for run in runs])
    found: Tensor = arm.head(features).unflatten(0, (len(views), -1))
    return found


def _locals(views: list[Tensor]) -> list[Tensor]:
    if len(views) == GLOBALS:
        raise ConfigError(
            "method.sees=locals: views.crops has no local views; use views=dino_paper, or method.sees=all"
        )
    return views[GLOBALS:]


def _one_arm(arms: list[str]) -> str:
    return f"arms: {', '.join(arms)}; DINO trains one encoder: choose it with arm={' or arm='.join(arms)}"
