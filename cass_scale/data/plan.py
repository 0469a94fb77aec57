"""The plan: (seed, epoch) -> one global order of sample ids, of which every rank takes its slice.

The order does not depend on world size, accumulation, workers or backend; an id occurs at most once per
epoch; every rank has equally many steps; and starting at step k costs nothing more than starting at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from cass_scale import rng
from cass_scale.errors import ConfigError, DataError

Tail = Literal["drop", "carry", "keep"]


class Plan:
    """Micro-batches of sample ids for one rank.

    Global batch g is `order(epoch)[g*B:(g+1)*B]` with B = `batch_size`; micro-batch a of rank r is its rows
    `[(a*world + r)*m : +m]` with m = B / (world * accumulate). `tail="drop"` leaves out the last incomplete
    batch (other ids each epoch); `"carry"` too, but what one epoch leaves out the next one takes, and none is left
    out more often than another; `"keep"`, for evaluation, yields it short, on late ranks perhaps not at all.
    Raises ConfigError when B cannot be divided so, DataError when there are too few ids.
    """

    def __init__(
        self,
        ids: Tensor,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        shuffle: bool = True,
        tail: Tail = "drop",
    ) -> None:
        _check(ids, batch_size, rank, world, accumulate, tail)
        self.ids = ids.to("cpu", torch.int64)
        self.global_batch_size = batch_size
        self.batch_size = batch_size // (world * accumulate)  # micro-batch of this rank
        self.seed, self.rank, self.world, self.accumulate = seed, rank, world, accumulate
        self.shuffle, self.tail = shuffle, tail
        whole, rest = divmod(len(ids), batch_size)
        self.steps_per_epoch = whole + (1 if tail == "keep" and rest else 0)
        self._known: tuple[int, Tensor] | None = None

    def order(self, epoch: int) -> Tensor:
        """All ids in the order of this epoch: int64 [N]; the same for every rank. Do not write into it."""
        if self._known is None or self._known[0] != epoch:
            self._known = epoch, self.ids[self._places(epoch)]
        return self._known[1]

    def _places(self, epoch: int) -> Tensor:
        n = len(self.ids)
        places = rng.permutation(self.seed, epoch, n, rng.PLAN) if self.shuffle else torch.arange(n)
        left = n % self.global_batch_size
        if self.tail != "carry" or not left:
            return places
        # A window that moves on by its own length over one fixed permutation, round and round: two in a row cannot
        # touch, since left < n / 2, and at any time no id was left out more than once more than another.
        ring = rng.permutation(self.seed, 0, n, rng.TAIL)
        out = torch.zeros(n, dtype=torch.bool)
        out[ring[(epoch * left + torch.arange(left)) % n]] = True
        late = out[places]
        return torch.cat([places[~late], places[late]])

    def batches(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """This rank's micro-batches, int64 [m], from optimizer step `start` on, `accumulate` per step."""
        if start < 0:
            raise ValueError(f"start must not be negative, got {start}")
        order, m = self.order(epoch), self.batch_size
        for step in range(start, self.steps_per_epoch):
            batch = order[step * self.global_batch_size : (step + 1) * self.global_batch_size]
            for a in range(self.accumulate):
                micro = batch[(a * self.world + self.rank) * m :][:m]
                if len(micro):
                    yield micro


def _check(ids: Tensor, batch_size: int, rank: int, world: int, accumulate: int, tail: str) -> None:
    if min(batch_size, world, accumulate) < 1 or not 0 <= rank < world or tail not in get_args(Tail):
        raise ConfigError(f"impossible plan: {batch_size=}, {world=}, {rank=}, {accumulate=}, {tail=}")
    if batch_size % (world * accumulate):
        near = max(1, round(batch_size / (world * accumulate))) * world * accumulate
        raise ConfigError(
            f"train.batch_size={batch_size} is the global batch and cannot be shared by {world} ranks x "
            f"{accumulate} accumulated micro-batches; {near} can"
        )
    if len(ids) == 0:
        raise DataError("there are no images to read: the split is empty")
    if tail != "keep" and len(ids) < batch_size:
        share = world * accumulate
        fits = len(ids) // share * share
        smaller = f"set train.batch_size to at most {fits}"
        fewer = f"{world} ranks x {accumulate} accumulated micro-batches cannot share them: start fewer,"
        raise DataError(
            f"{len(ids)} images are fewer than one batch of {batch_size}; "
            f"{smaller if fits else fewer} or give more images (data.path)"
        )
    assert len(torch.unique(ids)) == len(ids), "an id must occur at most once"
