"""The global plan: what every backend, rank and resume leans on."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
import torch

from cass_scale.data.plan import Plan, Tail
from cass_scale.errors import ConfigError, DataError

IDS = torch.arange(1000, 1103)  # not 0..N-1: ids are not positions


def all_ranks(world: int, accumulate: int = 1, epoch: int = 0, **options: object) -> list[list[torch.Tensor]]:
    """[rank][micro-batch] ids."""
    plans = [
        Plan(IDS, 48, seed=3, rank=r, world=world, accumulate=accumulate, **options)  # type: ignore[arg-type]
        for r in range(world)
    ]
    assert {p.steps_per_epoch for p in plans} == {plans[0].steps_per_epoch}
    return [list(p.batches(epoch)) for p in plans]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_global_batches_do_not_depend_on_world_or_accumulation(world: int, accumulate: int) -> None:
    alone = all_ranks(1)[0]
    ranks = all_ranks(world, accumulate)
    assert {len(batches) for batches in ranks} == {2 * accumulate}
    for step, want in enumerate(alone):
        micros = [ranks[r][step * accumulate + a] for a in range(accumulate) for r in range(world)]
        assert {len(m) for m in micros} == {48 // world // accumulate}
        assert torch.equal(torch.cat(micros), want)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_an_id_occurs_at_most_once_and_only_the_tail_is_left_out(world: int) -> None:
    seen = torch.cat([m for rank in all_ranks(world) for m in rank])
    assert len(seen.unique()) == len(seen) == 96
    assert set(seen.tolist()) <= set(IDS.tolist())


def test_epochs_differ_and_leave_out_different_ids() -> None:
    left_out = [set(IDS.tolist()) - set(torch.cat(all_ranks(1, epoch=e)[0]).tolist()) for e in range(20)]
    assert len(set.union(*left_out)) > 60
    plan = Plan(IDS, 48, seed=3)
    assert not torch.equal(plan.order(0), plan.order(1))
    assert torch.equal(plan.order(0), Plan(IDS, 8, seed=3, rank=1, world=4).order(0))
    assert not torch.equal(plan.order(0), Plan(IDS, 48, seed=4).order(0))


@pytest.mark.parametrize("case", range(30))
def test_what_one_epoch_leaves_out_the_next_one_takes(case: int) -> None:
    """Any number of images, batch and ranks; over epochs all are left out equally often."""
    dice = random.Random(case)
    world, accumulate = dice.choice([1, 2, 3, 8]), dice.choice([1, 2])
    batch = world * accumulate * dice.randint(1, 9)
    number = dice.choice([batch, batch + 1, 2 * batch - 1, dice.randint(batch, 12 * batch)])
    ids, seed = torch.randperm(5000, generator=torch.Generator().manual_seed(case))[:number], dice.randint(0, 99)
    options = {"seed": seed, "tail": "carry", "shuffle": case % 5 != 0, "accumulate": accumulate}
    plans = [Plan(ids, batch, rank=rank, world=world, **options) for rank in range(world)]  # type: ignore[arg-type]
    misses: Counter[int] = Counter()
    before: set[int] = set()
    for epoch in range(25):
        ranks = [list(plan.batches(epoch)) for plan in plans]
        assert {len(batches) for batches in ranks} == {plans[0].steps_per_epoch * accumulate}
        seen = torch.cat([micro for batches in ranks for micro in batches]).tolist()
        left_out = set(ids.tolist()) - set(seen)
        assert len(set(seen)) == len(seen) and len(left_out) == number % batch
        assert not left_out & before, "left out twice running"
        before = left_out
        misses.update(left_out)
        assert max(misses[i] for i in ids.tolist()) - min(misses[i] for i in ids.tolist()) <= 1


def test_a_carried_order_depends_on_seed_epoch_and_batch_only() -> None:
    def carried(seed: int = 3, **options: int) -> Plan:
        return Plan(IDS, 48, seed=seed, tail="carry", **options)  # type: ignore[arg-type]

    for epoch in (0, 1, 10**6):
        plain = Plan(IDS, 48, seed=3).order(epoch)
        order = carried().order(epoch)
        assert torch.equal(order, carried(rank=2, world=3, accumulate=2).order(epoch)), "not the ranks"
        assert torch.equal(order.sort().values, IDS) and not torch.equal(order, plain)
        kept = set(order[:96].tolist())
        assert [i for i in plain.tolist() if i in kept] == order[:96].tolist(), (
            "the epoch's own permutation of the rest"
        )
        assert set(order[96:].tolist()) != set(carried(4).order(epoch)[96:].tolist()), "the window is the seed's"
    assert torch.equal(Plan(IDS[:96], 48, seed=3, tail="carry").order(2), Plan(IDS[:96], 48, seed=3).order(2))


@pytest.mark.parametrize("start", [0, 1, 7, 12, 99])
@pytest.mark.parametrize("tail", ["drop", "carry"])
def test_starting_late_equals_skipping(start: int, tail: Tail) -> None:
    plan = Plan(IDS, 8, seed=0, rank=1, world=2, accumulate=2, tail=tail)
    whole, late = list(plan.batches(5)), list(plan.batches(5, start))
    assert len(late) == max(0, 12 - start) * 2
    assert all(torch.equal(a, b) for a, b in zip(whole[2 * start :], late, strict=True))


@pytest.mark.parametrize("tail", ["drop", "carry"])
def test_a_million_ids_are_planned_in_a_second_and_entered_at_once(tail: Tail) -> None:
    plan = Plan(torch.arange(1_000_001), 2, seed=0, tail=tail)
    took = []
    for epoch in range(3):
        begun = time.perf_counter()
        plan.order(epoch)
        took.append(time.perf_counter() - begun)
    assert min(took) < 1.0
    begun = time.perf_counter()
    last = list(plan.batches(2, 499_999))
    assert time.perf_counter() - begun < 0.1  # stepping through would take seconds
    assert len(last) == 1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_reads_everything_once_in_order(world: int) -> None:
    ranks = all_ranks(world, shuffle=False, tail="keep")
    steps = [torch.cat([ranks[r][s] for r in range(world) if s < len(ranks[r])]) for s in range(3)]
    assert torch.equal(torch.cat(steps), IDS)


def test_a_batch_that_cannot_be_shared_is_refused_with_one_that_can() -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size=50 .* 8 ranks x 3 .* 48 can"):
        Plan(IDS, 50, seed=0, world=8, accumulate=3)


def test_an_impossible_plan_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank=2"):
        Plan(IDS, 8, seed=0, rank=2, world=2)


def test_fewer_images_than_a_batch_say_what_would_work() -> None:
    with pytest.raises(DataError, match=r"103 images are fewer than one batch of 128; .* at most 103"):
        Plan(IDS, 128, seed=0)
    with pytest.raises(DataError, match=r"103 images are fewer than one batch of 128; .* at most 96 or give more"):
        Plan(IDS, 128, seed=0, world=8, accumulate=4, tail="carry")
    with pytest.raises(
        DataError, match=r"of 128; 64 ranks x 2 accumulated micro-batches cannot share them: start fewer,"
    ):
        Plan(IDS, 128, seed=0, world=64, accumulate=2)
    assert Plan(IDS, 128, seed=0, tail="keep").steps_per_epoch == 1


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="no images to read"):
        Plan(IDS[:0], 8, seed=0, tail="keep")
