"""What an exchange costs: the alpha-beta model of all-reduces, of the step around them, and its fit to measurements.

benchmarks/README.md, "Scaling", has the formulas in one place. Ring: Patarasuk, Yuan 2009, doi
10.1016/j.jpdc.2008.09.002; the two levels and the choice between ring and tree as NCCL itself estimates them
(NVIDIA/nccl @ 01afd20, src/graph/tuning.cc).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

BACKWARD = 2 / 3  # of a step's computing: the backward pass has two matrix products for each one of the forward pass
FIRST_BUCKET = 2**20  # bytes; DDP's first bucket is small, so that the exchange begins early
DRAWS = 500
TINY = 1e-15  # s per byte: measurements that show no cost of size


@dataclass(frozen=True)
class Link:
    """Seconds that one message takes to begin, and bytes per second of each direction."""

    alpha: float
    beta: float


@dataclass(frozen=True)
class Cluster:
    """Nodes of `per_node` ranks. The beta of `between` is that of a whole node, all its adapters together."""

    per_node: int
    within: Link
    between: Link

    def all_reduce(self, ranks: int, size: float) -> float:
        """Seconds of an all-reduce of `size` bytes: by the ring, or between nodes by the tree where that is faster."""
        if ranks < 2 or not size:
            return 0.0
        nodes, local = math.ceil(ranks / self.per_node), min(ranks, self.per_node)
        slowest = self.within.beta if nodes == 1 else min(self.within.beta, self.between.beta)
        inside, outside = self.within.alpha, self.between.alpha
        ring = 2 * (ranks - nodes) * inside + 2 * (nodes - 1) * outside + 2 * (ranks - 1) / ranks * size / slowest
        tree = 2 * (local - 1) * inside + 2 * math.ceil(math.log2(nodes)) * outside + 2 * size / slowest
        return min(ring, tree) if nodes > 1 else ring


@dataclass(frozen=True)
class Work:
    """One rank's step: seconds of computing a micro-batch, and what is exchanged for it, in bytes."""

    compute: float
    gradients: float
    bucket: float
    overlap: float  # share of the exchange that hides behind the backward pass, at most all of the latter
    buffers: float = 0.0  # sent by the first rank before every forward pass
    gathers: int = 0  # by the objective, per micro-batch
    gathered: float = 0.0  # bytes of this rank in each
    accumulate: int = 1

    def buckets(self) -> list[float]:
        """Bytes of each all-reduce of gradients."""
        if self.gradients <= FIRST_BUCKET:
            return [self.gradients]
        whole, rest = divmod(self.gradients - FIRST_BUCKET, self.bucket)
        return [FIRST_BUCKET, *[self.bucket] * int(whole), *([rest] if rest else [])]


def exchange(work: Work, cluster: Cluster, ranks: int) -> float:
    """Seconds of all all-reduces of gradients of one step, one after the other."""
    return sum(cluster.all_reduce(ranks, size) for size in work.buckets())


def blocking(work: Work, cluster: Cluster, ranks: int) -> float:
    """Seconds of what nothing hides, per micro-batch: a broadcast of the buffers, which is half an all-reduce; for each
    gathering an all-gather, another half, and in the backward pass an all-reduce of as much."""
    return 0.5 * cluster.all_reduce(ranks, work.buffers) + work.gathers * 1.5 * cluster.all_reduce(
        ranks, ranks * work.gathered
    )


def unhidden(work: Work, cluster: Cluster, ranks: int) -> float:
    """Seconds of the exchange of gradients that a step waits for."""
    whole = exchange(work, cluster, ranks)
    return whole - work.overlap * min(whole, BACKWARD * work.compute)


def step(work: Work, cluster: Cluster, ranks: int) -> float:
    """Seconds of an optimizer step on `ranks` ranks."""
    before = work.accumulate * (work.compute + blocking(work, cluster, ranks))
    return before + unhidden(work, cluster, ranks)


def efficiency(work: Work, cluster: Cluster, ranks: int) -> float:
    """Images per second and rank, as a share of those of one rank alone."""
    return work.accumulate * work.compute / step(work, cluster, ranks)


def falls_under(share: float, work: Work, cluster: Cluster, sizes: Sequence[int]) -> int | None:
    """The first of `sizes` whose efficiency is below `share`."""
    return next((n for n in sizes if efficiency(work, cluster, n) < share), None)


def hidden_share(work: Work, cluster: Cluster, ranks: int, excess: float) -> float:
    """The overlap, 0 to 1, that explains by how much (s) a step is longer with the exchange of gradients."""
    whole = exchange(work, cluster, ranks)
    return max(0.0, min(1.0, (whole - excess) / min(whole, BACKWARD * work.compute)))


@dataclass(frozen=True)
class Fit:
    """A link with its 95 % intervals, and the largest error of the fitted curve at a measured size."""

    link: Link
    alpha: tuple[float, float]
    beta: tuple[float, float]
    worst: float


def fit(latencies: Mapping[int, Sequence[float]], ranks: int, seed: int = 0) -> Fit:
    """The link behind all-reduces of a ring within one node: bytes -> repeated seconds.

    Relative errors of the medians are least squares, so that small and large messages count alike. Intervals:
    percentile bootstrap over the repetitions of each size.
    """
    sizes, times = np.array(list(latencies), dtype=float), [np.asarray(some) for some in latencies.values()]
    medians = np.array([median(some) for some in latencies.values()])
    alpha, beta = _solve(sizes, medians, ranks)
    draw = np.random.default_rng(seed)
    drawn = np.array(
        [
            _solve(sizes, np.array([np.median(draw.choice(some, len(some))) for some in times]), ranks)
            for _ in range(DRAWS)
        ]
    )
    (low_a, high_a), (low_b, high_b) = np.quantile(drawn, (0.025, 0.975), axis=0).T
    model = 2 * (ranks - 1) * alpha + 2 * (ranks - 1) / ranks * sizes / beta
    worst = float(np.abs(model / medians - 1).max())
    return Fit(Link(alpha, beta), (float(low_a), float(high_a)), (float(low_b), float(high_b)), worst)


def _solve(sizes: NDArray[np.float64], times: NDArray[np.float64], ranks: int) -> tuple[float, float]:
    """Alpha and beta; a negative start-up time becomes none."""
    columns = np.stack([1 / times, sizes / times], axis=1)
    (start, per_byte), *_ = np.linalg.lstsq(columns, np.ones_like(times), rcond=None)
    if start < 0:
        start, per_byte = 0.0, float((columns[:, 1]).sum() / (columns[:, 1] ** 2).sum())
    return float(start) / (2 * (ranks - 1)), 2 * (ranks - 1) / ranks / max(float(per_byte), TINY)
