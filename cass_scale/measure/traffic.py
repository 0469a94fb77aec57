"""What a rank sends: every collective of a step with its bytes, and where among the step's operations it left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMES = {"allreduce_": "all_reduce", "broadcast_": "broadcast", "allgather_": "all_gather"}
Span = tuple[float, float]


class Sent(NamedTuple):
    """One collective, as this rank takes part in it."""

    what: str  # all_reduce, broadcast, all_gather; others by their name in c10d
    bytes: int  # that this rank brings
    dtype: str
    after: int  # operations of the step before it


class Traffic(TorchDispatchMode):
    """Counts the collectives that run inside of it, those of DDP's C++ reducer included.

    They pass torch's dispatcher like any operation, on gloo and NCCL alike.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent: list[Sent] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "c10d":
            self.operations += 1
        elif brought := _brought(func, args):
            name = func._schema.name.removeprefix("c10d::")
            dtype = str(brought[0].dtype).removeprefix("torch.")
            self.sent.append(Sent(NAMES.get(name, name), sum(x.nbytes for x in brought), dtype, self.operations))
        return func(*args, **(kwargs or {}))


def _brought(func: Any, args: Sequence[Any]) -> list[Tensor]:
    """The tensors that a rank brings, and not those that it gets; none for a barrier."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    own = next((value for name, value in named.items() if name.startswith("input")), named.get("tensors"))
    return [x for x in tree_leaves(own) if isinstance(x, Tensor)]


def total(sent: Iterable[Sent], what: str) -> int:
    """Bytes of one kind of collective."""
    return sum(one.bytes for one in sent if one.what == what)


def hidden(sending: Sequence[Span], computing: Sequence[Span]) -> float:
    """Share of the time of `sending` (begin, end) that lies within `computing`; 0 when nothing is sent."""
    busy = _merged(computing)
    covered = sum(max(0.0, min(b, d) - max(a, c)) for a, b in _merged(sending) for c, d in busy)
    whole = sum(b - a for a, b in _merged(sending))
    return covered / whole if whole else 0.0


def _merged(spans: Sequence[Span]) -> list[Span]:
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found
