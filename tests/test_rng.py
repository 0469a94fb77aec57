"""The counter-based random numbers against their slow twin, and the properties that everything leans on."""

from __future__ import annotations

import pytest
import torch

from cass_scale import rng
from tests.reference import rng as slow

COUNTERS = [(0, 0, 0), (1, 2, 3), (2**40 + 7, 999, rng.PLAN), (2**63 + 5, 0, rng.NOISE), (-3, 1, rng.SPLIT)]
IDS = torch.tensor([0, 1, 2, 77, 10**6, 2**40, 2**62, -1])


@pytest.mark.parametrize(("seed", "epoch", "purpose"), COUNTERS)
def test_bits_equal_the_slow_twin(seed: int, epoch: int, purpose: int) -> None:
    got = rng.bits(seed, epoch, IDS, purpose, 5)
    want = [[slow.bits(seed, epoch, i, purpose, d) for d in range(5)] for i in IDS.tolist()]
    assert [[x % 2**64 for x in row] for row in got.tolist()] == want


def test_bits_are_pinned() -> None:
    # A change of these bits changes every run; it must be a decision.
    assert slow.finalise(slow.STEP) == 0xE220A8397B1DCDAF  # SplitMix64's published first output from state 0
    assert rng.bits(0, 0, torch.tensor([0]), 0)[0, 0].item() % 2**64 == 0x61326D18D96D5968


def test_uniform_and_normal_equal_the_slow_twin() -> None:
    ids = torch.arange(20)
    u, z = rng.uniform(5, 1, ids, 2, 3), rng.normal(5, 1, ids, 2, 3)
    want_u = torch.tensor([[slow.uniform(5, 1, i, 2, d) for d in range(3)] for i in range(20)])
    want_z = torch.tensor([[slow.normal(5, 1, i, 2, d, 3) for d in range(3)] for i in range(20)])
    assert torch.equal(u, want_u)
    torch.testing.assert_close(z, want_z, rtol=1e-5, atol=1e-5)


def test_permutation_equals_the_slow_twin() -> None:
    assert rng.permutation(3, 4, 101).tolist() == slow.permutation(3, 4, 101, rng.PLAN)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    ids = torch.arange(1000)
    whole = rng.normal(1, 2, ids, 0, 4)
    parts = torch.cat([rng.normal(1, 2, part, 0, 4) for part in ids.flip(0).split(37)])
    assert torch.equal(whole, parts.flip(0))


def test_draws_do_not_depend_on_how_many_are_drawn() -> None:
    ids = torch.arange(9)
    assert torch.equal(rng.uniform(1, 2, ids, 0, 7)[:, :3], rng.uniform(1, 2, ids, 0, 3))


@pytest.mark.parametrize("changed", [{"seed": 2}, {"epoch": 2}, {"purpose": 2}])
def test_each_coordinate_matters_and_none_correlates(changed: dict[str, int]) -> None:
    at = {"seed": 1, "epoch": 1, "purpose": 1}
    ids = torch.arange(20_000)
    one, two = (rng.uniform(ids=ids, **(at | c))[:, 0] for c in ({}, changed))
    assert torch.corrcoef(torch.stack([one, two]))[0, 1].abs() < 0.03  # 4 standard errors
    assert (one == two).float().mean() < 1e-3


def test_uniform_is_uniform_over_ids_and_over_draws() -> None:
    for u in (
        rng.uniform(0, 0, torch.arange(100_000), 0)[:, 0],
        rng.uniform(0, 0, torch.tensor([7]), 0, 100_000)[0],
    ):
        counts = torch.histc(u, bins=50, min=0, max=1)
        chi2 = ((counts - 2000) ** 2 / 2000).sum()
        assert chi2 < 94  # 49 degrees of freedom: one in 10,000
        assert u.min() >= 0 and u.max() < 1


def test_normal_has_the_moments_and_tails_of_a_normal() -> None:
    z = rng.normal(0, 0, torch.arange(50_000), 0, 4).flatten()
    assert z.isfinite().all()
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.01
    assert abs((z.abs() > 1.96).float().mean() - 0.05) < 0.002


def test_permutation_is_one_and_changes_with_the_epoch() -> None:
    one, two = rng.permutation(0, 0, 5000), rng.permutation(0, 1, 5000)
    assert torch.equal(one.sort().values, torch.arange(5000))
    assert (one == two).sum() < 20
