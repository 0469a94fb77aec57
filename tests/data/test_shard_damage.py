"""Shards that rot, are cut, edited or replaced: an error that names them, never another picture."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cass_scale.data import ranges
from cass_scale.data.index import ShardIndex
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.data.ranges import LocalRanges
from cass_scale.data.shards import shards
from cass_scale.errors import DataError
from tests.data.tars import grouped, open_stream, sharded

CASES = 1000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of four images each, in a format that would not notice a changed byte by itself."""
    place = tmp_path_factory.mktemp("whole")
    sharded(grouped(place / "images", 8, kind="bmp"), place / "shards", per_shard=4)
    return place / "shards"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def read(root: Path) -> tuple[Manifest, torch.Tensor]:
    """All images of the set, in the order of the rows."""
    manifest = shards(root)
    stream = open_stream("webdataset", manifest, Plan(manifest.rows(), 8, seed=0, shuffle=False, tail="keep"))
    return manifest, torch.cat([batch.images for batch in stream.epoch(0)])


def damage(dice: random.Random, data: bytes) -> bytes:
    """A byte changed, or the end cut off."""
    at = dice.randrange(len(data))
    return (
        data[:at] if dice.random() < 0.25 else data[:at] + bytes([data[at] ^ dice.randrange(1, 256)]) + data[at + 1 :]
    )


def test_random_damage_is_an_error_or_harmless(whole: Path, copy: Path) -> None:
    manifest, images = read(whole)
    dice, refused = random.Random(0), 0
    files = sorted(p for p in copy.iterdir() if p.suffix in (".tar", ".index", ".csv", ".json"))
    assert len(files) == 6
    for case in range(CASES):
        file = files[case % len(files)]
        good = file.read_bytes()
        file.write_bytes(damage(dice, good))
        try:
            found, pixels = read(copy)
        except DataError as error:
            refused += 1
            assert str(copy) in str(error), "an error names the file"
        else:  # a header, a member for other tools, a note
            assert torch.equal(pixels, images), f"case {case}: another picture from {file.name}"
            assert (found.labels, found.groups, found.splits) == (manifest.labels, manifest.groups, manifest.splits)
        file.write_bytes(good)
    assert refused > CASES // 2


def test_a_changed_image_names_shard_and_sample(copy: Path) -> None:
    sample = ShardIndex.read(copy / "shard-000001.index").samples[2]
    tar = copy / "shard-000001.tar"
    raw = bytearray(tar.read_bytes())
    raw[sample.offset + sample.length // 2] ^= 1
    tar.write_bytes(raw)
    with pytest.raises(DataError) as error:
        read(copy)
    said = f"{tar}: 06.bmp at byte {sample.offset}: its sha256 is not that of the index, the shard was changed"
    assert str(error.value).startswith(said) and error.value.exit_code == 3


def test_a_cut_a_lost_and_a_longer_shard(copy: Path) -> None:
    tar = copy / "shard-000001.tar"
    good = tar.read_bytes()
    for raw in (good[:-1], good + b"\0"):
        tar.write_bytes(raw)
        with pytest.raises(DataError, match=rf"shard-000001.tar is {len(raw)} bytes long, its index says {len(good)}"):
            read(copy)
    tar.unlink()
    with pytest.raises(DataError, match=r"shard-000001.tar cannot be read: No such file"):
        read(copy)


def test_indexes_of_another_shard_and_of_none(copy: Path) -> None:
    one, two = copy / "shard-000000.index", copy / "shard-000001.index"
    good = two.read_bytes()
    two.write_bytes(one.read_bytes())
    with pytest.raises(DataError, match=r"shard-000001.index is the index of 'shard-000000.tar'"):
        read(copy)
    two.write_bytes(good.replace(b"06.bmp", b"05.bmp"))
    with pytest.raises(DataError, match=r"shard-000001.index is no index .*checksum does not match"):
        read(copy)
    two.unlink()
    with pytest.raises(DataError, match=r"cannot read the index .*shard-000001.index: No such file"):
        read(copy)


def test_a_manifest_edited_by_hand(copy: Path) -> None:
    place = copy / "manifest.csv"
    place.write_text(place.read_text().replace(",train,", ",test,", 1))
    with pytest.raises(DataError, match=r"manifest.csv is cut off or changed"):
        read(copy)


def rename_over(tar: Path, content: bytes) -> None:
    other = tar.with_suffix(".new")
    other.write_bytes(content)
    os.replace(other, tar)


def write_over(tar: Path, content: bytes) -> None:
    with open(tar, "r+b") as f:
        f.write(content)
        f.truncate()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("replace", [rename_over, write_over, Path.write_bytes])
@pytest.mark.parametrize("change", [lambda raw: raw[::-1], lambda raw: raw[: len(raw) // 2], lambda raw: b""])
def test_a_shard_replaced_under_a_running_job(
    workers: int,
    replace: Callable[[Path, bytes], object],
    change: Callable[[bytes], bytes],
    copy: Path,
    whole: Path,
) -> None:
    """The old one is read on, or the new one is refused: never another picture."""
    _, images = read(whole)
    manifest = shards(copy)
    stream = open_stream("webdataset", manifest, Plan(manifest.rows(), 1, seed=0), workers, cache_bytes=0)
    batches, seen = stream.epoch(0), 0
    next(batches)
    for tar in sorted(copy.glob("*.tar")):
        replace(tar, change(tar.read_bytes()))
    try:
        for batch in batches:
            assert torch.equal(batch.images[0], images[int(batch.index)])
            seen += 1
    except DataError as error:
        assert re.search(r"shard-00000[01].tar: .*the shard (was changed|is cut off before its end)", str(error))
        assert seen < 7
    else:
        assert seen == 7 and replace is rename_over, "only what was open before is still whole"
    stream.close()
    with pytest.raises(DataError, match=r"shard-00000[01].tar"):
        read(copy)


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "KEEP_OPEN", 3)
    paths = [tmp_path / str(i) for i in range(9)]
    for i, path in enumerate(paths):
        path.write_bytes(b"%d234567" % i)
    files, before = LocalRanges(), len(os.listdir("/proc/self/fd"))
    assert [files.open_range(p, 0, 2) for p in paths * 2] == [b"%d2" % i for i in range(9)] * 2
    assert len(os.listdir("/proc/self/fd")) == before + 3
    assert files.open_range(paths[0], 5, 100) == b"67" and files.open_range(paths[0], 99, 1) == b""
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before
