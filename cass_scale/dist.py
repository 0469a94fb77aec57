"""Ranks and collectives, usable with and without a process group."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch import distributed as td


def active() -> bool:
    """Whether a process group with more than one rank is up."""
    return td.is_available() and td.is_initialized() and td.get_world_size() > 1


def rank() -> int:
    """This process's global rank, also before the group is up (from the launcher's environment)."""
    return td.get_rank() if td.is_available() and td.is_initialized() else int(os.environ.get("RANK", "0"))


def world() -> int:
    """Number of ranks."""
    return td.get_world_size() if td.is_available() and td.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def all_reduce_mean(x: Tensor) -> Tensor:
    """Mean of `x` over ranks; no gradient."""
    if not active():
        return x
    x = x.detach().clone()
    td.all_reduce(x)
    return x / td.get_world_size()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank."""
    if not active():
        return flag
    x = torch.tensor([1.0 if flag else 0.0], device=device)
    td.all_reduce(x, op=td.ReduceOp.MAX)
    return bool(x.item())


def gather_with_grad(x: Tensor) -> Tensor:
    """Rows of all ranks, concatenated in rank order [B, ...] -> [world * B, ...]; gradients flow to their owner."""
    if not active():
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(list(all_gather(x.contiguous())))
