"""NIfTI: slices as images, the same way up and on the same scale wherever they come from."""

from __future__ import annotations

import csv
import gzip
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cass_scale import pretrain, shard, split
from cass_scale.data import parts, sources
from cass_scale.data.decode import BadImage, decode_deep
from cass_scale.data.folder import FolderStream
from cass_scale.data.parts import Part, Slices, Tile
from cass_scale.data.plan import Plan
from cass_scale.data.shards import shards
from cass_scale.errors import DataError
from tests.data.images import labels_csv
from tests.data.medical import save_nifti, volume
from tests.data.tars import open_stream, sharded
from tests.short_runs import TWO_STEPS

pytestmark = pytest.mark.usefixtures("own_cache")
TOP = 65535


def grey(root: Path, key: str) -> NDArray[np.int64]:
    return decode_deep(parts.read(root, key), None)[..., 0].astype(np.int64)


def test_keys_name_parts_and_all_else_is_a_file() -> None:
    made = [
        Part("a/b.nii.gz", "z", 12),
        Part("b.nii", "x", 0, window=(-160, 240.5)),
        Part("s.svs", tile=Tile(1, 0, 512, 256)),
        Part("scan", window=(0, 1e-05)),
    ]
    assert [one.key for one in made] == [
        "a/b.nii.gz#z=12", "b.nii#x=0,window=-160:240.5", "s.svs#level=1,x=0,y=512,size=256", "scan#window=0:1e-05",
    ]  # fmt: skip
    assert [parts.parse(one.key) for one in made] == made
    for name in ("photo#2.png", "run#lr=0.1.png", "a.nii#q=1", "a.nii#z=", "#z=1", "a.nii#z=1,level=2"):
        assert parts.parse(name) == Part(name)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL"])
def test_slices_are_the_same_however_they_are_stored(home: Path, axes: str) -> None:
    voxels = volume()
    save_nifti(home / "v.nii.gz", voxels, axes)
    low, high = np.percentile(voxels, (0.5, 99.5))
    want = np.rint(np.clip((voxels - low) / (high - low), 0, 1) * TOP)
    for axis, stored in (("x", want[11]), ("y", want[:, 11]), ("z", want[:, :, 5])):
        got = grey(home, f"v.nii.gz#{axis}={5 if axis == 'z' else 11}")
        assert np.abs(got - stored.T[::-1]).max() <= 1, "crown or front at the top, left or back at the left"


def test_one_volume_one_scale_and_no_empty_slices(home: Path) -> None:
    voxels = volume((20, 24, 12))
    save_nifti(home / "v.nii.gz", voxels)
    save_nifti(home / "w.nii", voxels * 3 + 7)
    m = sources.folder(home)
    filled = [k for k in range(12) if np.ptp(voxels[:, :, k]) > 0]
    assert 0 < len(filled) < 12
    assert m.keys == tuple(f"{name}#z={k}" for name in ("v.nii.gz", "w.nii") for k in filled)
    assert m.groups == ("v.nii.gz",) * len(filled) + ("w.nii",) * len(filled)
    assert f"{2 * (12 - len(filled))} empty slices or tiles of 2 files are left out" in m.notes
    assert m.depth == 16
    means = [grey(home, f"v.nii.gz#z={k}").max() for k in filled]
    assert means[0] < means[-1], "each slice on its own scale would reach the top"
    assert np.array_equal(grey(home, "v.nii.gz#z=6"), grey(home, "w.nii#z=6"))


def test_axis_stride_and_window(home: Path) -> None:
    save_nifti(home / "v.nii.gz", volume(), scl_slope=0.5, scl_inter=-10)
    m = sources.folder(home, slices=Slices("x", 4), window=[100, 150])
    assert m.keys == tuple(f"v.nii.gz#x={k},window=100:150" for k in (4, 8, 12, 16))
    stored = nib.load(home / "v.nii.gz").get_fdata()[8]
    assert np.abs(grey(home, m.keys[1]) - np.rint(np.clip((stored - 100) / 50, 0, 1) * TOP).T[::-1]).max() <= 1
    assert sources.folder(home, slices=Slices("x", 4)).keys[1] == "v.nii.gz#x=8"


def test_floats_masks_and_flat_files(home: Path) -> None:
    holes = volume().astype(np.float32)
    holes[5, 5, 5] = np.nan
    save_nifti(home / "float.nii", holes)
    mask = np.zeros((40, 40, 3), np.uint8)
    mask[3, 4, 1] = 1  # far less than the robust range would see
    save_nifti(home / "mask.nii.gz", mask)
    nib.save(nib.Nifti1Image(volume()[:, :, 5], np.eye(4)), home / "plane.nii")
    m = sources.folder(home)
    assert [k for k in m.keys if not k.startswith("float")] == ["mask.nii.gz#z=1", "plane.nii#z=0"]
    assert grey(home, "mask.nii.gz#z=1").max() == TOP and grey(home, "float.nii#z=5").max() == TOP


