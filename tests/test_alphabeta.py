"""The alpha-beta model: equal to counts by hand, and found again in times that were made with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cass_scale.measure.alphabeta import (
    BACKWARD,
    FIRST_BUCKET,
    Cluster,
    Link,
    Work,
    blocking,
    efficiency,
    exchange,
    falls_under,
    fit,
    hidden_share,
    step,
)

NODES = Cluster(per_node=4, within=Link(1e-6, 100e9), between=Link(10e-6, 10e9))
WORK = Work(compute=0.3, gradients=FIRST_BUCKET, bucket=25 * 2**20, overlap=0.0)


def test_a_ring_within_a_node() -> None:
    # 2 (4 - 1) messages begin; each rank sends 2 (4 - 1) / 4 of 8 MB over 100 GB/s.
    assert NODES.all_reduce(4, 8e6) == pytest.approx(6e-6 + 1.5 * 8e6 / 100e9)
    assert NODES.all_reduce(1, 8e6) == 0.0


def test_between_nodes_the_faster_of_ring_and_tree() -> None:
    # 8 nodes of 4. Ring: 2 (32 - 8) messages within, 2 (8 - 1) between. Tree: 2 (4 - 1) within, 2 log2(8) between.
    small, large = 1e3, 1e9
    assert NODES.all_reduce(32, small) == pytest.approx(6e-6 + 60e-6 + 2 * small / 10e9)
    assert NODES.all_reduce(32, large) == pytest.approx(48e-6 + 140e-6 + 2 * 31 / 32 * large / 10e9)
    assert NODES.all_reduce(5, large) == pytest.approx(6e-6 + 20e-6 + 2 * 4 / 5 * large / 10e9), "one node is not full"


def test_buckets_hold_every_byte_and_the_first_is_small() -> None:
    work = replace(WORK, gradients=100e6)
    sizes = work.buckets()
    assert sum(sizes) == 100e6 and sizes[0] == FIRST_BUCKET and sizes[1:-1] == [work.bucket] * 3
    assert replace(WORK, gradients=5.0).buckets() == [5.0]


def test_a_step_is_computing_and_what_is_not_hidden() -> None:
    whole = exchange(WORK, NODES, 8)
    assert step(WORK, NODES, 8) == pytest.approx(0.3 + whole)
    assert step(replace(WORK, overlap=1.0), NODES, 8) == pytest.approx(0.3)
    assert efficiency(replace(WORK, overlap=0.5), NODES, 8) == pytest.approx(0.3 / (0.3 + whole / 2))
    long = replace(WORK, gradients=100e9, overlap=1.0)
    left = exchange(long, NODES, 8) - BACKWARD * 0.3
    assert step(long, NODES, 8) == pytest.approx(0.3 + left), "no more hides than the backward pass is long"


def test_accumulation_exchanges_once_for_all_micro_batches() -> None:
    whole = exchange(WORK, NODES, 8)
    assert step(replace(WORK, accumulate=4), NODES, 8) == pytest.approx(1.2 + whole)


def test_what_the_objective_gathers_grows_with_the_ranks() -> None:
    work = replace(WORK, buffers=2e6, gathers=2, gathered=1e6)
    by_hand = 0.5 * NODES.all_reduce(8, 2e6) + 2 * 1.5 * NODES.all_reduce(8, 8e6)
    assert blocking(work, NODES, 8) == pytest.approx(by_hand)
    assert step(replace(work, accumulate=3), NODES, 8) == pytest.approx(3 * (0.3 + by_hand) + exchange(work, NODES, 8))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_overlap_is_found_again_in_a_step(share: float) -> None:
    work = replace(WORK, gradients=4e9, overlap=share)
    assert hidden_share(work, NODES, 8, step(work, NODES, 8) - work.compute) == pytest.approx(share)
    assert hidden_share(work, NODES, 8, 100.0) == 0.0 and hidden_share(work, NODES, 8, -1.0) == 1.0


def test_where_efficiency_falls() -> None:
    work = replace(WORK, gradients=500e6)
    assert falls_under(0.9, work, NODES, (2, 4, 8, 16)) == 8, "the first beyond one node"
    assert falls_under(0.01, work, NODES, (2, 4, 8)) is None


SIZES = [2**10, 2**14, 2**18, 2**22, 2**25]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("link", [Link(3.4e-6, 235e9), Link(200e-6, 1.5e9)])
def test_a_link_is_found_again(ranks: int, link: Link) -> None:
    nodes, draw = Cluster(ranks, link, link), np.random.default_rng(3)
    exact = {size: [nodes.all_reduce(ranks, size)] * 3 for size in SIZES}
    found = fit(exact, ranks)
    assert found.link.alpha == pytest.approx(link.alpha) and found.link.beta == pytest.approx(link.beta)
    assert found.worst < 1e-9
    noisy = {size: [one * draw.lognormal(0, 0.05) for one in times * 10] for size, times in exact.items()}
    found = fit(noisy, ranks)
    assert found.link.alpha == pytest.approx(link.alpha, rel=0.1)
    assert found.alpha[0] < found.link.alpha < found.alpha[1] < 1.3 * link.alpha
    assert found.beta[0] < found.link.beta < found.beta[1] and found.link.beta == pytest.approx(link.beta, rel=0.1)
    assert 0 < found.worst < 0.1


def test_a_start_that_cannot_be_seen_is_none() -> None:
    found = fit({1000: [0.9e-6], 10_000: [10e-6], 100_000: [110e-6]}, 2)
    assert found.link.alpha == 0.0 and found.link.beta == pytest.approx(1e9, rel=0.05)
