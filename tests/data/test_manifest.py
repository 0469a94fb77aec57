"""The manifest: columns in and out of a file, tensors, fingerprint, size."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cass_scale.data.manifest import Bad, Manifest, find_classes
from cass_scale.errors import DataError


def make(labels: list[str], splits: list[str] | None = None, groups: list[str] | None = None) -> Manifest:
    n = len(labels)
    classes, multilabel = find_classes(labels)
    return Manifest(
        name="set",
        root=Path("/somewhere"),
        keys=tuple(f'folder, with comma/"{i}".png' for i in range(n)),
        labels=tuple(labels),
        groups=tuple(groups or [""] * n),
        splits=tuple(splits or ["train"] * n),
        sha256=tuple(f"{i:064x}" for i in range(n)),
        sizes=tuple(range(n)),
        classes=classes,
        multilabel=multilabel,
        bad=(Bad("x.png", "zero bytes\nlong"),),
        synthetic=True,
        notes=("über", "two"),
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    manifest = make(["a", "b|c", ""], ["train", "val", "test"], ["p1", "", "p0"])
    manifest.write(tmp_path / "new" / "manifest.csv")
    assert Manifest.read(tmp_path / "new" / "manifest.csv") == manifest
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["manifest.csv"]  # nothing temporary stays


def test_a_million_rows_are_made_written_and_read_in_seconds(tmp_path: Path) -> None:
    begun = time.perf_counter()
    manifest = make(["a", "b"] * 500_000)
    manifest.write(tmp_path / "m.csv")
    again = Manifest.read(tmp_path / "m.csv")
    ids = again.rows("train")
    assert time.perf_counter() - begun < 30  # 4 s on a free core of 2026
    assert again == manifest and len(ids) == 1_000_000
    assert again.label_tensor().bincount().tolist() == [500_000, 500_000]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda text: text[: len(text) // 2], "cut off or changed|is no manifest"),
        (lambda text: text.replace(",train,", ",test,", 1), "cut off or changed"),
        (lambda text: text.replace('"schema": 1', '"schema": 9'), "schema is 9"),
        (lambda text: text.replace("id,key", "key"), "columns are not id,key"),
        (lambda text: "", "is no manifest"),
        (lambda text: "\0\xff" * 99, "is no manifest"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, damage: object, why: str) -> None:
    place = tmp_path / "manifest.csv"
    make(["a", "b"]).write(place)
    place.write_text(damage(place.read_text(encoding="utf-8")), encoding="utf-8")  # type: ignore[operator]
    with pytest.raises(DataError, match=why) as error:
        Manifest.read(place)
    assert str(place) in str(error.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the manifest .*gone.csv: No such file"):
        Manifest.read(tmp_path / "gone.csv")


def test_single_labels() -> None:
    manifest = make(["cat", "", "ant"])
    assert manifest.classes == ("ant", "cat")
    assert manifest.label_tensor().tolist() == [1, -1, 0]


def test_multi_labels_know_none_from_unknown() -> None:
    manifest = make(["b|a", "No Finding", "", "c"])
    assert manifest.classes == ("a", "b", "c")
    assert manifest.label_tensor().tolist() == [[1, 1, 0], [0, 0, 0], [-1, -1, -1], [0, 0, 1]]
    assert make(["No Finding", "a"]).classes == ("No Finding", "a")  # single-label: a class like any other


def test_groups_are_numbered_by_name() -> None:
    assert make(["a"] * 4, groups=["p9", "", "p1", "p9"]).group_tensor().tolist() == [1, -1, 0, 1]


def test_rows_of_a_split() -> None:
    manifest = make(["a"] * 4, ["train", "test", "train", "val"])
    assert manifest.rows("train").tolist() == [0, 2]
    assert manifest.rows().tolist() == [0, 1, 2, 3]
    assert manifest.rows("val").dtype == torch.int64
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        manifest.rows("dev")


def test_the_fingerprint_is_of_content_not_of_place() -> None:
    one = make(["a", "b"], groups=["g", "h"])
    same = replace(one, root=Path("/elsewhere"), name="other", notes=(), bad=())
    assert same.fingerprint() == one.fingerprint()
    for change in (
        {"splits": ("train", "val")},
        {"groups": ("g", "g")},
        {"labels": ("b", "a")},
        {"sha256": ("0" * 64, "f" * 64)},
        {"keys": ("x", "y")},
    ):
        assert replace(one, **change).fingerprint() != one.fingerprint()  # type: ignore[arg-type]


def test_columns_must_fit() -> None:
    with pytest.raises(ValueError, match="unequal length"):
        replace(make(["a", "b"]), labels=("a",))
    with pytest.raises(ValueError, match="unknown splits"):
        replace(make(["a"]), splits=("dev",))