def test_labels_for_volumes_and_for_single_slices(home: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz"):
        save_nifti(home / name, volume())
    rows = [("a.nii.gz", "x", "pat1"), ("b.nii.gz#z=5", "y", ""), ("b.nii.gz#z=6", "x", ""), ("b.nii.gz#z=99", "x", "")]
    m = sources.folder(labels_csv(home, "path,label,patient_id", *rows), max_bad=0.2)
    assert set(m.labels[:-2]) == {"x"} and set(m.groups[:-2]) == {"pat1"}
    assert (m.keys[-2:], m.labels[-2:], m.groups[-2:]) == (
        ("b.nii.gz#z=5", "b.nii.gz#z=6"), ("y", "x"), ("b.nii.gz",) * 2,
    )  # fmt: skip
    assert m.bad[0].key == "b.nii.gz#z=99" and m.bad[0].why == "there is no slice z=99; there are 10 from 0 on"
    assert "1 images in the folder are not named in labels.csv and are left out" in m.notes


def test_a_slice_must_not_be_named_with_its_volume_too(home: Path) -> None:
    save_nifti(home / "a.nii.gz", volume())
    labels_csv(home, "path,label", ("a.nii.gz", "x"), ("a.nii.gz#z=5", "y"))
    with pytest.raises(DataError, match=r"labels.csv names a.nii.gz#z=5 twice, alone and with all of its file"):
        sources.folder(home)


def test_split_names_volumes_and_not_slices(home: Path, tmp_path: Path) -> None:
    for i in range(6):
        save_nifti(home / "ab"[i % 2] / f"{i}.nii.gz", volume(seed=i))
    split(f"data.path={home}", f"out={tmp_path / 'clean.csv'}", quiet=True)
    with open(tmp_path / "clean.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sorted(f"{'ab'[i % 2]}/{i}.nii.gz" for i in range(6))
    (home / "labels.csv").write_bytes((tmp_path / "clean.csv").read_bytes())
    m = sources.folder(home, slices=Slices("y", 3))
    assert {parts.file_of(k): s for k, s in zip(m.keys, m.splits, strict=True)} == {r["path"]: r["split"] for r in rows}
    assert set(m.labels) == {"a", "b"}


def damaged(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_bad_files_say_why(home: Path) -> None:
    good = save_nifti(home / "good.nii.gz", volume()).read_bytes()
    plain = save_nifti(home / "plain.nii", volume()).read_bytes()
    save_nifti(home / "time.nii.gz", np.stack([volume()] * 3, -1))
    save_nifti(home / "blank.nii.gz", np.zeros((8, 8, 4), np.int16))
    save_nifti(home / "colour.nii", np.zeros((4, 4, 4), np.complex64))
    damaged(home / "cut.nii", plain[:-10])
    damaged(home / "cut.nii.gz", good[:-40])
    whole = bytearray(gzip.decompress(good))
    damaged(home / "checksum.nii.gz", good[:-8] + bytes([good[-8] ^ 1]) + good[-7:])
    whole[42:48] = np.array([32000, 32000, 3], "<i2").tobytes()  # dim[1..3]
    damaged(home / "lie.nii.gz", gzip.compress(bytes(whole)))
    whole[42:48] = np.array([4000, 4000, 300], "<i2").tobytes()
    whole[70:74] = np.array([64, 64], "<i2").tobytes()  # float64
    damaged(home / "bomb.nii.gz", gzip.compress(bytes(whole)))
    whole[42:48] = np.array([400, 400, 300], "<i2").tobytes()
    damaged(home / "claim.nii", bytes(whole))
    damaged(home / "empty.nii", b"")
    m = sources.folder(home, max_bad=0.9)
    whys = {bad.key: bad.why for bad in m.bad}
    assert set(parts.file_of(key) for key in m.keys) == {"good.nii.gz", "plain.nii"}
    for key, why in {
        "time.nii.gz": "a volume of 4 dimensions (20, 24, 10, 3); save each 3-D volume as a file of its own",
        "blank.nii.gz": "no slice or tile of it shows anything",
        "colour.nii": "voxels of type complex64; whole or real numbers are expected",
        "cut.nii": "cut off: (20, 24, 10) voxels take 9952 bytes, the file has 9942",
        "cut.nii.gz": "cannot be decoded: Compressed file ended before",
        "checksum.nii.gz": "cannot be decoded: CRC check failed",
        "lie.nii.gz": "32000x32000 is over",
        "bomb.nii.gz": "a volume of 35 GiB, refused before decoding",
        "claim.nii": "cut off: (400, 400, 300) voxels take 384000352 bytes, the file has 9952",
        "empty.nii": "cannot be decoded: ",
    }.items():
        assert whys.pop(key).startswith(why), key
    assert not whys


def test_what_is_not_installed_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_nifti(home / "v.nii.gz", volume())
    sys.modules.pop("cass_scale.data.volumes", None)
    monkeypatch.delattr(sys.modules["cass_scale.data"], "volumes", raising=False)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(DataError, match=r"v.nii.gz: .*nibabel.*: `pip install 'cass-scale\[medical\]'`"):
        sources.folder(home)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["v.nii.gz", "v.nii"])
def test_a_hundred_flipped_bytes_each_end_in_a_message(home: Path, name: str) -> None:
    data = save_nifti(home / name, volume((8, 9, 6))).read_bytes()
    numbers = np.random.default_rng(0)
    for i in range(100):
        broken = bytearray(data)
        at = int(numbers.integers(0, len(data) if i % 2 else 300))
        broken[at] ^= int(numbers.integers(1, 256))
        (home / name).write_bytes(bytes(broken))
        try:
            assert all(data is None or data[:4] == b"\x89PNG" for _, data in parts.images(home, name, parts.Cut()))
        except BadImage as error:
            assert str(error)


def test_a_volume_that_vanishes_or_changes_is_an_error(home: Path) -> None:
    save_nifti(home / "v.nii.gz", volume())
    m = sources.folder(home)
    stream = open_stream("folder", m, Plan(m.rows(), 2, seed=0), cache_bytes=0)
    assert len(list(stream.epoch(0))) == len(m) // 2
    save_nifti(home / "v.nii.gz", volume()[:, :, :3])
    with pytest.raises(DataError, match=r"v.nii.gz#z=\d: there is no slice .*; it was good when it was scanned"):
        list(stream.epoch(0))
    (home / "v.nii.gz").unlink()
    with pytest.raises(DataError, match=r"cannot be read: No such file"):
        list(stream.epoch(0))


def test_a_volume_is_read_once_for_all_its_slices(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("v.nii.gz", "w.nii.gz"):
        save_nifti(home / name, volume())
    opened: list[Path] = []
    plain = parts._open
    monkeypatch.setattr(parts, "_open", lambda path: opened.append(path) or plain(path))
    m = sources.folder(home)
    assert len(opened) == 2
    sharded(m, home.parent / "shards", workers=4)
    assert len(opened) <= 5, "threads that want the same volume wait for it"
    stream = FolderStream(m, Plan(m.rows(), 2, seed=0, shuffle=False), size=12, workers=0, device="cpu", cache_bytes=0)
    opened.clear()
    assert len(list(stream.epoch(0))) > 4 and len(opened) <= 2


def test_volumes_become_shards_and_train(home: Path, tmp_path: Path) -> None:
    for i in range(2):
        save_nifti(home / f"{i}.nii.gz", volume((40, 44, 12), seed=i))
    words = ("data.slices.axis=y", "data.slices.stride=2")
    record = shard(f"source={home}", *words, f"out={tmp_path / 'shards'}", "size=null", quiet=True)
    made = shards(tmp_path / "shards")
    source = sources.folder(home, slices=Slices("y", 2))
    assert record["images"] == len(made) and made.depth == 16 and made.groups == source.groups
    assert sum(made.sizes) < 0.8 * sum(source.sizes), "shards are packed, single slices are not"
    plan = Plan(source.rows(), 4, seed=0)
    streams = (open_stream("folder", source, plan), open_stream("webdataset", made, plan))
    for one, two in zip(*(stream.epoch(0) for stream in streams), strict=True):
        assert one.images.dtype == torch.uint16 and torch.equal(one.images, two.images)
    record = pretrain(*TWO_STEPS, f"data.path={tmp_path / 'shards'}", f"run.dir={tmp_path / 'run'}", quiet=True)
    assert record["status"] == "done" and record["steps"] == 2


def test_real_volumes(shared: Path) -> None:
    place = shared / "data/volumes3d"
    if not place.is_dir():
        pytest.skip("needs volumes3d in the folder of real images")
    m = sources.folder(place, slices=Slices("z", 5))
    files = {parts.file_of(key) for key in m.keys}
    assert len(files) == 6 and not m.bad and m.depth == 16 and {"CT", "MR", "mask"} <= set(m.labels)
    lung = [k for k in m.keys if k.startswith("ct_lung")]
    pixels = grey(place, lung[len(lung) // 2])
    assert pixels.shape == (256, 256) and len(np.unique(pixels)) > 1000
