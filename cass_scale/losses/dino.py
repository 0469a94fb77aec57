"""Self-distillation: the student predicts what the teacher says of other views of the same image."""

from __future__ import annotations

import torch
from torch import Tensor

from cass_scale.errors import ConfigError
from cass_scale.losses.fp32 import fp32


@torch.no_grad()
@fp32
def sharpened(scores: Tensor, centre: Tensor, *, temperature: float) -> Tensor:
    """The teacher's probabilities: softmax((scores - centre) / temperature) over the last of [..., K], no gradient."""
    return ((scores - centre) / temperature).softmax(dim=-1)


@fp32
def dino(targets: Tensor, scores: Tensor, *, student_temperature: float = 0.1) -> Tensor:
    """DINO: mean over images and pairs (t, s), t != s, of -<targets_t, log softmax(scores_s / student_temperature)>.

    targets: the teacher's probabilities of T views [T, B, K]; scores: the student's of S views [S, B, K]. Views of
    equal number are one and the same, or cut from one, and are not paired. It starts near ln K and stays there
    when teacher and student have collapsed to the uniform answer.

    Each rank returns the mean over its own rows, so DDP's mean of gradients is that of the global batch.

    Caron et al. 2021, arXiv 2104.14294, algorithm 1; facebookresearch/dino @ 7c446df, main_dino.py, DINOLoss. Equals
    lightly's DINOLoss, which also moves a centre: at every call, so once per micro-batch instead of once per step.

    Raises:
        ConfigError: no pair of different views.
    """
    views, answers = len(targets), len(scores)
    pairs = views * answers - min(views, answers)
    if not pairs:
        raise ConfigError(
            f"the objective dino pairs different views and got {views} of the teacher's, {answers} of the student's:"
            " two or more work"
        )
    logs = (scores / student_temperature).log_softmax(dim=-1)
    # For each t the sum over s != t at once: neither T x S products of [B, K], nor a matmul that TF32 would round.
    others = [logs.sum(dim=0) - logs[t] if t < answers else logs.sum(dim=0) for t in range(views)]
    products = [(target * log).sum() for target, log in zip(targets, others, strict=True)]
    return -torch.stack(products).sum() / (pairs * targets.shape[1])
