"""Objectives: pure functions of outputs -> scalar, computed in float32; most of two arms' x, y [B, K]."""

from cass_scale.losses.barlow import barlow
from cass_scale.losses.cosine import cosine, noise_rule
from cass_scale.losses.dino import dino, sharpened
from cass_scale.losses.entropy import cross_entropy
from cass_scale.losses.focal import class_weights, focal
from cass_scale.losses.fp32 import fp32
from cass_scale.losses.infonce import infonce
from cass_scale.losses.sinkhorn import sinkhorn
from cass_scale.losses.vicreg import vicreg

__all__ = [
    "barlow",
    "class_weights",
    "cosine",
    "cross_entropy",
    "dino",
    "focal",
    "fp32",
    "infonce",
    "noise_rule",
    "sharpened",
    "sinkhorn",
    "vicreg",
]
