"""A share of the labels: stratified, whole groups, refused where a class would be empty; and a record's name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from cass_scale import evaluate
from cass_scale.data.manifest import Manifest
from cass_scale.data.splits import some_labels
from cass_scale.errors import ConfigError, DataError
from tests.short_runs import short


def manifest(labels: list[str], groups: list[str] | None = None) -> Manifest:
    number = len(labels)
    same = ("",) * number
    keys, classes = (
        tuple(f"{i}.png" for i in range(number)),
        tuple(sorted({c for one in labels for c in one.split("|")})),
    )
    return Manifest(
        "set", Path(), keys, tuple(labels), tuple(groups or same), ("train",) * number, same, (1,) * number, classes,
        multilabel=False,
    )  # fmt: skip


def test_a_share_keeps_the_classes_proportions_and_depends_on_the_seed_only() -> None:
    made = manifest(["a"] * 300 + ["b"] * 100)
    ids = torch.arange(0, 400)
    few = some_labels(made, ids, 0.1, seed=3)
    assert Counter(made.labels[i] for i in few.tolist()) == {"a": 30, "b": 10}
    assert some_labels(made, ids, 0.1, seed=3).tolist() == few.tolist() != some_labels(made, ids, 0.1, seed=4).tolist()
    assert some_labels(made, ids, 1, seed=3) is ids
    assert set(some_labels(made, ids[::2], 0.5, seed=0).tolist()) <= set(ids[::2].tolist())


def test_a_patient_is_taken_whole() -> None:
    made = manifest(["a", "b"] * 100, [f"p{i // 4}" for i in range(200)])
    taken = set(some_labels(made, torch.arange(200), 0.25, seed=0).tolist())
    assert all(len({i in taken for i in range(start, start + 4)}) == 1 for start in range(0, 200, 4))


def test_a_class_that_would_be_empty_is_named() -> None:
    made = manifest(["common"] * 300 + ["rare"] * 2)
    with pytest.raises(
        DataError, match=r"labels=0.01 leaves no image of rare \(2 training images\); give a larger share"
    ):
        some_labels(made, torch.arange(302), 0.01, seed=0)


def test_scores_of_a_share_have_a_record_of_their_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    short(run, "train.max_steps=1", "data.images=84", "data.scale=0.1")
    words = (f"run.dir={run}", "device=cpu", "protocol.k=3")
    whole, half = evaluate(*words, quiet=True), evaluate(*words, "labels=0.5", quiet=True)
    assert half["n_train"] < whole["n_train"] and half["n_test"] == whole["n_test"] and half["labels"] == 0.5
    evaluate(*words, "labels=0.5", "name=mine", quiet=True)
    assert {path.name for path in (run / "evaluate").iterdir()} == {
        "knn-run.json",
        "knn-run-labels0.5.json",
        "mine.json",
    }
    with pytest.raises(ConfigError) as found:
        evaluate(*words, "labels=0", "name=a/b", quiet=True)
    assert "labels=0: a share above 0" in str(found.value) and "name=a/b: a file's name" in str(found.value)
