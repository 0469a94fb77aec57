"""Tars of other people's tools: indexed on first use, read like ours, refused when hostile or broken."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from cass_scale.data.decode import decode
from cass_scale.data.layouts import shard_format
from cass_scale.data.manifest import Bad
from cass_scale.data.plan import Plan
from cass_scale.data.shards import shards
from cass_scale.errors import ConfigError, DataError
from cass_scale.machine import cache_folder
from tests.data.images import encode, fill, noise
from tests.data.tars import grouped, open_stream, sharded, write_tar

pytestmark = pytest.mark.usefixtures("own_cache")


def image(seed: int) -> bytes:
    return encode(noise(20, 20, 3, seed=seed), "PNG")


def about(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def link(kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo("a.png")
    member.type, member.linkname = kind, "/etc/passwd"
    return member


def test_foreign_shards_are_read_by_plan_and_their_folder_is_left_alone(home: Path) -> None:
    for t in range(2):
        members = [
            (f"x/{i}.{e}", d) for i in range(5) for e, d in (("PNG", image(9 * t + i)), ("cls", b"%d" % (i % 2)))
        ]
        write_tar(home / f"part-{t}.tar", *members)
    before = sorted(home.iterdir())
    m = shards(home)
    assert m.keys[6] == "part-1.tar/x/1.PNG" and m.classes == ("0", "1") and set(m.splits) <= {"train", "val", "test"}
    plan = Plan(m.rows(), 3, seed=1)
    for workers in (0, 2):
        stream = open_stream("webdataset", m, plan, workers)
        for batch in stream.epoch(0):
            for row, pixels in zip(batch.index.tolist(), batch.images, strict=True):
                want = decode(image(9 * (row // 5) + row % 5), 12)
                assert torch.equal(pixels, torch.from_numpy(want).permute(2, 0, 1))
        stream.close()
    assert sorted(home.iterdir()) == before and len(list((cache_folder() / "indexes").glob("*/*.index"))) == 2


def test_what_a_sample_says_about_itself(home: Path) -> None:
    write_tar(
        home / "a.tar",
        ("0.png", image(0)), ("0.json", about(label="nevus", patient_id=7, split="Validation")),
        ("1.png", image(1)), ("1.json", about(label=["b", "a"])),
        ("2.png", image(2)), ("2.cls", b"nevus\n"),
        (".hidden", b"x"), ("README", b"x"),
    )  # fmt: skip
    m = shards(home)
    assert m.labels == ("nevus", "a|b", "nevus") and m.groups == ("7", "", "") and m.splits == ("val", "train", "train")


def test_splits_from_the_names_of_the_tars(home: Path) -> None:
    for name in ("train-0", "valid_0", "TEST.0"):
        write_tar(home / f"{name}.tar", ("0.png", image(len(name))))
    assert dict(zip(shards(home).keys, shards(home).splits, strict=True)) == {
        "TEST.0.tar/0.png": "test", "train-0.tar/0.png": "train", "valid_0.tar/0.png": "val",
    }  # fmt: skip


def test_the_webdataset_librarys_own_writer(home: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="needs the extra `webdataset`")
    home.mkdir()
    with webdataset.TarWriter(str(home / "w.tar")) as out:
        for i in range(4):
            out.write({"__key__": f"s{i}", "png": image(i), "cls": i % 2, "json": {"group": f"g{i}"}})
    m = shards(home)
    assert m.labels == ("0", "1", "0", "1") and m.groups == ("g0", "g1", "g2", "g3")


def test_our_tars_without_our_index_keep_labels_groups_and_splits(home: Path, tmp_path: Path) -> None:
    ours = sharded(grouped(tmp_path / "set", 9), tmp_path / "shards")
    home.mkdir()
    for tar in (tmp_path / "shards").glob("*.tar"):
        (home / tar.name).write_bytes(tar.read_bytes())
    m = shards(home)
    assert (m.labels, m.groups, m.splits, m.sha256) == (ours.labels, ours.groups, ours.splits, ours.sha256)


def test_unusable_samples_are_counted(home: Path) -> None:
    good = [(f"{i}.png", image(i)) for i in range(6)]
    bad = [("x.png", b"no image"), ("y.json", b"{}"), ("z.png", image(9)), ("z.jpg", image(9))]
    write_tar(home / "a.tar", *good, *bad, ("j.png", image(8)), ("j.json", b"{"))
    with pytest.raises(DataError, match=r"4 of 10 images in .* are bad, more than data.max_bad=0.01"):
        shards(home)
    m = shards(home, max_bad=0.5)
    assert len(m) == 6 and Bad("a.tar/y", "0 images in one sample (json); one is needed") in m.bad
    assert [b.key for b in m.bad] == ["a.tar/x", "a.tar/y", "a.tar/z", "a.tar/j"]


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (("../a.png", b"x"), r"'../a.png' leads out of its folder"),
        (("a/../../b.png", b"x"), "leads out"),
        (("/etc/a.png", b"x"), "leads out"),
        (link(tarfile.SYMTYPE), "is a link"),
        (link(tarfile.LNKTYPE), "is a link"),
        (link(tarfile.FIFOTYPE), "a device"),
        (("a\n.png", b"x"), "control characters"),
    ],
)
def test_hostile_members_are_refused(member: tuple[str, bytes] | tarfile.TarInfo, why: str, home: Path) -> None:
    tar = write_tar(home / "a.tar", ("ok.png", image(0)), member)
    with pytest.raises(DataError, match=why) as error:
        shards(home)
    assert str(tar) in str(error.value) and error.value.exit_code == 3


def test_duplicate_keys_are_refused(home: Path) -> None:
    write_tar(home / "a.tar", ("0.png", image(0)), ("1.png", image(1)), ("0.png", image(2)))
    with pytest.raises(DataError, match=r"a.tar: the member 0.png occurs twice; keys must be unique"):
        shards(home)


@pytest.mark.parametrize("left", [100, 700, 512 + 1536, 3 * 2048 - 100, 3 * 2048, 3 * 2048 + 200])
def test_a_tar_that_is_cut_is_refused(left: int, home: Path) -> None:
    tar = write_tar(home / "a.tar", *((f"{i}.png", image(i)) for i in range(3)))
    tar.write_bytes(tar.read_bytes()[:left])
    with pytest.raises(DataError, match=r"a.tar is (no whole tar|broken or cut off)"):
        shards(home, max_bad=1.0)


def test_a_broken_header_in_the_middle_is_not_taken_for_the_end(home: Path) -> None:
    tar = write_tar(home / "a.tar", *((f"{i}.png", image(i)) for i in range(3)))
    raw = bytearray(tar.read_bytes())
    raw[2048 + 150] ^= 0xFF  # the second header's checksum
    tar.write_bytes(raw)
    with pytest.raises(DataError, match=r"a.tar is broken or cut off at byte 2048|no whole tar"):
        shards(home)


def test_a_changed_foreign_tar_is_indexed_again(home: Path) -> None:
    write_tar(home / "a.tar", ("0.png", image(0)))
    first = shards(home)
    write_tar(home / "a.tar", ("0.png", image(1)), ("1.png", image(2)))
    assert len(shards(home)) == 2
    with pytest.raises(DataError, match=r"the manifest and the shards of .* do not belong together"):
        open_stream("webdataset", first, Plan(first.rows(), 1, seed=0))


def test_places_without_shards_each_say_so(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images does not exist"):
        shards(home)
    folder = grouped(home, 3)
    with pytest.raises(DataError, match=r"no \*.tar in data.path=.*; make shards with `cass-scale shard source="):
        open_stream("webdataset", folder, Plan(folder.rows(), 1, seed=0))
    with pytest.raises(DataError, match="is a file; give the folder"):
        shards(home / "00.png")
    with pytest.raises(ConfigError, match=r"data.max_bad=2 must be a share"):
        shards(home, max_bad=2)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.tar").write_text("404 not found")
    with pytest.raises(DataError, match=r"a.tar is no whole tar"):
        shards(tmp_path / "text")


def test_what_counts_as_a_set_of_shards(home: Path, tmp_path: Path) -> None:
    assert shard_format(tmp_path / "nowhere") is None
    write_tar(home / "a.tar", ("0.png", image(0)))
    (home / ".cache").mkdir()
    assert shard_format(home) == "webdataset"
    fill(home, "class/1.png")  # a downloaded archive beside the images that came out of it
    assert shard_format(home) is None


def test_a_gzipped_tar_is_not_mistaken(home: Path) -> None:
    home.mkdir()
    with tarfile.open(home / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.png"), io.BytesIO())
    with pytest.raises(DataError, match=r"a.tar is no whole tar"):
        shards(home)
