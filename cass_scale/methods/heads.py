"""Heads of self-distillation: features [B, dim] -> scores [B, K] against K prototypes."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from cass_scale.losses.fp32 import fp32


class Head(nn.Module):
    """An MLP, L2-normalised, and its scores against prototypes: of unit length where `unit`.

    Unit length is what weight normalisation gives whose length is frozen at 1.
    """

    def __init__(self, mlp: nn.Sequential, prototypes: nn.Linear, *, unit: bool) -> None:
        super().__init__()
        self.mlp, self.prototypes, self.unit = mlp, prototypes, unit

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, dim] -> scores float32 [B, K]."""
        weight = self.prototypes.weight
        return _scores(self.mlp(features), F.normalize(weight) if self.unit else weight, self.prototypes.bias)


@fp32
def _scores(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # bf16 has steps of 1/256 at 1: a fifth of a teacher's temperature of 0.02.
    return F.linear(F.normalize(x), weight, bias)


def authors_head(
    dim: int, *, prototypes: int = 65536, hidden: int = 2048, bottleneck: int = 256, batchnorm: bool = False
) -> Head:
    """DINO's own (facebookresearch/dino @ 7c446df, vision_transformer.py, DINOHead, norm_last_layer)."""

    def layer(width: int) -> list[nn.Module]:
        return [nn.Linear(width, hidden), *([nn.BatchNorm1d(hidden)] if batchnorm else []), nn.GELU()]

    mlp = nn.Sequential(*layer(dim), *layer(hidden), nn.Linear(hidden, bottleneck))
    for part in mlp:
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
    return Head(mlp, nn.Linear(bottleneck, prototypes, bias=False), unit=True)


def learner_head(dim: int, *, prototypes: int = 65336, hidden: int = 256) -> Head:
    """That of vit-pytorch's learner (lucidrains/vit-pytorch v0.35.8, vit_pytorch/dino.py, MLP)."""
    widths = (dim, hidden, hidden, hidden)
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.GELU())]
    return Head(nn.Sequential(*layers), nn.Linear(hidden, prototypes), unit=False)
