"""Ranks and collectives, usable with and without a process group."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as td

T = TypeVar("T")


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
    return all_reduce_sum(x) / td.get_world_size() if active() else x


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` over ranks; no gradient."""
    if active():
        x = x.detach().clone()
        td.all_reduce(x)
    return x


@torch.no_grad()
def from_main(tensors: Iterable[Tensor]) -> None:
    """Give all ranks the main rank's values of the floating-point ones of `tensors`, in one message."""
    ours = [x for x in tensors if x.is_floating_point()]
    if not active() or not ours:
        return
    flat = torch.cat([x.reshape(-1).float() for x in ours])
    td.broadcast(flat, src=0)
    for x, part in zip(ours, flat.split([x.numel() for x in ours]), strict=True):
        x.copy_(part.view_as(x))


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank."""
    if not active():
        return flag
    x = torch.tensor([1.0 if flag else 0.0], device=device)
    td.all_reduce(x, op=td.ReduceOp.MAX)
    return bool(x.item())


def of_all_ranks(value: T) -> list[T]:
    """The plain values of all ranks, in rank order."""
    values: list[T] = [value]
    if active():
        values *= td.get_world_size()
        td.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if active():
        td.barrier(device_ids=[torch.cuda.current_device()] if td.get_backend() == "nccl" else None)


class _Gather(torch.autograd.Function):  # torch's own differentiable all_gather is deprecated, and warns at every call
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(td.get_world_size())]
        td.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        td.all_reduce(grad)  # every rank's loss saw these rows
        return grad.chunk(td.get_world_size())[td.get_rank()]


def gather_with_grad(x: Tensor) -> Tensor:
    """Rows of all ranks, concatenated in rank order [B, ...] -> [world * B, ...]; gradients flow to their owner."""
    if not active():
        return x
    return cast(Tensor, _Gather.apply(x.contiguous()))  # type: ignore[no-untyped-call]
