"""The verbs `verify` and `split` as a person meets them, on a leaking set made from real slices."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from cass_scale import shard, split, verify
from cass_scale.cli import main
from cass_scale.data import sources
from cass_scale.data.manifest import SPLITS
from cass_scale.data.near import TURNS
from cass_scale.errors import ConfigError, DataError, MissingExtra
from tests.data.copies import ALTERED
from tests.data.images import fill, labels_csv

HOW = ("mirrored", "turned_90", "jpeg_50", "half", "brighter_30")


@pytest.fixture(scope="session")
def slices(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training and 30 test slices of brain_mri, as its own folders have them: neighbours, and no copy."""
    root = tmp_path_factory.mktemp("slices")
    source = shared / "data" / "brain_mri"
    for part, number in (("train", 20), ("test", 10)):
        for name in ("glioma", "meningioma", "pituitary"):
            (root / part / name).mkdir(parents=True)
            for file in sorted((source / part / name).iterdir())[:number]:
                shutil.copy(file, root / part / name)
    return root


@pytest.fixture
def leaking(slices: Path, tmp_path: Path) -> Path:
    """The same with 15 altered copies of training slices and 2 plain ones added to the test part."""
    root = Path(shutil.copytree(slices, tmp_path / "leaking"))
    for name in ("glioma", "meningioma", "pituitary"):
        for how, file in zip(HOW, sorted((root / "train" / name).iterdir())[::4], strict=True):
            ALTERED[how](Image.open(file)).save(root / "test" / name / f"{how}_of_{file.name}", quality=85)
    first, second = sorted((root / "train" / "glioma").iterdir())[1:3]
    shutil.copy(first, root / "test" / "glioma" / f"bytes_of_{first.name}")
    Image.open(second).save(root / "test" / "glioma" / f"pixels_of_{second.stem}.png")
    return root


def test_every_copy_is_found_and_nothing_else(leaking: Path, tmp_path: Path) -> None:
    found = verify(data={"path": leaking}, out=tmp_path / "out", quiet=True)
    sets = found["data"]["sets"]
    assert found["exit_code"] == 3
    assert {kind: n["sets"] for kind, n in found["data"]["copies"].items()} == {
        "same bytes": 1, "same pixels": 1, "near duplicate": 15,
    }  # fmt: skip
    for one in sets:
        original, copy = sorted((Path(key) for key in one["images"]), key=lambda p: "_of_" in p.name)
        assert copy.stem.split("_of_")[1] == original.stem
        assert one["splits"] == {"train": 1, "test": 1}
    assert found["data"]["leaked"] == {"copies": {"train": 17, "test": 17}}
    turns = {Path(link["first"]).name.split("_of_")[0]: link["turn"] for one in sets for link in one["links"]}
    assert turns["mirrored"] == "mirrored" and turns["jpeg_50"] == "as it is" and turns["turned_90"] in TURNS[1:4:2]
    assert "17 of 47 test images" in found["faults"][0]["what"] and "cass-scale split" in found["faults"][0]["mend"]
    assert json.loads((tmp_path / "out" / "verify.json").read_text())["faults"] == found["faults"]
    page = (tmp_path / "out" / "verify.html").read_text()
    assert "not clean" in page and "bytes_of_" in page and "http" not in page.split("<style>")[0]


def test_the_same_is_found_in_shards_of_it(leaking: Path, tmp_path: Path) -> None:
    shard(f"source={leaking}", f"out={tmp_path / 'shards'}", "size=null", quiet=True)
    found, told = (verify(data={"path": path}, quiet=True) for path in (leaking, tmp_path / "shards"))
    assert told["exit_code"] == 3 and told["data"]["sets"] == found["data"]["sets"]
    assert told["data"]["leaked"] == {"copies": {"train": 17, "test": 17}}


def test_real_slices_without_copies_are_clean(slices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"data.path={slices}"]) == 0
    said = capsys.readouterr().err
    assert "is clean: nothing found leaks across splits" in said and "pituitary" in said


