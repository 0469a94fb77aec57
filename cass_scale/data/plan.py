"""The plan: (seed, epoch) -> one global order of sample ids, of which every rank takes its slice.

The order does not depend on world size, accumulation, workers or backend; an id occurs at most once per
epoch; every rank has equally many steps; and starting at step k costs nothing more than starting at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from cass_scale import rng
from cass_scale.errors import ConfigError, DataError


class Plan:
    """Micro-batches of sample ids for one rank.

    Global batch g is `order(epoch)[g*B:(g+1)*B]` with B = `batch_size`; micro-batch a of rank r is its rows
    `[(a*world + r)*m : +m]` with m = B / (world * accumulate). `tail="drop"` leaves out the last incomplete
    batch (other ids each epoch); `"keep"`, for evaluation, yields it short, on late ranks perhaps not at all.
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
        tail: Literal["drop", "keep"] = "drop",
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
        if not self.shuffle:
            return self.ids
        if self._known is None or self._known[0] != epoch:
            self._known = epoch, self.ids[rng.permutation(self.seed, epoch, len(self.ids), rng.PLAN)]
        return self._known[1]

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
    if min(batch_size, world, accumulate) < 1 or not 0 <= rank < world or tail not in ("drop", "keep"):
        raise ConfigError(f"impossible plan: {batch_size=}, {world=}, {rank=}, {accumulate=}, {tail=}")
    if batch_size % (world * accumulate):
        near = max(1, round(batch_size / (world * accumulate))) * world * accumulate
        raise ConfigError(
            f"train.batch_size={batch_size} is the global batch and cannot be shared by {world} ranks x "
            f"{accumulate} accumulated micro-batches; {near} can"
        )
    if len(ids) == 0:
        raise DataError("there are no images to read: the split is empty")
    if tail == "drop" and len(ids) < batch_size:
        raise DataError(
            f"{len(ids)} images are fewer than one batch of {batch_size}; "
            f"set train.batch_size to at most {len(ids)} or give more images (data.path)"
        )
    assert len(torch.unique(ids)) == len(ids), "an id must occur at most once"
