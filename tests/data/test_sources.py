"""Folders in every layout, the cache of scans, and the embedded digits."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cass_scale.data import sources
from cass_scale.data.decode import read_image
from cass_scale.data.layouts import Listing
from cass_scale.data.scan import Scan, scan
from cass_scale.errors import DataError
from cass_scale.machine import cache_folder
from tests.data.images import fill, labels_csv

pytestmark = pytest.mark.usefixtures("own_cache")


def test_class_folders(home: Path) -> None:
    fill(home, *(f"{c}/{i}.png" for c in ("ant", "bee") for i in range(10)))
    m = sources.folder(home)
    assert (m.name, m.classes, m.multilabel, len(m)) == ("images", ("ant", "bee"), False, 20)
    assert m.labels[0] == "ant" and m.keys[0] == "ant/0.png" and len(m.sha256[0]) == 64
    assert Counter(m.splits) == {"train": 14, "val": 2, "test": 4}
    assert m.notes[0] == "labels from 2 class folders"
    assert "drawn 70/10/20 with seed 0" in m.notes[1]
    assert m.notes[2] == "14 train, 2 val, 4 test"


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_split_folders_are_respected(home: Path, val: str) -> None:
    fill(home, "train/a/1.png", "train/b/2.png", f"{val}/a/3.png", "test/b/4.png")
    m = sources.folder(home)
    assert dict(zip(m.keys, m.splits, strict=True))[f"{val}/a/3.png"] == "val"
    assert sorted(m.splits) == ["test", "train", "train", "val"]
    assert m.classes == ("a", "b")
    assert f"test, train, {val.lower()}" in " ".join(m.notes)


@pytest.mark.parametrize("keys", [("1.png", "2.png"), ("x/y/1.png", "x/2.png"), ("scans/1.png", "scans/2.png")])
def test_any_nesting_without_labels(home: Path, keys: tuple[str, ...]) -> None:
    m = sources.folder(fill(home, *keys))
    assert (m.labels, m.splits, m.classes) == (("", ""), ("train", "train"), ())
    assert m.notes[0].startswith("no labels: no labels.csv and no class folders")


def test_labels_none_keeps_the_split_of_the_source(home: Path) -> None:
    fill(home, "train/a/1.png", "train/b/2.png", "test/a/3.png")
    m = sources.folder(home, labels="none")
    assert m.classes == () and sorted(m.splits) == ["test", "train", "train"]


def test_labels_folders_at_any_depth(home: Path) -> None:
    m = sources.folder(fill(home, "a/x/1.png", "b/2.png"), labels="folders")
    assert m.labels == ("a", "b")
    fill(home, "stray.png")
    with pytest.raises(DataError, match=r"data.labels=folders, but stray.png lies in no class folder"):
        sources.folder(home, labels="folders")


def test_hidden_files_and_other_files_are_passed_over(home: Path) -> None:
    fill(home, "a.png", ".hidden.png", ".thumbs/b.png", "__MACOSX/c.png", "d.JPG")
    (home / "readme.txt").write_text("not an image")
    assert sources.folder(home).keys == ("a.png", "d.JPG")


def test_a_linked_folder_is_followed_and_a_loop_is_not(home: Path, tmp_path: Path) -> None:
    fill(tmp_path / "other", "b.png")
    fill(home, "a.png")
    (home / "link").symlink_to(tmp_path / "other")
    (home / "loop").symlink_to(home)
    assert sources.folder(home).keys == ("a.png", "link/b.png")


def test_csv_with_everything(home: Path) -> None:
    fill(home, "1.png", "2.png", "3.png", "4.png", "left_out.png")
    labels_csv(
        home,
        "path,label,split,patient_id,group_id,extra",
        ("1.png", " b | a ", "train", "p1", "g1", "x"),
        ("./2.png", "b", "Validation", "p1", "", "x"),
        ("3.png", "", "unlabelled", "", "", "x"),
        ("4.png", "No Finding", "test"),
    )
    m = sources.folder(home)
    assert m.keys == ("1.png", "2.png", "3.png", "4.png")
    assert m.labels == ("a|b", "b", "", "No Finding") and m.multilabel and m.classes == ("a", "b")
    assert m.groups == ("g1", "p1", "", "")
    assert m.splits == ("train", "val", "train", "test")
    assert "1 images in the folder are not named in labels.csv and are left out" in m.notes


def test_csv_without_splits_keeps_groups_whole(home: Path) -> None:
    keys = [f"{i}.png" for i in range(40)]
    fill(home, *keys)
    labels_csv(home, "path,label,patient_id", *((k, "ab"[i % 2], f"p{i // 4}") for i, k in enumerate(keys)))
    m = sources.folder(home)
    assert set(m.splits) == {"train", "val", "test"}
    assert len(set(zip(m.groups, m.splits, strict=True))) == 10
    assert m.splits != sources.folder(home, seed=1).splits


def test_a_group_in_two_splits_of_the_source_is_told(home: Path) -> None:
    fill(home, "1.png", "2.png")
    labels_csv(home, "path,split,group_id", ("1.png", "train", "g"), ("2.png", "test", "g"))
    assert "1 groups have images in more than one split, as the source gives them" in sources.folder(home).notes


REAL = {
    "brain_mri": (1222, 3, False, {"train": 970, "test": 252}),
    "skin_isic2017": (2146, 3, False, {"train": 1997, "val": 149}),
    "chest_xray_multilabel": (699, 14, True, {"train": 524, "test": 175}),
    "histology_tiff_unlabelled": (45, 0, False, {"train": 45}),
    "blood_wbc_bccd": (348, 5, False, {"train": 278, "test": 70}),
    "chest_xray_patients": (1035, 3, False, {"train": 825, "test": 210}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_sets(shared: Path, name: str) -> None:
    m = sources.folder(shared / "data" / name)
    assert (len(m), len(m.classes), m.multilabel, dict(Counter(m.splits))) == REAL[name]
    assert m.bad == () and not m.synthetic


def test_real_groups(shared: Path) -> None:
    assert set(sources.folder(shared / "data/histology_tiff_unlabelled").groups) == {"cmu1"}
    brain = sources.folder(shared / "data/brain_mri")
    assert all(g.startswith("fs_series") for g in brain.groups)  # patient_id is empty there
    x = sources.folder(shared / "data/chest_xray_multilabel").label_tensor()
    assert int((x.sum(1) == 0).sum()) == 308  # "No Finding"


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []

    def counted(root: Path, listing: Listing, *how: Any, **options: Any) -> Scan:
        seen.append(len(listing.keys))
        return scan(root, listing, *how, **options)

    monkeypatch.setattr(sources, "scan", counted)
    return seen


def test_files_are_read_once_until_one_changes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(home, "1.png", "2.png")
    seen = count_reads(monkeypatch)
    first = sources.folder(home)
    assert sources.folder(home) == first and seen == [2]
    os.utime(home / "1.png", ns=(1, 1))
    sources.folder(home)
    assert seen == [2, 2]
    fill(home, "3.png")
    assert len(sources.folder(home)) == 3
    (home / "labels.csv").write_text("path,label\n1.png,a\n")
    assert sources.folder(home).labels == ("a",)
    (home / "labels.csv").write_text("path,label\n1.png,b\n")
    assert sources.folder(home).labels == ("b",)
    sources.folder(home, seed=9)
    assert len(seen) == 6


def test_a_broken_cache_file_is_made_again(home: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(home, "1.png", "2.png")
    seen = count_reads(monkeypatch)
    first = sources.folder(home)
    (cached,) = (own_cache / "manifests").iterdir()
    whole = cached.read_bytes()
    for damage in (whole[:-50], b"", b"\0\xff\xfe"):
        cached.write_bytes(damage)
        assert sources.folder(home) == first
    assert seen == [2, 2, 2, 2] and cached.read_bytes() == whole


def test_nothing_is_written_into_the_data_folder(home: Path) -> None:
    fill(home, "a/1.png", "b/2.png")
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*")}
    sources.folder(home)
    assert {p: p.stat().st_mtime_ns for p in home.rglob("*")} == before


def test_a_cache_that_cannot_be_written_costs_nothing_else(home: Path, tmp_path: Path) -> None:
    fill(home, "1.png")
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(sources.folder(home)) == 1
    with pytest.raises(DataError, match="set CASS_SCALE_CACHE"):
        sources.phantom(images=1, scale=0.1)


def test_the_cache_folder_is_the_persons_or_their_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CASS_SCALE_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "cass_scale"


def test_digits_are_real_scans_in_ten_classes() -> None:
    m = sources.digits()
    assert (len(m), len(m.classes), m.synthetic, m.name) == (1797, 10, False, "digits")
    assert dict(Counter(m.splits)) == {"train": 1258, "val": 179, "test": 360}
    assert len(set(m.sha256)) > 1790
    assert read_image(m.root / m.keys[0], None).shape == (32, 32, 3)
    assert sources.digits(seed=1).splits != m.splits