@pytest.mark.parametrize("name", ["brain_mri", "chest_xray_patients", "skin_isic2017"])
def test_few_pictures_of_real_sets_are_taken_for_copies(shared: Path, name: str) -> None:
    """The sets hold no two equal pictures, so that what is found here is false, or was missed when they were made."""
    data = verify(data={"path": shared / "data" / name}, quiet=True)["data"]
    assert sum(len(one["images"]) for one in data["sets"]) <= 0.005 * data["images"]


def test_what_split_draws_is_clean(leaking: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clean.csv"
    drawn = split(data={"path": leaking}, out=out)
    assert f"put it into {leaking} as labels.csv" in capsys.readouterr().err.replace("\n", " ")
    assert drawn["kept_together"] == 17 and sum(drawn["splits"].values()) == 107
    shutil.copy(out, leaking / "labels.csv")
    found = verify(data={"path": leaking}, quiet=True)
    assert found["exit_code"] == 0 and found["data"]["copies"]["near duplicate"]["sets"] == 15
    shares = Counter(sources.folder(leaking).splits)
    assert [shares[s] / 107 for s in SPLITS] == pytest.approx([0.7, 0.1, 0.2], abs=0.05)


def grouped(home: Path) -> Path:
    """20 patients of 3 images in two classes, split image by image, so that all leak; one column is not known here."""
    keys = [f"{i}.png" for i in range(60)]
    fill(home, *keys, side=32)
    rows = [(k, "ab"[i // 3 % 2], ("train", "val", "test")[i % 3], f"p{i // 3}", f"at {i}") for i, k in enumerate(keys)]
    return labels_csv(home, "path,label,split,patient_id,place", *rows)


def test_a_divided_patient_is_found_and_mended(tmp_path: Path) -> None:
    home, out = grouped(tmp_path / "images"), tmp_path / "clean.csv"
    found = verify(data={"path": home}, quiet=True)
    assert found["exit_code"] == 3 and len(found["data"]["groups"]["patient_id"]) == 20
    assert found["data"]["leaked"]["patient_id"] == {"train": 20, "val": 20, "test": 20}
    assert "same patient_id on both sides of a split" in found["faults"][0]["what"]
    split(data={"path": home}, out=out, quiet=True)
    rows = list(csv.DictReader(out.open()))
    assert [row["place"] for row in rows] == [f"at {i}" for i in range(60)] and rows[4]["patient_id"] == "p1"
    out.replace(home / "labels.csv")
    assert verify(data={"path": home}, quiet=True)["exit_code"] == 0
    parts = Counter((row["split"], row["label"]) for row in rows)
    assert parts["train", "a"] == parts["train", "b"] == 21


def test_a_patient_divided_over_groups_leaks_although_no_group_does(tmp_path: Path) -> None:
    home = fill(tmp_path / "images", "1.png", "2.png", side=32)
    labels_csv(home, "path,split,patient_id,group_id", ("1.png", "train", "p", "g1"), ("2.png", "test", "p", "g2"))
    groups = verify(data={"path": home}, quiet=True)["data"]["groups"]
    assert groups["group_id"] == [] and groups["patient_id"] == [{"group": "p", "splits": {"train": 1, "test": 1}}]


def test_the_seed_decides_and_nothing_is_overwritten(tmp_path: Path) -> None:
    home = grouped(tmp_path / "images")
    texts = []
    for number, seed in enumerate((0, 0, 1)):
        split(data={"path": home}, seed=seed, out=tmp_path / f"{number}.csv", quiet=True)
        texts.append((tmp_path / f"{number}.csv").read_text())
    assert texts[0] == texts[1] != texts[2]
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        split(data={"path": home}, out=tmp_path / "0.csv", quiet=True)
    assert (tmp_path / "0.csv").read_text() == texts[0]


def test_images_without_labels_are_split_too(tmp_path: Path) -> None:
    home = fill(tmp_path / "images", *(f"{i}.png" for i in range(20)), side=32)
    drawn = split(data={"path": home}, out=tmp_path / "c.csv", quiet=True)
    assert drawn["splits"] == {"train": 14, "val": 2, "test": 4}


def test_broken_files_are_listed_and_fail_above_the_share(tmp_path: Path) -> None:
    home = fill(tmp_path / "images", *(f"{i}.png" for i in range(9)), side=32)
    (home / "cut.png").write_bytes((home / "1.png").read_bytes()[:200])
    found = verify(data={"path": home}, quiet=True)
    assert found["exit_code"] == 3 and [bad["key"] for bad in found["data"]["bad"]] == ["cut.png"]
    assert found["faults"][0]["what"].startswith("1 of 10 files cannot be used, more than data.max_bad=0.01")
    assert verify(data={"path": home, "max_bad": 0.1}, quiet=True)["exit_code"] == 0
    with pytest.raises(DataError, match="1 of 10 images"):
        split(data={"path": home}, out=tmp_path / "c.csv", quiet=True)
    assert not (tmp_path / "c.csv").exists()
    for file in home.glob("?.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no good image is left"):
        verify(data={"path": home}, quiet=True)


def test_silent_damage_is_found_although_the_scan_is_cached(tmp_path: Path) -> None:
    home = fill(tmp_path / "images", "1.bmp", "2.bmp", "3.bmp", side=32)
    before = sources.folder(home)
    before.write(tmp_path / "manifest.csv")
    stat, damaged = (home / "1.bmp").stat(), bytearray((home / "1.bmp").read_bytes())
    damaged[-5] ^= 1
    (home / "1.bmp").write_bytes(damaged)
    os.utime(home / "1.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sources.folder(home) == before, "the cache cannot know"
    (home / "3.bmp").unlink()
    found = verify(data={"path": home}, against=tmp_path / "manifest.csv", quiet=True)
    assert found["exit_code"] == 3
    assert found["data"]["against"] == {"gone": ["3.bmp"], "changed": ["1.bmp"]}
    assert "1 images are changed since that manifest was written: 1.bmp" in found["faults"][1]["what"]


def test_what_is_worth_knowing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = fill(tmp_path / "images", *(f"[red]/{i}.png" for i in range(12)), "rare/0.png", side=32)
    shutil.copy(home / "[red]" / "3.png", home / "rare" / "3.png")
    Image.new("L", (32, 32), 90).save(home / "[red]" / "grey.png")
    rows = [(p.relative_to(home).as_posix(), p.parent.name, "train") for p in sorted(home.rglob("*.png"))]
    labels_csv(home, "path,label,split", *rows)
    assert main(["verify", f"data.path={home}"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "1 images repeat another of the same split" in said
    assert "1 sets of copies are labelled differently" in said
    assert "classes with fewer than 10 images, too few to score: rare" in said
    assert "1 images are of one grey and were not compared: [red]/grey.png" in said


def test_nothing_is_written_into_the_folder(tmp_path: Path) -> None:
    home = grouped(tmp_path / "images")
    before = {p: p.stat().st_mtime_ns for p in [home, *home.rglob("*")]}
    verify(data={"path": home}, out=tmp_path / "out", quiet=True)
    split(data={"path": home}, out=tmp_path / "clean.csv", quiet=True)
    assert {p: p.stat().st_mtime_ns for p in [home, *home.rglob("*")]} == before
    with pytest.raises(ConfigError, match="lies in the folder that is verified"):
        verify(data={"path": home}, out=home / "out", quiet=True)


def test_a_dry_run_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = grouped(tmp_path / "images")
    for verb in ("verify", "split"):
        assert main([verb, f"data.path={home}", f"out={tmp_path / verb}", "--dry-run"]) == 0
        assert not (tmp_path / verb).exists()
        assert "reading all 60 images" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("verb", ["verify", "split"])
def test_every_problem_of_the_command_at_once(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "data.max_bad=2", "data.labels=xml"]) == 2
    said = capsys.readouterr().err
    assert "data.path is missing" in said and "data.max_bad=2" in said and "data.labels=xml" in said
    assert ("out is missing" in said) == (verb == "split")


def test_a_page_needs_its_extra_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = grouped(tmp_path / "images")
    monkeypatch.setattr("cass_scale.verbs.settings.missing", lambda packages: ["jinja2"])
    with pytest.raises(MissingExtra, match=r"cass-scale\[report\]"):
        verify(data={"path": home}, out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
