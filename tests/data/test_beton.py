"""One .beton: the bytes FFCV would write, the same every time, whenever the conversion was killed."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cass_scale.data import beton, sources
from cass_scale.data.convert import convert, estimate, unfinished
from cass_scale.data.convert_beton import BetonConversion
from cass_scale.data.decode import decode, read_image
from cass_scale.data.folder import Files
from cass_scale.data.manifest import Bad, Manifest
from cass_scale.data.shards import shards
from cass_scale.data.shrink import Recipe
from cass_scale.errors import ConfigError, DataError
from tests.data.images import encode, fill, noise
from tests.data.tars import AS_IT_IS, SQUARE, betoned, grouped, sharded

pytest.importorskip("ffcv", reason="needs the extra `ffcv`")

SMALL = Recipe(16, "square", 90)
KEPT: list[Any] = []  # loaders of FFCV: when one is collected, numba complains on the console
MODES: list[dict[str, Any]] = [{"mode": "raw"}, {"mode": "jpg"}, {"mode": "mixed", "jpg_share": 0.3}]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def stored(folder: Path) -> list[bytes]:
    """What lies in the beton for each row, by FFCV's own reading of its tables."""
    from ffcv.reader import Reader

    file, raw = Reader(str(folder / "images.beton")), (folder / "images.beton").read_bytes()
    places = {int(sample): (int(at), int(length)) for sample, at, length in file.alloc_table}
    assert [int(at) for at in file.metadata["f0"]["data_ptr"]] == [places[i][0] for i in range(file.num_samples)]
    return [raw[at : at + length] for at, length in (places[i] for i in range(file.num_samples))]


@pytest.mark.parametrize("how", MODES, ids=lambda how: how["mode"])
def test_same_input_same_bytes(how: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the threads and the parts."""
    source = grouped(tmp_path / "images", 17, side=30)
    betoned(source, tmp_path / "one", SMALL, per_shard=7, workers=1, **how)
    betoned(source, tmp_path / "two", SMALL, per_shard=4, workers=3, **how)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert list(one) == ["images.beton", "manifest.csv", "shards.json"]
    made = json.loads(one["shards.json"])["made"]
    assert made["sha256"] == hashlib.sha256(one["images.beton"]).hexdigest()
    assert made["bytes"] == len(one["images.beton"])


def test_the_file_is_the_one_that_ffcv_writes(tmp_path: Path) -> None:
    """Several pages of it. With one process: with more, FFCV's pages come in the order in which they are ready."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    source, side = grouped(tmp_path / "images", 11), 420
    betoned(source, tmp_path / "ours", Recipe(side, "square"))
    pixels = [read_image(source.root / key, side) for key in source.keys]
    rows = list(zip(pixels, source.label_tensor().tolist(), strict=True))
    theirs = tmp_path / "theirs.beton"
    page = beton.MIN_PAGE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beton, "page_size", lambda raw: page)
        betoned(source, tmp_path / "small_pages", Recipe(side, "square"))
    DatasetWriter(str(theirs), {"image": RGBImageField(), "label": IntField()}, page, 1).from_indexed_dataset(rows)
    assert theirs.read_bytes() == (tmp_path / "small_pages/images.beton").read_bytes()
    assert theirs.stat().st_size > 4 * page
    assert stored(tmp_path / "ours") == stored(tmp_path / "small_pages") == [p.tobytes() for p in pixels]


@pytest.mark.parametrize("how", MODES, ids=lambda how: how["mode"])
def test_row_for_row_what_the_manifest_says(how: dict[str, Any], tmp_path: Path) -> None:
    source = grouped(tmp_path / "images", 20, side=30)
    made = betoned(source, tmp_path / "out", SMALL, **how)
    assert (made.keys, made.labels, made.groups, made.splits) == (
        source.keys, source.labels, source.groups, source.splits,
    )  # fmt: skip
    found = stored(tmp_path / "out")
    assert made.sha256 == tuple(hashlib.sha256(data).hexdigest() for data in found)
    assert made.sizes == tuple(map(len, found))
    pixels = [read_image(source.root / key, 16) for key in source.keys]
    jpgs = [data[:2] == b"\xff\xd8" for data in found]
    assert sum(jpgs) == {"raw": 0, "jpg": 20, "mixed": 6}[how["mode"]]
    assert all(jpg or data == image.tobytes() for jpg, data, image in zip(jpgs, found, pixels, strict=True))
    assert how["mode"] != "mixed" or not any(a and b for a, b in pairwise(jpgs)), "spread evenly"


