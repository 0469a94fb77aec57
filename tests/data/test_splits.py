"""Drawn splits: shares, strata, whole groups, and nothing but the seed."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from cass_scale.data.splits import assign
from cass_scale.errors import ConfigError

SHARES = (0.7, 0.1, 0.2)


def shares_of(splits: tuple[str, ...], where: list[bool]) -> tuple[float, ...]:
    counts = Counter(s for s, here in zip(splits, where, strict=True) if here)
    return tuple(counts[s] / sum(where) for s in ("train", "val", "test"))


def test_every_class_is_cut_exactly() -> None:
    labels = ["common"] * 900 + ["rare"] * 30
    splits = assign(labels, [""] * 930, SHARES, 0)
    for name in ("common", "rare"):
        assert shares_of(splits, [x == name for x in labels]) == pytest.approx(SHARES)


def test_labels_of_a_multi_label_set_are_cut_alike() -> None:
    labels = [["a", "b", "a|b", "c", "a|c", "b|c|d"][i % 6] for i in range(600)]
    splits = assign(labels, [""] * 600, SHARES, 0)
    for name in "abcd":
        assert shares_of(splits, [name in x.split("|") for x in labels]) == pytest.approx(SHARES, abs=0.03)


def test_a_group_is_never_split() -> None:
    groups = [f"p{i % 37 if i % 5 else i % 3}" for i in range(1000)]
    labels = ["xyz"[(int(g[1:]) + i) % 3] for i, g in enumerate(groups)]
    splits = assign(labels, groups, SHARES, 1)
    homes: dict[str, str] = {}
    for group, split in zip(groups, splits, strict=True):
        assert homes.setdefault(group, split) == split
    assert shares_of(splits, [True] * 1000) == pytest.approx(SHARES, abs=0.08)


@pytest.mark.parametrize("seed", range(8))
def test_seven_patients_fill_all_three(seed: int) -> None:
    splits = assign(["a|b", "b", "a"] * 66, [f"p{i * 7 // 198}" for i in range(198)], SHARES, seed)
    assert shares_of(splits, [True] * 198) == pytest.approx(SHARES, abs=0.08)


def test_the_seed_decides_and_nothing_else() -> None:
    labels, groups = ["a", "b"] * 100, [f"g{i // 3}" for i in range(200)]
    assert assign(labels, groups, SHARES, 0) == assign(labels, groups, SHARES, 0)
    assert assign(labels, groups, SHARES, 0) != assign(labels, groups, SHARES, 1)


def test_without_labels_all_is_for_training() -> None:
    assert assign([""] * 9, [""] * 9, SHARES, 0) == ("train",) * 9


def test_a_share_of_zero_stays_empty() -> None:
    assert Counter(assign(["a"] * 10, [""] * 10, (0.8, 0.0, 0.2), 0)) == {"train": 8, "test": 2}


def test_one_image_of_a_class_is_trained_on() -> None:
    assert assign(["a", *["b"] * 10], [""] * 11, SHARES, 0)[0] == "train"


def test_many_samples_take_seconds() -> None:
    begun = time.perf_counter()
    assign(["a", "b", "c|a", ""] * 5_000, [""] * 20_000, SHARES, 0)
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize("split", [(0.7, 0.2, 0.2), (0.5, 0.5), (1.2, -0.1, -0.1)])
def test_shares_that_make_no_whole_are_refused(split: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data.split=.*\[0.7,0.1,0.2\]"):
        assign(["a"], [""], split, 0)
