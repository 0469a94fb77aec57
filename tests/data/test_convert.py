"""Conversion: the same bytes for the same input, tars that others can read, nothing redone, nothing overwritten."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cass_scale.data import sources
from cass_scale.data.convert import Conversion, convert, estimate, unfinished
from cass_scale.data.decode import decode
from cass_scale.data.folder import Files
from cass_scale.data.index import ShardIndex
from cass_scale.data.manifest import Bad, Manifest
from cass_scale.data.shards import shards
from cass_scale.data.shrink import Recipe, shrink
from cass_scale.data.webdataset import Shards
from cass_scale.errors import ConfigError, DataError
from tests.data.images import encode, fill, noise, tiff
from tests.data.tars import AS_IT_IS, grouped, sharded

SMALL = Recipe(16, "short", 90)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("recipe", [AS_IT_IS, SMALL, Recipe(16, "square", None)], ids=["bytes", "jpeg", "png"])
def test_same_input_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    source = grouped(tmp_path / "images", 17, side=30)
    sharded(source, tmp_path / "one", recipe, workers=1)
    sharded(source, tmp_path / "two", recipe, workers=3)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert [name for name in one if name.endswith(".tar")] == [f"shard-00000{i}.tar" for i in range(3)]


def test_nothing_of_this_machine_or_day_is_in_a_tar(tmp_path: Path) -> None:
    sharded(grouped(tmp_path / "images", 3), tmp_path / "shards")
    with tarfile.open(tmp_path / "shards/shard-000000.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [f"{i:09d}.{e}" for i in range(3) for e in ("png", "json")]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_the_index_tells_where_each_image_lies(tmp_path: Path) -> None:
    source = grouped(tmp_path / "images", 9)
    sharded(source, tmp_path / "shards")
    row = 0
    for number in range(2):
        index = ShardIndex.read(tmp_path / f"shards/shard-00000{number}.index")
        raw = (tmp_path / "shards" / index.tar).read_bytes()
        assert index.sha256 == hashlib.sha256(raw).hexdigest() and index.size == len(raw)
        for sample in index.samples:
            data = raw[sample.offset : sample.offset + sample.length]
            assert data == (source.root / source.keys[row]).read_bytes()
            assert sample.sha256 == source.sha256[row] and sample.group == source.groups[row]
            row += 1
    assert row == 9


def test_the_webdataset_library_reads_our_shards(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="needs the extra `webdataset`")
    source = grouped(tmp_path / "images", 9)
    sharded(source, tmp_path / "shards")
    urls = str(tmp_path / "shards" / "shard-{000000..000001}.tar")
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [s["__key__"] for s in found] == [f"{i:09d}" for i in range(9)]
    for row, sample in enumerate(found):
        want = Image.open(source.root / source.keys[row]).convert("RGB")
        assert np.array_equal(np.asarray(sample["png"]), np.asarray(want))
        assert sample["json"] == {
            "label": source.labels[row], "group": source.groups[row], "split": "train", "key": source.keys[row],
        }  # fmt: skip


def test_finished_shards_are_left_alone_and_broken_ones_made_again(tmp_path: Path) -> None:
    source, out = grouped(tmp_path / "images", 20), tmp_path / "shards"
    sharded(source, out, SMALL)
    want = contents(out)
    (out / "shard-000000.index").unlink()
    (out / "shard-000002.tar").write_bytes(want["shard-000002.tar"][:-1000])
    (out / "manifest.csv").unlink()
    (out / ".shard-000000.tar.77.tmp").write_bytes(b"left by a killed one")
    kept = (out / "shard-000001.tar").stat().st_mtime_ns
    with pytest.raises(DataError, match="2 of 3 shards are made; finish with the same"):
        shards(out)
    sharded(source, out, SMALL)
    assert contents(out) == want and (out / "shard-000001.tar").stat().st_mtime_ns == kept


def test_an_out_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    source, out = grouped(tmp_path / "images", 8), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds something else \(thesis.tex\); choose a new folder"):
        sharded(source, out)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        sharded(source, tmp_path / "file")
    sharded(source, tmp_path / "shards", SMALL)
    with pytest.raises(ConfigError, match="quality: 90 -> 80; size: 16 -> 18"):
        sharded(source, tmp_path / "shards", Recipe(18, "short", 80))
    with pytest.raises(ConfigError, match="source: "):
        sharded(replace(source, splits=("test",) * 8), tmp_path / "shards", SMALL)


def test_a_file_that_changes_after_the_scan_stops_it(tmp_path: Path) -> None:
    source = grouped(tmp_path / "images", 8)
    (source.root / "03.png").write_bytes(encode(noise(9, 9, 3), "PNG"))
    with pytest.raises(DataError, match=r"03.png has changed since it was scanned"):
        sharded(source, tmp_path / "shards")
    (source.root / "03.png").unlink()
    with pytest.raises(DataError, match=r"03.png: cannot be read: No such file"):
        sharded(source, tmp_path / "shards")


def test_bad_files_are_listed_in_the_manifest_of_the_shards(tmp_path: Path) -> None:
    fill(tmp_path / "images", *(f"{i}.png" for i in range(4)))
    (tmp_path / "images/empty.png").touch()
    source = sources.folder(tmp_path / "images", max_bad=0.5)
    sharded(source, tmp_path / "shards")
    found = shards(tmp_path / "shards")
    assert found.bad == (Bad("empty.png", "zero bytes long"),) and len(found) == 4


def test_the_estimate_is_near(tmp_path: Path) -> None:
    source = grouped(tmp_path / "images", 40, side=40)
    for recipe in (AS_IT_IS, SMALL):
        job = Conversion(source, Files(source), tmp_path / str(recipe.size), recipe, 7)
        guess = estimate(job, unfinished(job))
        sharded(source, job.out, recipe)
        true = sum(job.tar(i).stat().st_size for i in range(job.shards))
        assert 0.9 * true <= guess <= 1.3 * true
        assert estimate(job, unfinished(job)) == 0


def test_shards_can_be_converted_again(tmp_path: Path) -> None:
    source = grouped(tmp_path / "images", 8, side=40)
    sharded(source, tmp_path / "full")
    full = shards(tmp_path / "full")
    job = Conversion(full, Shards(full), tmp_path / "small", SMALL, 5)
    convert(job, unfinished(job), 3, lambda: None)
    sharded(source, tmp_path / "direct", SMALL, per_shard=5)
    assert shards(tmp_path / "small").sha256 == shards(tmp_path / "direct").sha256


@pytest.mark.parametrize(
    ("shape", "recipe", "want"),
    [
        ((40, 80, 3), SMALL, (16, 32)),
        ((80, 40, 3), SMALL, (32, 16)),
        ((40, 80, 3), Recipe(16, "square"), (16, 16)),
        ((10, 80, 3), SMALL, (10, 80)),
        ((10, 12, 3), Recipe(16, "square"), (16, 16)),
    ],
)
def test_sizes(shape: tuple[int, ...], recipe: Recipe, want: tuple[int, int]) -> None:
    assert decode(shrink(encode(noise(*shape), "JPEG"), recipe).data, None).shape[:2] == want


def test_what_fits_keeps_its_bytes() -> None:
    jpeg = encode(noise(16, 20, 3), "JPEG", quality=30)
    assert shrink(jpeg, SMALL) == (jpeg, "jpg")
    deep = tiff(noise(40, 40).astype(np.uint16) * 200)
    assert shrink(deep, AS_IT_IS) == (deep, "tif")


def test_grey_stays_grey_and_private_tags_go() -> None:
    small = shrink(encode(noise(64, 64), "JPEG", comment=b"Jane Doe", exif=Image.Exif()), SMALL)
    image = Image.open(io.BytesIO(small.data))
    assert image.mode == "L" and image.size == (16, 16) and "comment" not in image.info
    deep = shrink(tiff(noise(64, 64).astype(np.uint16) * 200), replace(SMALL, quality=None))
    assert deep.extension == "png" and Image.open(io.BytesIO(deep.data)).size == (16, 16)


def test_resizing_without_loss_is_what_the_stream_does(tmp_path: Path) -> None:
    """So that training on `resize=square quality=null` shards gives the batches of the folder."""
    data = encode(noise(50, 70, 3), "PNG")
    assert np.array_equal(decode(shrink(data, Recipe(16, "square", None)).data, 16), decode(data, 16))


def test_the_manifest_names_no_place(tmp_path: Path) -> None:
    sharded(grouped(tmp_path / "images", 8), tmp_path / "shards")
    assert str(tmp_path) not in (tmp_path / "shards/manifest.csv").read_text()
    (tmp_path / "shards").rename(tmp_path / "moved")
    assert shards(tmp_path / "moved").root == tmp_path / "moved"
    head = json.loads((tmp_path / "moved/shards.json").read_text())
    assert head["source"] == Manifest.read(tmp_path / "moved/manifest.csv").fingerprint()
