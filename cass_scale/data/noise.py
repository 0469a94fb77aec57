"""The noise control: every image replaced by Gaussian noise of the same statistics, nothing else changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cass_scale import rng
from cass_scale.dist import all_reduce_mean
from cass_scale.types import Batch, Stream


class NoiseStream:
    """`stream` with a fixed noise image per sample id: what a method learns from it is not in the images.

    Per-channel `mean` and `std` in the images' 0..255 or 0..65535; when not given they are taken from the
    first batch of epoch 0 of all ranks, whatever epoch is asked for, so that a resumed run sees the same
    images. Ids, groups, labels stay.
    """

    def __init__(
        self,
        stream: Stream,
        seed: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if (mean is None) != (std is None):
            raise ValueError("give mean and std together, or neither")
        self.stream, self.seed = stream, seed
        self.provides, self.batch_size = stream.provides, stream.batch_size
        self.steps_per_epoch = stream.steps_per_epoch
        given = mean is not None and std is not None
        self._statistics = torch.tensor([list(mean or ()), list(std or ())]) if given else None  # [2, 3]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The wrapped stream's batches with other images of the same dtype."""
        if self._statistics is None:
            self._statistics = _estimate(next(iter(self.stream.epoch(0))).images)
        for batch in self.stream.epoch(epoch, start):
            mean, std = self._statistics.to(batch.images.device)
            yield batch._replace(images=self._noise(batch, mean, std))

    def close(self) -> None:
        """Close the wrapped stream, if it can be."""
        getattr(self.stream, "close", lambda: None)()

    def _noise(self, batch: Batch, mean: Tensor, std: Tensor) -> Tensor:
        out = torch.empty_like(batch.images)
        shape, top = batch.images.shape[1:], torch.iinfo(out.dtype).max
        for i in range(len(out)):  # one by one: 64-bit counters for a whole batch would take 100 x its memory
            z = rng.normal(self.seed, 0, batch.index[i : i + 1], rng.NOISE, shape.numel()).view(shape)
            out[i] = (z * std[:, None, None] + mean[:, None, None]).round().clamp(0, top).to(out.dtype)
        return out


def _estimate(images: Tensor) -> Tensor:
    """[2, 3]: mean and standard deviation per channel, over all ranks."""
    x = images.float()
    first, second = all_reduce_mean(torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))]))
    return torch.stack([first, (second - first.square()).clamp_min(0).sqrt()])