@pytest.mark.parametrize("how", MODES, ids=lambda how: how["mode"])
def test_ffcv_reads_it_alone(how: dict[str, Any], tmp_path: Path) -> None:
    from ffcv.loader import Loader, OrderOption

    source = grouped(tmp_path / "images", 20, side=30)
    grey = encode(noise(30, 30), "PNG")
    (source.root / "03.png").write_bytes(grey)
    source = replace(source, sha256=(*source.sha256[:3], hashlib.sha256(grey).hexdigest(), *source.sha256[4:]))
    betoned(source, tmp_path / "out", SMALL, **how)
    want = [decode(data, None) if data[:2] == b"\xff\xd8" else _square(data) for data in stored(tmp_path / "out")]
    paged = {"os_cache": False, "order": OrderOption.QUASI_RANDOM} if how["mode"] == "mixed" else {}
    loader = Loader(str(tmp_path / "out/images.beton"), 6, num_workers=1, drop_last=False, **paged)
    KEPT.append(loader)
    order, plain = [], loader.traversal_order.sample_order
    loader.traversal_order.sample_order = lambda epoch: order.extend(found := plain(epoch)) or found
    images, labels = (np.concatenate(parts) for parts in zip(*((a.clone(), b.clone()) for a, b in loader), strict=True))
    assert sorted(order) == list(range(20))
    off = [np.abs(image.astype(int) - want[row]).max() for row, image in zip(order, images, strict=True)]
    assert max(off) <= (0 if how["mode"] == "raw" else 8), "FFCV's DCT is a fast one"
    assert labels[:, 0].tolist() == [source.label_tensor()[int(row)] for row in order]


def _square(data: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, np.uint8).reshape(16, 16, 3)


def test_labels_that_are_no_single_class_are_minus_one(tmp_path: Path) -> None:
    from ffcv.reader import Reader

    fill(tmp_path / "plain", "0.png", "1.png")
    betoned(sources.folder(tmp_path / "plain"), tmp_path / "a")
    source = grouped(tmp_path / "images", 3)
    several = replace(source, labels=("a|b", "a", ""), multilabel=True)
    betoned(several, tmp_path / "b")
    assert Reader(str(tmp_path / "a/images.beton")).metadata["f1"].tolist() == [-1, -1]
    assert Reader(str(tmp_path / "b/images.beton")).metadata["f1"].tolist() == [-1, -1, -1]


def test_one_size_only(tmp_path: Path) -> None:
    fill(tmp_path / "same", "0.png", "1.png")
    for i in range(3):
        (tmp_path / f"same/{i}.png").write_bytes(encode(noise(20, 30, 3, seed=i), "PNG"))
    made = betoned(sources.folder(tmp_path / "same"), tmp_path / "a", AS_IT_IS)
    assert made.sizes == (1800,) * 3 and "images stored as 30 x 20 px, bare pixels" in made.notes
    (tmp_path / "same/2.png").write_bytes(encode(noise(30, 20, 3), "PNG"))
    source = sources.folder(tmp_path / "same")
    for recipe, second in ((AS_IT_IS, "20 x 30"), (Recipe(16, "short"), "16 x 24")):
        with pytest.raises(DataError, match=rf"2.png comes to {second} px and .*0.png to .* batches of one size only"):
            betoned(source, tmp_path / "b" / str(recipe.size), recipe)
    assert betoned(source, tmp_path / "c", SQUARE).sizes == (432,) * 3


