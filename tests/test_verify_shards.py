"""`cass-scale verify` over shards: every byte is held against the indexes, and the report is that of a folder."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cass_scale import shard, split, verify
from cass_scale.cli import main
from cass_scale.data.index import ShardIndex
from cass_scale.data.shards import survey
from cass_scale.errors import ConfigError, DataError
from tests.data.images import encode, fill, labels_csv, noise
from tests.data.tars import write_tar

ONE, TWO = "shard-000000", "shard-000001"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of four patients, one of them in train and test; BMP, which notices no changed byte by itself."""
    home = fill(tmp_path_factory.mktemp("set") / "images", *(f"{i}.bmp" for i in range(8)), side=32)
    rows = [(f"{i}.bmp", "ab"[i % 2], "test" if i > 4 else "train", f"p{i // 2}") for i in range(8)]
    return labels_csv(home, "path,label,split,patient_id", *rows)


@pytest.fixture(scope="module")
def whole(images: Path) -> Path:
    """The same without the divided patient, as two shards of four images."""
    home = Path(shutil.copytree(images, images.parent / "clean"))
    (home / "labels.csv").write_text((home / "labels.csv").read_text().replace("4.bmp,a,train", "4.bmp,a,test"))
    shard(f"source={home}", f"out={images.parent / 'shards'}", "size=null", "samples_per_shard=4", quiet=True)
    return images.parent / "shards"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def flip(path: Path, at: int) -> None:
    """Change one byte, and neither size nor time."""
    stat, raw = path.stat(), bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def damage(root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The record, and what is damaged and why."""
    record = verify(data={"path": root}, quiet=True)
    assert (record["exit_code"] == 3) == bool(record["data"]["damaged"])
    return record, {one["key"]: one["why"] for one in record["data"]["damaged"]}


def test_whole_shards_are_clean_and_counted_like_their_folder(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"data.path={whole}"]) == 0
    said = capsys.readouterr().err
    assert f"reading all 8 images in {whole}" in said.replace("\n", " ") and "is clean" in said
    found, folder = (verify(data={"path": p}, quiet=True)["data"] for p in (whole, whole.parent / "clean"))
    for name in ("fingerprint", "classes", "splits", "sizes", "copies", "images"):
        assert found[name] == folder[name]


def test_a_flipped_byte_in_an_image_names_shard_and_image(copy: Path, tmp_path: Path) -> None:
    sample = ShardIndex.read(copy / f"{TWO}.index").samples[2]
    flip(copy / f"{TWO}.tar", sample.offset + sample.length - 5)
    record, damaged = damage(copy)
    assert damaged == {
        f"{TWO}.tar": "its sha256 is not that of its index",
        f"{TWO}.tar: 6.bmp at byte {sample.offset}": "its sha256 is not that of the index, the shard was changed",
    }
    assert record["data"]["images"] == 7 and record["data"]["bad"] == []
    assert f"2 shards or images are damaged: {TWO}.tar: its sha256" in record["faults"][0]["what"]
    verify(data={"path": copy}, out=tmp_path / "out", quiet=True)
    assert f"<code>{TWO}.tar: 6.bmp at byte" in (tmp_path / "out" / "verify.html").read_text()


def test_a_flipped_byte_between_images_is_noticed_by_the_shards_checksum_alone(copy: Path) -> None:
    sample = ShardIndex.read(copy / f"{ONE}.index").samples[1]
    flip(copy / f"{ONE}.tar", sample.offset - 512 + 110)  # in the header's owner
    record, damaged = damage(copy)
    assert damaged == {f"{ONE}.tar": "its sha256 is not that of its index"} and record["data"]["images"] == 8


def test_a_cut_and_a_lost_shard(copy: Path) -> None:
    tar, index = copy / f"{ONE}.tar", ShardIndex.read(copy / f"{ONE}.index")
    raw = tar.read_bytes()
    tar.write_bytes(raw[: index.samples[2].offset + 10])
    (copy / f"{TWO}.tar").unlink()
    record, damaged = damage(copy)
    assert damaged[f"{ONE}.tar"].endswith(f"bytes long, its index says {len(raw)}")
    assert damaged[f"{TWO}.tar"] == "cannot be read: No such file or directory"
    cut = [key for key, why in damaged.items() if why == "the shard is cut off before its end"]
    assert [key.split(": ")[1][:5] for key in cut] == ["2.bmp", "3.bmp"] and record["data"]["images"] == 2


def test_indexes_that_are_lost_broken_or_anothers(copy: Path) -> None:
    one, two = copy / f"{ONE}.index", copy / f"{TWO}.index"
    good = two.read_bytes()
    two.write_bytes(one.read_bytes())
    record, damaged = damage(copy)
    assert damaged == {two.name: "is not the index of these images: it does not fit the manifest"}
    assert record["data"]["images"] == 4
    index = ShardIndex.read(one)
    for samples in (index.samples[:3], index.samples[::-1], ()):
        two.write_bytes(good)
        replace(index, samples=samples).write(one)
        assert list(damage(copy)[1]) == [one.name], "an index of fewer images, or in another order"
    index.write(one)
    two.write_bytes(good.replace(b"000000006", b"000000009"))
    assert "its checksum does not match its content" in damage(copy)[1][two.name]
    two.unlink()
    assert "cannot read the index" in damage(copy)[1][two.name]
    one.unlink()
    with pytest.raises(DataError, match=rf"no good image is left:\n  {ONE}.index: cannot read the index"):
        verify(data={"path": copy}, quiet=True)


def test_a_manifest_a_header_and_a_set_that_is_not_finished(copy: Path) -> None:
    header = copy / "shards.json"
    good = header.read_text()
    header.write_text(good.replace('"shards": 2', '"shards": 1'))
    assert damage(copy)[1] == {"shards.json": "its numbers of shards and images are not those of manifest.csv"}
    for broken in (good.replace('"shards": 2', '"shards": "x"'), "{}", good.replace(": 4", ": 0")):
        header.write_text(broken)
        with pytest.raises(DataError, match=r"shards.json cannot be read"):
            verify(data={"path": copy}, quiet=True)
    header.write_text(good)
    place = copy / "manifest.csv"
    place.write_text(place.read_text().replace(",train,", ",test,", 1))
    with pytest.raises(DataError, match=r"manifest.csv is cut off or changed"):
        verify(data={"path": copy}, quiet=True)
    place.unlink()
    with pytest.raises(DataError, match="2 of 2 shards are made; finish with the same"):
        verify(data={"path": copy}, quiet=True)


def test_no_changed_byte_of_a_shard_or_an_index_goes_unnoticed(copy: Path) -> None:
    dice = random.Random(0)
    files = sorted(p for p in copy.iterdir() if p.suffix in (".tar", ".index"))
    for case in range(200):
        file = files[case % len(files)]
        at = dice.randrange(file.stat().st_size)
        flip(file, at)
        damaged = survey(copy).read().damaged
        assert any(bad.key.startswith(file.name) for bad in damaged), f"byte {at} of {file.name}"
        flip(file, at)
    assert survey(copy).read().damaged == ()


def test_what_the_report_says_mends_it(images: Path, copy: Path) -> None:
    """The damaged tar and its index deleted, the same command makes them again, and nothing else."""
    flip(copy / f"{TWO}.tar", 2000)
    assert "delete each damaged tar with its index" in damage(copy)[0]["faults"][0]["mend"]
    (copy / f"{TWO}.tar").unlink(), (copy / f"{TWO}.index").unlink()
    source = images.parent / "clean"
    made = shard(f"source={source}", f"out={copy}", "size=null", "samples_per_shard=4", quiet=True)
    assert made["made"] == 1 and damage(copy)[1] == {}


def test_a_group_on_both_sides_and_copies_are_found_in_shards_too(images: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(images, tmp_path / "images"))
    shutil.copy(home / "0.bmp", home / "7.bmp")
    (home / "8.bmp").write_bytes(b"")
    with (home / "labels.csv").open("a") as f:
        csv.writer(f).writerow(("8.bmp", "a", "train", "p8"))
    out = tmp_path / "shards"
    shard(f"source={home}", f"out={out}", "data.max_bad=0.2", "size=null", quiet=True)
    record = verify(data={"path": out}, quiet=True)
    assert record["exit_code"] == 3 and record["data"]["damaged"] == [] == record["data"]["bad"]
    assert "1 files of the source could not be used and are not in the shards" in record["data"]["notes"]
    assert record["data"]["leaked"] == {"copies": {"train": 1, "test": 1}, "group": {"train": 1, "test": 1}}
    assert all("make the shards again" in fault["mend"] for fault in record["faults"]) and len(record["faults"]) == 2


def bmp(seed: int) -> bytes:
    return encode(noise(32, 32, 3, seed=seed), "BMP")


def test_foreign_tars(tmp_path: Path) -> None:
    """Labels, groups and splits of their members; damage behind an unchanged size and time is noticed."""
    home = tmp_path / "tars"
    for name, seeds in (("train-0", range(3)), ("test-0", range(3, 6))):
        about = [(f"{i}.json", json.dumps({"label": i % 2, "patient_id": "p"}).encode()) for i in seeds]
        write_tar(home / f"{name}.tar", *((f"{i}.bmp", bmp(i)) for i in seeds), *about)
    record = verify(data={"path": home}, quiet=True)
    assert record["data"]["splits"] == {"train": 3, "test": 3} and list(record["data"]["classes"]) == ["0", "1"]
    assert record["data"]["leaked"]["group"] == {"train": 3, "test": 3} and record["data"]["damaged"] == []
    flip(home / "test-0.tar", 512 + 3000)
    _, damaged = damage(home)
    assert list(damaged) == ["test-0.tar", "test-0.tar: test-0.tar/3.bmp at byte 512"]
    raw = (home / "test-0.tar").read_bytes()
    (home / "test-0.tar").write_bytes(raw[:2000])
    with pytest.raises(DataError, match=r"test-0.tar is (no whole tar|broken or cut off)"):
        verify(data={"path": home}, quiet=True)


def test_foreign_tars_with_unusable_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "a.tar", *((f"{i}.bmp", bmp(i)) for i in range(3)), ("x.bmp", b"BM"))
    record = verify(data={"path": tmp_path / "tars"}, quiet=True)
    assert record["exit_code"] == 3 and [bad["key"] for bad in record["data"]["bad"]] == ["a.tar/x"]
    assert verify(data={"path": tmp_path / "tars", "max_bad": 0.5}, quiet=True)["exit_code"] == 0


def test_shards_are_not_split_and_a_dry_run_reads_no_image(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"data.path={copy} holds shards: split the images that they")):
        split(data={"path": copy}, out=tmp_path / "c.csv", quiet=True)
    flip(copy / f"{TWO}.tar", 2000)
    assert main(["verify", f"data.path={copy}", "--dry-run"]) == 0
    assert "reading all 8 images" in capsys.readouterr().err.replace("\n", " ")
