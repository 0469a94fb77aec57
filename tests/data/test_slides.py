"""Whole slides: tiles with tissue as images, by a real OpenSlide on a pyramid that tifffile writes."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cass_scale.data import parts, sources
from cass_scale.data.parts import Tiles
from cass_scale.data.plan import Plan
from cass_scale.errors import DataError
from tests.data.images import fill, labels_csv
from tests.data.medical import slide
from tests.data.tars import open_stream, sharded

pytest.importorskip("openslide", reason="needs the extra `wsi`")
pytestmark = pytest.mark.usefixtures("own_cache")
SMALL = Tiles(size=128)


def tile(root: Path, key: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(parts.read(root, key))))


def test_tiles_with_tissue_are_the_images(home: Path) -> None:
    pixels = slide(home / "a.svs")
    m = sources.folder(home, tiles=SMALL)
    assert m.keys == tuple(
        f"a.svs#level=0,x={x},y={y},size=128" for y in range(0, 512, 128) for x in (0, 128, 256)
    )  # the third column is half tissue
    assert set(m.groups) == {"a.svs"} and m.depth == 8
    assert "8 empty slices or tiles of 1 files are left out" in m.notes
    assert np.array_equal(tile(home, m.keys[4]), pixels[128:256, 128:256])
    assert len(sources.folder(home, tiles=Tiles(size=128, tissue=0.6))) == 8
    assert len(sources.folder(home, tiles=Tiles(size=128, tissue=0))) == 20


def test_levels_and_resolutions(home: Path) -> None:
    pixels = slide(home / "a.svs", resolution=(20_000, 20_000), resolutionunit="CENTIMETER")  # 0.5 micrometres
    m = sources.folder(home, tiles=Tiles(size=64, level=1))
    assert m.keys[1] == "a.svs#level=1,x=128,y=0,size=64"
    assert np.array_equal(tile(home, m.keys[1]), pixels[:128:2, 128:256:2])
    assert sources.folder(home, tiles=Tiles(size=64, mpp=1.0)).keys == m.keys
    finer = sources.folder(home, tiles=Tiles(size=64, mpp=0.75))
    assert finer.keys[1] == "a.svs#level=0,x=96,y=0,size=96", "read from the finer level, over the same field"


def test_groups_labels_and_shards(home: Path, tmp_path: Path) -> None:
    for name in ("a.svs", "b.svs"):
        slide(home / name)
    m = sources.folder(labels_csv(home, "path,label,patient_id", ("a.svs", "x", "p1"), ("b.svs", "y", "")), tiles=SMALL)
    assert set(zip(m.labels, m.groups, strict=True)) == {("x", "p1"), ("y", "b.svs")}
    made = sharded(m, tmp_path / "shards")
    assert sum(made.sizes) < sum(m.sizes)
    plan = Plan(m.rows(), 4, seed=0)
    for workers in (0, 2):
        streams = (open_stream("folder", m, plan, workers), open_stream("webdataset", made, plan, workers))
        for one, two in zip(*(stream.epoch(0) for stream in streams), strict=True):
            assert torch.equal(one.images, two.images)
        for stream in streams:
            stream.close()


def test_pyramids_that_are_called_tif(home: Path) -> None:
    slide(home / "a.tif")
    with pytest.raises(DataError, match=r"a.tif: a multi-page TIFF of 3 images; .* data.tiles.tiff=true"):
        sources.folder(home)
    assert len(sources.folder(home, tiles=Tiles(size=128, tiff=True))) == 12


def test_bad_slides_say_why(home: Path) -> None:
    slide(home / "good.svs")
    data = (home / "good.svs").read_bytes()
    (home / "text.svs").write_bytes(b"no slide")
    (home / "cut.svs").write_bytes(data[: len(data) // 2])
    slide(home / "glass.svs", 64, 64, levels=1)
    whys = {bad.key: bad.why for bad in sources.folder(home, max_bad=0.9, tiles=SMALL).bad}
    assert whys["text.svs"].startswith("cannot be decoded: Unsupported or missing image file")
    assert whys["cut.svs"].startswith("cannot be decoded: ")
    assert whys["glass.svs"] == "no slice or tile of it shows anything"
    for tiles, why in (
        (Tiles(size=128, level=7), "a slide of 3 levels has no level 7 .data.tiles.level."),
        (Tiles(size=128, mpp=1.0), "a slide that does not tell its resolution; give data.tiles.level instead"),
        (Tiles(size=20_000), "20000x20000 is over .* pixels, refused before decoding"),
    ):
        with pytest.raises(DataError, match=f"good.svs: {why}"):
            sources.folder(home, tiles=tiles)


def test_what_is_not_installed_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide(fill(home) / "a.svs")
    sys.modules.pop("cass_scale.data.slides", None)
    monkeypatch.delattr(sys.modules["cass_scale.data"], "slides", raising=False)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(DataError, match=r"a.svs: .*openslide.*: `pip install 'cass-scale\[wsi\]'`"):
        sources.folder(home)
