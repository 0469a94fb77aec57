"""What an evaluation learns from and scores: shifts to other sets, leaks, unseen classes, validation, columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cass_scale.data.manifest import Manifest, find_classes
from cass_scale.errors import ConfigError, DataError
from cass_scale.types import JSON
from cass_scale.verbs.folder import MANIFEST
from cass_scale.verbs.task import Task, column, find_task, held_back, is_shift, positive_class, with_validation
from tests.data.images import fill, labels_csv


def manifest(
    name: str, labels: Sequence[str], splits: Sequence[str], *, groups: Sequence[str] = (), sha: str = ""
) -> Manifest:
    """A set without images; equal `sha` means equal bytes."""
    n, (classes, many) = len(labels), find_classes(labels)
    return Manifest(
        name=name, root=Path("nowhere"), keys=tuple(f"{i}.png" for i in range(n)), labels=tuple(labels),
        groups=tuple(groups) or ("",) * n, splits=tuple(splits), sha256=tuple(f"{sha or name}{i}" for i in range(n)),
        sizes=(1,) * n, classes=classes, multilabel=many,
    )  # fmt: skip


OWN = manifest("own", list("abcabcabc"), ["train"] * 5 + ["val"] + ["test"] * 3)
OTHER = manifest("other", list("abab"), ["train"] * 3 + ["test"])


def find(
    tmp_path: Path, own: Manifest = OWN, other: Manifest | None = None, *, learn: str = "auto", leaks: str = "refuse",
    pretrained: Manifest | None = None, noise: bool = False,
) -> Task:  # fmt: skip
    (pretrained or own).write(tmp_path / MANIFEST)
    path = None if other is None else "elsewhere"
    config: JSON = {"data": {"path": path, "learn": learn}, "leaks": leaks}
    trained: JSON = {"data": {"_target_": "own", "noise": noise}}
    return find_task(config, trained, lambda node: own if node["_target_"] == "own" else other, tmp_path)


def ids(task: Task) -> list[list[int]]:
    return [task.rows[part].tolist() for part in ("train", "val", "test")]


def test_the_runs_own_set(tmp_path: Path) -> None:
    task = find(tmp_path)
    assert ids(task) == [[0, 1, 2, 3, 4], [5], [6, 7, 8]] and task.split == "test" and not task.shift
    assert task.pool().wanted.sum(axis=0).tolist() == [3, 3, 3] and task.remarks == ()


def test_another_set_with_the_same_classes_is_a_shift(tmp_path: Path) -> None:
    """Learnt from the run's own images, scored on all of the other's, whose labels are numbered alike."""
    task = find(tmp_path, other=replace(OTHER, labels=tuple("cbcb"), classes=("b", "c")))
    assert task.shift and task.split == "all" and ids(task) == [[0, 1, 2, 3, 4], [5], [0, 1, 2, 3]]
    assert task.test.label_tensor().tolist() == [2, 1, 2, 1]
    assert task.path_of(task.learn) is None and task.path_of(task.test) == "elsewhere"


def test_another_set_with_other_classes_learns_from_itself(tmp_path: Path) -> None:
    task = find(tmp_path, other=manifest("other", list("xyxy"), ["train"] * 3 + ["test"]))
    assert not task.shift and ids(task) == [[0, 1, 2], [], [3]]
    assert task.remarks == ("other has x, y, which own has not: learnt from itself, no shift",)
    one = find(tmp_path, other=manifest("other", list("abax"), ["train"] * 3 + ["test"])).remarks
    assert one[-1] == "other has x, which own has not: learnt from itself, no shift"
    assert not find(tmp_path, other=OTHER, learn="path").shift
    with pytest.raises(DataError, match=r"data\.learn=run: other has x, y, which own has not; data\.learn=path"):
        find(tmp_path, other=manifest("other", list("xyxy"), ["train"] * 3 + ["test"]), learn="run")


def test_the_same_images_elsewhere_are_the_runs_own_set(tmp_path: Path) -> None:
    moved = replace(OWN, root=Path("shards"))
    assert not is_shift("auto", OWN, moved)
    assert find(tmp_path, other=moved).path_of(moved) == "elsewhere"


def test_a_run_without_labels_is_scored_by_the_other_set(tmp_path: Path) -> None:
    bare = manifest("bare", [""] * 4, ["train"] * 4)
    assert not find(tmp_path, own=bare, other=OTHER).shift
    with pytest.raises(DataError, match="bare has no labels to score with"):
        find(tmp_path, own=bare)
    with pytest.raises(DataError, match="other has no labels, which own has not"):
        find(tmp_path, other=manifest("other", [""] * 4, ["train"] * 4), learn="run")
    assert find(tmp_path, other=replace(OTHER, splits=("test",) * 4)).shift, "it need not have training images"


def test_several_labels_and_one_label_do_not_mix(tmp_path: Path) -> None:
    many = manifest("many", ["a|b", "c", "a", "b|c"], ["train", "train", "train", "test"])
    with pytest.raises(DataError, match=r"many gives an image several labels, other one label.*data.learn=path"):
        find(tmp_path, own=many, other=OTHER)
    assert not find(tmp_path, own=many, other=OTHER, learn="path").shift


def test_images_that_were_trained_on_are_not_scored(tmp_path: Path) -> None:
    leaking = replace(OWN, sha256=(*OWN.sha256[:7], "own0", OWN.sha256[8]))
    with pytest.raises(
        DataError, match=r"own: 1 of 3 test images have the bytes of training .*the first is 7\.png.*leaks=warn"
    ):
        find(tmp_path, own=leaking)
    (remark,) = find(tmp_path, own=leaking, leaks="warn").remarks
    assert remark.startswith("LEAK: 1 of 3") and "(1 of the pretraining's)" in remark


def test_pretraining_rows_count_also_where_the_labels_are_from_elsewhere(tmp_path: Path) -> None:
    """The encoder has seen what is test here: pretraining took another split, or another folder of the same images."""
    with pytest.raises(DataError, match=r"4 of 4 test images .*\(3 of the pretraining's\)"):
        find(tmp_path, other=replace(OTHER, sha256=("own0", "own1", "own2", "own5")))
    resplit = replace(OWN, splits=("test",) * 3 + ("train",) * 6)
    with pytest.raises(DataError, match="3 of 3 test images have the bytes"):
        find(tmp_path, own=resplit, pretrained=OWN)
    assert find(tmp_path, own=resplit, pretrained=OWN, noise=True).remarks == (), "Gaussian noise shows no image"


def test_test_images_of_patients_that_were_trained_on_are_counted(tmp_path: Path) -> None:
    """Of other bytes, but of the same patient: said, not refused; also where only the pretraining saw the patient."""
    mixed = replace(OWN, groups=("p1", "p2", "", "", "p3", "p4", "p1", "", "p4"))
    assert find(tmp_path, own=mixed).remarks == (
        "2 of 3 test images are of patients or groups that were trained on (2, the first is p1): they are no "
        "strangers, and their scores flatter",
    )
    before = replace(OWN, groups=("",) * 4 + ("p7",) + ("",) * 4)
    (remark,) = find(tmp_path, own=replace(OWN, groups=("",) * 8 + ("p7",)), pretrained=before).remarks
    assert remark.startswith("1 of 3 test images are of patients")
    named_alike = replace(OTHER, groups=("p1",) * 4)
    assert find(tmp_path, own=mixed, other=named_alike).remarks == (), "another set's p1 is somebody else"


def test_a_class_that_is_scored_and_never_learnt_is_said(tmp_path: Path) -> None:
    late = replace(OWN, labels=tuple("aaaaabbca"))
    assert find(tmp_path, own=late).remarks == (
        "no training image shows b, c: test images of that class cannot be answered right",
    )
    many = manifest("many", ["a", "a", "a|b"], ["train", "train", "test"])
    assert "no training image shows b" in find(tmp_path, own=many).remarks[0]


def test_what_is_held_back() -> None:
    assert held_back(replace(OWN, splits=("train",) * 5 + ("val",) * 4))[1] == "val"
    with pytest.raises(DataError, match=r"own has no labelled images to hold back: give labels\.csv a column split"):
        held_back(replace(OWN, splits=("train",) * 9))
    with pytest.raises(DataError, match="own has no labelled training images"):
        held_back(replace(OWN, splits=("test",) * 9))


def test_validation_is_carved_out_of_training_and_keeps_patients_whole(tmp_path: Path) -> None:
    groups = [f"p{i // 4}" for i in range(80)]
    task = find(tmp_path, own=manifest("own", list("ab") * 40, ["train"] * 60 + ["test"] * 20, groups=groups))
    carved = with_validation(task, seed=0)
    train, val, _ = ids(carved)
    assert sorted(train + val) == list(range(60)) and 0 < len(val) <= 8
    assert not {groups[i] for i in train} & {groups[i] for i in val}
    assert with_validation(carved, seed=1) is carved


def test_one_patient_cannot_be_carved(tmp_path: Path) -> None:
    one = manifest("own", list("ab") * 10, ["train"] * 16 + ["test"] * 4, groups=["p"] * 16 + ["q"] * 4)
    with pytest.raises(DataError, match=r"own has no validation images, and none of its 16 training .* split with val"):
        with_validation(find(tmp_path, own=one), seed=0)


def test_the_positive_class_is_the_named_one_of_two() -> None:
    two = manifest("two", ["abnormal", "normal"] * 2, ["train"] * 3 + ["test"])
    assert [positive_class(name, two) for name in (None, "abnormal", "normal")] == [1, 0, 1]
    assert positive_class(1, manifest("two", list("0101"), ["train"] * 3 + ["test"])) == 1, "YAML reads a number"
    assert positive_class(None, OWN) is None
    with pytest.raises(ConfigError, match="positive=ill is neither of abnormal and normal"):
        positive_class("ill", two)
    with pytest.raises(ConfigError, match="positive=a needs a set of two exclusive classes"):
        positive_class("a", OWN)


def test_columns(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", "0.png", "1.png")
    labels_csv(root, "path,label,view,patient_id", ("0.png", "a", "axial", "p1"), ("1.png", "b", "", "p2"))
    some = replace(manifest("m", ["a", "b"], ["test", "test"], groups=["p1", "p2"]), root=root)
    asked = torch.tensor([1, 0])
    assert column(some, "view", asked) == ["", "axial"] and column(some, "group", asked) == ["p2", "p1"]
    assert column(some, "label", asked) == ["b", "a"] and column(some, "split", asked) == ["test", "test"]
    with pytest.raises(
        DataError, match="by=sex: m has no such column; it has group, label, path, patient_id, split, view"
    ):
        column(some, "sex", asked)
