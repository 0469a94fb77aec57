"""Ranks and collectives, usable with and without a process group."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar, cast
from uuid import uuid4

import torch
from torch import Tensor
from torch import distributed as td
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

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


def store() -> Any:
    """A corner of the process group's store, and a connection of its own, for a thread; None for one rank.

    All ranks must ask: a launcher's store may outlive a process group, and the corner is that of this one.
    """
    if not active():
        return None
    whole: Any = td.distributed_c10d._get_default_store()  # torch has no public way
    return td.distributed_c10d.PrefixStore(of_all_ranks(uuid4().hex)[0], whole.clone())


def init_method() -> str | None:
    """How ranks that torchrun has restarted find each other; None: as ever.

    Its agents keep one store over all attempts (torch 2.13), and in it the addresses of ranks that are dead.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0":
        return None

    def meet(_: str, **keys: Any) -> Iterator[tuple[Any, int, int]]:
        for store, rank, world in rendezvous("env://", **keys):
            yield td.distributed_c10d.PrefixStore(f"attempt_{attempt}", store), rank, world

    with suppress(RuntimeError):  # it is known already: a second run in this process
        register_rendezvous_handler("attempt", meet)
    return "attempt://"


def holds_store() -> bool:
    """Whether the store ends with this process. Under torchrun its agent holds it."""
    return active() and td.get_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def highest_later(group: td.ProcessGroup | None, value: int) -> Callable[[], int]:
    """Start to agree on the largest of all ranks' values; what is returned gives it, and waits for what is missing.

    group: `host_group()`, so that neither the device nor its collectives wait for it. None: this rank's own value.
    """
    if group is None:
        return lambda: value
    x = torch.tensor(value)
    work = td.all_reduce(x, op=td.ReduceOp.MAX, group=group, async_op=True)

    def answer() -> int:
        work.wait()
        return int(x)

    return answer


def host_group() -> td.ProcessGroup | None:
    """All ranks again, for small things between hosts beside what devices say to each other; None for one rank."""
    return td.new_group(backend="gloo") if active() else None


def of_all_ranks(value: T) -> list[T]:
    """The plain values of all ranks, in rank order."""
    values: list[T] = [value]
    if active():
        values *= td.get_world_size()
        td.all_gather_object(values, value)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank."""
    if not active():
        return flag
    x = torch.tensor([1.0 if flag else 0.0], device=device)
    td.all_reduce(x, op=td.ReduceOp.MAX)
    return bool(x.item())


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
