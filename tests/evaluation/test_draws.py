"""Which images a training learns from: stratified, balanced, grouped, and refused where a class would be lost."""

from __future__ import annotations

import numpy as np
import pytest

from cass_scale.errors import DataError
from cass_scale.evaluation.draws import Pool, balanced, conditions, folds, fraction

NAMES = ["common", "some", "rare", "dust"]


def one_hot(y: np.ndarray, classes: int = 4) -> np.ndarray:
    return np.eye(classes)[y]


def pool(counts: tuple[int, ...] = (200, 100, 40, 5), val: int = 30, groups: np.ndarray | None = None) -> Pool:
    """Training images of four classes, shuffled, then validation images of the commonest."""
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(4), counts))
    y = np.concatenate([y, np.zeros(val, np.int64)])
    n = len(y)
    ids = np.arange(n)
    group = np.full(n, -1) if groups is None else groups
    return Pool(ids[: n - val], ids[n - val :], one_hot(y), group, NAMES)


def drawn(found: list, number: int = 0) -> list[list[int]]:
    return [draw.train.tolist() for draw in found[number].draws]


def of_class(source: Pool, ids: list[int]) -> list[int]:
    return source.wanted[ids].sum(axis=0).astype(int).tolist()


def test_a_fraction_takes_its_share_of_every_class_and_grows_by_itself() -> None:
    y = np.repeat(np.arange(3), (200, 100, 40))
    rows = {share: fraction(one_hot(y, 3), share, seed=1) for share in (0.1, 0.5, 1.0)}
    assert np.bincount(y[rows[0.1]]).tolist() == [20, 10, 4]
    assert set(rows[0.1]) < set(rows[0.5]) < set(rows[1.0])
    assert set(rows[0.1]) != set(fraction(one_hot(y, 3), 0.1, seed=2))


def test_a_fraction_of_several_labels_keeps_their_shares() -> None:
    rng = np.random.default_rng(0)
    wanted = (rng.random((2000, 4)) < [0.5, 0.3, 0.1, 0.05]).astype(float)
    share = wanted[fraction(wanted, 0.1, seed=0)].sum(axis=0) / wanted.sum(axis=0)
    assert np.abs(share - 0.1).max() < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_balanced_means_as_equal_as_there_are_images(seed: int) -> None:
    y = np.repeat(np.arange(3), (200, 100, 4))
    assert np.bincount(y[balanced(one_hot(y, 3), 12, seed)]).tolist() == [4, 4, 4]
    assert np.bincount(y[balanced(one_hot(y, 3), 24, seed)]).tolist() == [10, 10, 4]
    assert len(balanced(one_hot(y, 3), 999, seed)) == 304


def test_balanced_with_several_labels() -> None:
    rng = np.random.default_rng(0)
    wanted = (rng.random((1000, 3)) < [0.6, 0.2, 0.02]).astype(float)
    chosen = wanted[balanced(wanted, 60, seed=0)]
    assert chosen.sum(axis=0).min() >= 14 and (~chosen.any(axis=1)).sum() >= 14, "images without a finding too"
    assert chosen.sum(axis=0)[0] < 0.6 * 60 + 5


def test_folds_never_split_a_group_and_every_fold_sees_every_class() -> None:
    rng = np.random.default_rng(0)
    y = rng.choice(3, 400, p=[0.8, 0.15, 0.05])
    alone = folds(np.eye(3)[y], None, 5, 0)
    for c in range(3):
        counts = np.bincount(alone[y == c], minlength=5)
        assert counts.max() - counts.min() <= 1
    groups = np.concatenate([np.arange(80), rng.integers(-1, 80, 320)])
    fold = folds(np.eye(3)[y], groups, 5, 0)
    assert all(len(set(fold[groups == g])) == 1 for g in range(80))
    assert len(set(fold[groups == -1])) > 1  # rows without a group stand alone
    assert np.bincount(fold).max() < 1.5 * np.bincount(fold).min()


def ask(source: Pool, **options):
    keys = {"labels": [1.0], "subset": None, "folds": None, "seeds": [0], "random": True}
    return conditions(source, **(keys | options))


def test_fractions_and_seeds() -> None:
    source = pool()
    found = ask(source, labels=[0.1, 1.0], seeds=[3, 4])
    assert [one.name for one in found] == ["labels0.1", ""]
    assert found[0].about == {"labels": 0.1, "subset": None, "folds": None}
    assert [draw.seed for draw in found[0].draws] == [3, 4]
    assert of_class(source, drawn(found)[0]) == [20, 10, 4, 1] and drawn(found)[0] != drawn(found)[1]
    assert drawn(found, 1)[0] == drawn(found, 1)[1] == source.train.tolist()
    assert found[0].draws[0].val.tolist() == source.val.tolist(), "validation images stay whole"


def test_nothing_is_repeated_that_no_seed_decides() -> None:
    found = ask(pool(), labels=[0.1, 1.0], seeds=[0, 1, 2], random=False)
    assert [len(one.draws) for one in found] == [3, 1]


def test_subsets_and_folds() -> None:
    source = pool(val=55)
    found = ask(source, subset=["S", "M", "F", 8], folds=5)
    assert [one.name for one in found] == ["subsetS-folds5", "subsetM-folds5", "subsetF-folds5", "subset8-folds5"]
    small, medium, full, eight = ([len(ids) for ids in drawn(found, i)] for i in range(4))
    assert small == [4] * 5, "one of each class at least"
    assert medium == [32] * 5 and full == [320] * 5 and eight == [8] * 5
    assert max(of_class(source, drawn(found, 1)[0])) <= 10, "balanced, though a class has only 4 or 5"
    held = [draw.val.tolist() for draw in found[0].draws]
    assert sorted(i for ids in held for i in ids) == list(range(400)), "each image validates once"
    for draw in found[2].draws:
        assert not set(draw.train) & set(draw.val)


def test_folds_keep_patients_whole() -> None:
    groups = np.arange(375) // 5
    for draw in ask(pool(groups=groups), folds=3)[0].draws:
        assert not set(groups[draw.train]) & set(groups[draw.val])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [0.01]}, r"labels=0.01 leaves no image of rare \(40 training images\), dust \(5 training"),
        ({"labels": [0.09]}, r"leaves no image of dust \(5 training images\): labels=0.1 or more keeps one"),
        ({"subset": [3]}, r"subset=3 leaves no image of .*: subset=4 or more keeps one of every class"),
        ({"folds": 500}, "folds=500: there are fewer patients, groups or single images than folds"),
    ],
)
def test_a_class_that_would_be_lost_is_refused(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ask(pool(), **options)


def test_a_class_with_one_sample_or_one_patient_cannot_be_folded() -> None:
    with pytest.raises(DataError, match="folds=5: all images of dust fall into one fold"):
        ask(pool((200, 100, 40, 1)), folds=5)
    source = pool()
    groups = np.where(source.wanted[:, 3] > 0, 0, np.arange(375) + 1)
    with pytest.raises(DataError, match=r"dust fall into one fold.*images of two patients"):
        ask(pool(groups=groups), folds=5)
    assert ask(pool((200, 100, 40, 1)))[0].draws, "without folds it may be learnt from"