def test_sides_over_what_the_format_can_count(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.png").write_bytes(encode(noise(1, 70000), "PNG"))
    with pytest.raises(DataError, match="FFCV holds images of up to 65535 px, these have 70000; give a size"):
        betoned(sources.folder(tmp_path / "images"), tmp_path / "out", AS_IT_IS)


def test_grey_and_deep_images(tmp_path: Path) -> None:
    """What the folder's decoder makes of them; a grey JPEG has one channel."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(encode(noise(40, 40).astype(np.uint16) * 200, "PNG"))
    source = sources.folder(tmp_path / "images")
    betoned(source, tmp_path / "raw", SMALL)
    assert stored(tmp_path / "raw") == [read_image(source.root / "a.png", 16).tobytes()]
    betoned(source, tmp_path / "jpg", SMALL, mode="jpg")
    assert Image.open(io.BytesIO(stored(tmp_path / "jpg")[0])).mode == "L"


def test_bad_files_and_changed_files(tmp_path: Path) -> None:
    fill(tmp_path / "images", *(f"{i}.png" for i in range(4)))
    (tmp_path / "images/empty.png").touch()
    source = sources.folder(tmp_path / "images", max_bad=0.5)
    betoned(source, tmp_path / "out")
    assert shards(tmp_path / "out").bad == (Bad("empty.png", "zero bytes long"),)
    (tmp_path / "images/2.png").write_bytes(encode(noise(9, 9, 3), "PNG"))
    with pytest.raises(DataError, match=r"2.png has changed since it was scanned"):
        betoned(source, tmp_path / "other")
    (tmp_path / "images/0.png").unlink()
    with pytest.raises(DataError, match=r"0.png: cannot be read: No such file.*it was good when"):
        betoned(source, tmp_path / "third", AS_IT_IS)


def test_another_conversion_in_the_folder_is_refused(tmp_path: Path) -> None:
    source, out = grouped(tmp_path / "images", 8), tmp_path / "out"
    betoned(source, out, SMALL)
    for recipe, how, said in (
        (Recipe(18, "square", 90), {}, "size: 16 -> 18"),
        (SMALL, {"mode": "jpg"}, "mode: raw -> jpg; quality: None -> 90"),
    ):
        with pytest.raises(ConfigError, match=said):
            betoned(source, out, recipe, **how)
    with pytest.raises(ConfigError, match="format: ffcv -> webdataset"):
        sharded(source, out, SMALL)
    before = (out / "images.beton").stat().st_mtime_ns
    betoned(source, out, replace(SMALL, quality=50))  # decides nothing about bare pixels
    assert (out / "images.beton").stat().st_mtime_ns == before, "finished before"
    (out / "images.beton").write_bytes(b"short")
    betoned(source, out, SMALL)
    assert (out / "images.beton").stat().st_size > 1 << 20


def test_the_estimate_is_near(tmp_path: Path) -> None:
    source = grouped(tmp_path / "images", 40, side=40)
    for how in MODES:
        job = BetonConversion(source, Files(source), tmp_path / how["mode"], Recipe(200, "square"), 7, **how)
        guess = estimate(job, unfinished(job))
        convert(job, unfinished(job), 2, lambda: None)
        true = job.size() - beton.first_page(len(source), job.page)  # what is before it is a hole
        assert 0.7 * true <= guess <= 1.4 * true
        assert estimate(job, unfinished(job)) == 0


def test_a_disk_that_fills_up_keeps_what_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, calls, plain = grouped(tmp_path / "images", 14), tmp_path / "out", [], os.fsync
    betoned(source, tmp_path / "whole", per_shard=5)

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 3:  # two for a part and its entry in the journal
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"out=.* cannot be written: No space left on device; finished shards"):
            betoned(source, out, per_shard=5)
    assert unfinished(BetonConversion(source, Files(source), out, SQUARE, 5)) == [1, 2]
    betoned(source, out, per_shard=5)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_kill_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL before each step that reaches the disk, one run after the other; what is in the journal stays."""
    source = grouped(tmp_path / "images", 14, side=30)
    betoned(source, tmp_path / "whole", SMALL, per_shard=5, mode="mixed")
    want, moment, resumed = contents(tmp_path / "whole"), 0, set()
    while (out := tmp_path / str(moment)) and _killed_before(moment, source, out):
        job = _job(source, out)
        kept = [shard for shard in range(job.shards) if job.index(shard).exists()]
        todo, done = unfinished(job), []
        assert todo == [shard for shard in range(job.shards) if shard not in kept] or job.whole
        convert(job, todo, 1, lambda done=done: done.append(1))
        assert len(done) == sum(len(job.rows(shard)) for shard in todo)
        assert contents(out) == want
        resumed.add(len(todo))
        moment += 1
    assert moment > 25 and resumed == {0, 1, 2, 3}
    assert contents(out) == want


def _job(source: Manifest, out: Path) -> BetonConversion:
    return BetonConversion(source, Files(source), out, SMALL, 5, mode="mixed")


def _killed_before(moment: int, source: Manifest, out: Path) -> bool:
    """Convert in a process of its own that kills itself before the step of that number; whether it came so far."""
    child = os.fork()
    if child == 0:
        left = [moment]

        def deadly(work: Any) -> Any:
            def step(*arguments: Any, **options: Any) -> Any:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return work(*arguments, **options)

            return step

        os.fsync, os.replace, Path.unlink = deadly(os.fsync), deadly(os.replace), deadly(Path.unlink)  # type: ignore[method-assign]
        job = _job(source, out)
        convert(job, unfinished(job), 1, deadly(lambda: None))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL
