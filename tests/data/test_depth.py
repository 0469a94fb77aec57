"""Sixteen bits: kept from file to device, windowed there, kept by shards; eight where some image has no more."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from cass_scale import evaluate, pretrain, shard
from cass_scale.cli import build, compose_config
from cass_scale.colour import to_unit
from cass_scale.data import png, sources
from cass_scale.data.decode import decode, decode_deep
from cass_scale.data.manifest import Manifest
from cass_scale.data.noise import NoiseStream
from cass_scale.data.plan import Plan
from cass_scale.data.shards import shards
from cass_scale.data.shrink import Recipe, shrink
from cass_scale.data.window import Window, read_window, stretch
from cass_scale.errors import ConfigError
from cass_scale.types import Crop, ViewSpec
from cass_scale.verbs import wire
from cass_scale.verbs.task import other_data
from cass_scale.verbs.wire import DEEP
from cass_scale.views import make_views
from tests.data.images import encode, fill, labels_csv, noise, png16, tiff
from tests.data.tars import open_stream, sharded, write_tar
from tests.short_runs import TWO_STEPS

pytestmark = pytest.mark.usefixtures("own_cache")
TOP = 65535


def deep(height: int = 40, width: int = 48, *channels: int, seed: int = 0, high: int = 4096) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, high, (height, width, *channels)).astype(np.uint16)


def fill_deep(folder: Path, number: int) -> Path:
    """PNG and TIFF of 12 bits in 16, of two classes, each of another brightness."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(number):
        pixels = deep(40, 48, seed=i, high=1500 + 200 * i)
        name = f"{i:02d}.{'png' if i % 2 else 'tif'}"
        (folder / name).write_bytes(encode(pixels, "PNG") if i % 2 else tiff(pixels))
        rows.append((name, "ab"[i % 2], "train" if i < number - 4 else ("val", "test")[i < number - 2]))
    return labels_csv(folder, "path,label,split", *rows)


# What decoding keeps


RGB = deep(20, 30, 3)
KEPT = {
    "png grey": (encode(deep(), "PNG"), deep()),
    "png rgb": (png16(RGB), RGB),
    "tiff grey": (tiff(deep()), deep()),
    "tiff white is zero": (tiff(deep(), photometric="miniswhite"), TOP - deep()),
    "tiff rgb": (tiff(RGB, photometric="rgb"), RGB),
    "tiff upside down": (tiff(RGB, photometric="rgb", extratags=[(274, "H", 1, 4, True)]), RGB[::-1]),
    "tiff turned": (tiff(RGB, photometric="rgb", extratags=[(274, "H", 1, 6, True)]), np.rot90(RGB, -1)),
    "tiff signed": (tiff(deep().astype(np.int16) - 1000), deep() + 32768 - 1000),
}


@pytest.mark.parametrize("name", KEPT)
def test_sixteen_bits_are_kept_exactly(name: str) -> None:
    data, want = KEPT[name]
    got = decode_deep(data, None)
    assert got.dtype == np.uint16 and got.flags.c_contiguous and got.flags.writeable
    assert np.array_equal(got, np.stack([want] * 3, -1) if want.ndim == 2 else want)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int32])
def test_what_does_not_fit_fills_the_range(kind: type[Any]) -> None:
    values = deep(high=2000).astype(kind) - kind(500)
    wide = values.astype(np.float64)
    want = np.rint((wide - wide.min()) / (wide.max() - wide.min()) * TOP)
    assert np.array_equal(decode_deep(tiff(values), None)[..., 0], want)


def test_eight_bits_as_sixteen_are_the_same_picture() -> None:
    data = encode(noise(20, 30, 3), "PNG")
    assert np.array_equal(decode_deep(data, 16), decode(data, 16).astype(np.uint16) * 257)


def test_squashing_is_the_filter_of_eight_bits() -> None:
    small = np.abs(
        decode_deep(png16(RGB), 16).astype(float) / 16 - decode(encode((RGB // 16).astype(np.uint8), "PNG"), 16)
    )
    assert small.max() < 1.6 and decode_deep(encode(deep(), "PNG"), 16).shape == (16, 16, 3)


# PNG written by hand


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "pixels", [deep(300, 200), deep(9, 11, 3), noise(7, 5), noise(200, 300, 3)], ids=lambda x: f"{x.dtype}-{x.shape}"
)
def test_png_is_read_by_everybody(pixels: NDArray[Any], packed: bool) -> None:
    data = png.encode(pixels, packed=packed)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        read = np.asarray(image)
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        read = decode_deep(data, None)  # Pillow keeps the high bytes only
    assert np.array_equal(read, pixels)


def test_unpacked_bytes_hang_on_no_compressor() -> None:
    digest = hashlib.sha256(png.encode(np.arange(70_000, dtype=np.uint16).reshape(200, 350), packed=False)).hexdigest()
    assert digest == "75d7156abcbb286cfeee38f3bffd79b4673aa9ff03ae17ebd5987d3b83bd0808"
    smooth = np.add.outer(np.arange(200), np.arange(300)).astype(np.uint16) * 50
    assert len(png.encode(smooth, packed=True)) < smooth.nbytes / 10


# The window, on the device


def images(*values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.stack([v] * 3) for v in values]))


NOT_OWN = torch.tensor([False, False])


def test_auto_is_each_images_own_range() -> None:
    x = images(deep(seed=1), deep(seed=2, high=900) + np.uint16(100))
    out = stretch(x, None, NOT_OWN)
    for one, shown in zip(x.numpy().astype(float), out.numpy(), strict=True):
        assert np.abs(shown - (one - one.min()) / (one.max() - one.min()) * TOP).max() <= 0.51
    flat = images(np.full((4, 4), 900, np.uint16), np.full((4, 4), 0, np.uint16))
    assert not stretch(flat, None, NOT_OWN).any()
    assert torch.equal(stretch(x, None, ~NOT_OWN), x), "DICOM and volumes come with a scale"


def test_fixed_and_percentile_windows() -> None:
    x = images(deep(seed=1), deep(seed=2))
    out = stretch(x, Window(1000, 3000), torch.tensor([False, True])).numpy()
    want = np.clip((x[0].numpy() - 1000.0) / 2000, 0, 1) * TOP
    assert np.abs(out[0] - want).max() <= 0.51 and np.array_equal(out[1], x[1].numpy())
    out = stretch(x, Window(2, 90, percent=True), torch.tensor([False, True])).numpy()
    for one, shown in zip(x.numpy().astype(float), out, strict=True):
        low, high = np.percentile(one, (2, 90), method="inverted_cdf")
        assert np.abs(shown - np.clip((one - low) / (high - low), 0, 1) * TOP).max() <= 0.51
    every = stretch(x, Window(0, 100, percent=True), NOT_OWN)
    assert torch.equal(every, stretch(x, None, NOT_OWN))


def test_an_image_is_shown_the_same_alone_and_in_a_batch() -> None:
    x = images(deep(seed=1), deep(seed=2))
    for window in (None, Window(10, 3000.5), Window(1, 99, percent=True)):
        both = stretch(x, window, NOT_OWN)
        assert torch.equal(both[1:], stretch(x[1:], window, NOT_OWN[1:]))


@pytest.mark.gpu
def test_on_a_gpu_the_same_bits() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x = images(deep(seed=1), deep(seed=2))
    for window in (None, Window(10, 3000.5), Window(1, 99, percent=True)):
        there = stretch(x.cuda(), window, NOT_OWN.cuda())
        assert there.is_cuda and torch.equal(there.cpu(), stretch(x, window, NOT_OWN))
        assert torch.equal(to_unit(there).cpu(), to_unit(there.cpu()))


@pytest.mark.parametrize("value", ["window", [1], [3, 1], [1, "2%"], ["0%", "101%"], [0, float("inf")], 5, None])
def test_other_windows_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"data.window=.*: auto, \[100,3000\] \(values\) or \[1%,99%\]"):
        read_window(value)


def test_windows_as_a_person_types_them(tmp_path: Path) -> None:
    def window(text: str) -> Any:
        return read_window(
            compose_config("pretrain", [f"data.path={tmp_path}", f"data.window={text}"])["data"]["window"]
        )

    assert window("[1%,99.5%]") == Window(1, 99.5, True) and window("[-160,240]") == Window(-160, 240)
    assert window("auto") is None
    for one in (Window(1, 99.5, True), Window(-160, 240)):
        assert read_window(one.value) == one
    with pytest.raises(ConfigError, match=r"data.window=\[3, 1\]: auto, two values"):
        pretrain(f"data.path={tmp_path}", "data.window=[3,1]", quiet=True)


def test_a_narrow_window_keeps_what_eight_bits_lose(home: Path) -> None:
    """Soft tissue is about a tenth of the range of a CT: 8 bits leave 26 greys of it, 16 bits all of them."""
    home.mkdir()
    ramp = np.tile(np.linspace(0, TOP, 64 * 64).reshape(64, 64), (1, 1)).astype(np.uint16)
    (home / "ramp.png").write_bytes(encode(ramp, "PNG"))
    m = sources.folder(home, window=[30_000, 36_554])
    (batch,) = open_stream("folder", m, Plan(m.rows(), 1, seed=0), size=64).epoch(0)
    assert batch.images.dtype == torch.uint16
    plain = ViewSpec((Crop(64),))
    (view,) = make_views(batch.images, plain, batch.index, seed=0, epoch=0)
    assert view.min() == 0 and view.max() == 1
    assert len(view.unique()) > 256
    eight = torch.from_numpy(decode((home / "ramp.png").read_bytes(), 64)).permute(2, 0, 1)[None]
    (view,) = make_views(eight, plain, batch.index, seed=0, epoch=0)
    low, high = 30_000 / TOP, 36_554 / TOP
    assert len(view.clamp(low, high).unique()) < 30


# Sets and streams


def test_a_set_is_deep_when_all_its_images_are(home: Path) -> None:
    fill_deep(home, 6)
    (home / "labels.csv").unlink()
    m = sources.folder(home)
    assert m.depth == 16 and "6 images of 16 bit" in m.notes
    assert sources.folder(home, window=["1%", "99%"]).window == Window(1, 99, True)
    m.write(home.parent / "manifest.csv")
    assert Manifest.read(home.parent / "manifest.csv") == m
    fill(home, "photo.png")
    mixed = sources.folder(home)
    assert mixed.depth == 8 and "6 images of 16 bit; read at 8 bit, since 1 images have no more" in mixed.notes
    (batch,) = open_stream("folder", mixed, Plan(mixed.rows(), 7, seed=0)).epoch(0)
    assert batch.images.dtype == torch.uint8
    with pytest.raises(ConfigError, match=r"data.window: images has images of 8 bit"):
        sources.folder(home, window=[0, 4000])


def test_manifests_from_before_are_read_at_eight_bit(home: Path, tmp_path: Path) -> None:
    sources.folder(fill_deep(home, 3)).write(tmp_path / "m.csv")
    first, rest = (tmp_path / "m.csv").read_text().split("\n", 1)
    head = json.loads(first.removeprefix("# "))
    del head["depth"], head["window"]
    (tmp_path / "m.csv").write_text(f"# {json.dumps(head)}\n{rest}")
    found = Manifest.read(tmp_path / "m.csv")
    assert found.depth == 8 and found.window is None


@pytest.mark.parametrize("window", ["auto", [200, 1800], ["1%", "99%"]])
def test_all_streams_give_the_same_sixteen_bits(home: Path, tmp_path: Path, window: Any) -> None:
    folder = sources.folder(fill_deep(home, 12), window=window)
    made = sharded(folder, tmp_path / "shards")
    assert made.depth == 16 and made.window == folder.window == shards(tmp_path / "shards").window
    plan = Plan(folder.rows(), 4, seed=0)
    found = []
    for kind in DEEP:
        for workers, cache_bytes in ((0, 0), (0, 1 << 20), (2, 1 << 20)):
            stream = open_stream(kind, made if kind == "webdataset" else folder, plan, workers, cache_bytes=cache_bytes)
            assert stream.cached == bool(cache_bytes)
            for _ in range(2):
                found.append(torch.cat([batch.images for batch in stream.epoch(1)]))
            stream.close()
    assert all(one.dtype == torch.uint16 and torch.equal(one, found[0]) for one in found)
    assert to_unit(found[0]).std() > 0.05


def test_other_windows_of_the_same_shards(home: Path, tmp_path: Path) -> None:
    made = sharded(sources.folder(fill_deep(home, 4), window=[200, 1800]), tmp_path / "shards")
    again = shards(tmp_path / "shards", window=["0%", "100%"])
    assert again.window == Window(0, 100, True) and again.fingerprint() == made.fingerprint()


def test_foreign_tars_of_sixteen_bit(tmp_path: Path) -> None:
    write_tar(tmp_path / "deep/a.tar", *((f"{i}.png", encode(deep(seed=i), "PNG")) for i in range(3)))
    assert shards(tmp_path / "deep").depth == 16
    write_tar(tmp_path / "mixed/a.tar", ("0.png", encode(deep(), "PNG")), ("1.png", encode(noise(8, 8, 3), "PNG")))
    assert shards(tmp_path / "mixed").depth == 8


def test_noise_of_sixteen_bits(home: Path) -> None:
    m = sources.folder(fill_deep(home, 8))
    plain = open_stream("folder", m, Plan(m.rows(), 8, seed=0), size=32)
    (real,), (noisy,) = plain.epoch(0), NoiseStream(plain, 0).epoch(0)
    assert noisy.images.dtype == torch.uint16 and not torch.equal(real.images, noisy.images)
    x, y = to_unit(real.images), to_unit(noisy.images)
    assert abs(float(x.mean() - y.mean())) < 0.02 and y.std() > 0.7 * x.std()


def test_a_stream_of_eight_bits_refuses(home: Path) -> None:
    m = sources.folder(fill_deep(home, 4))
    place: Any = None
    with pytest.raises(ConfigError, match=r"stream=dali has 8 bit .* use stream=folder or stream=webdataset"):
        wire.open_stream({"_target_": "cass_scale.data.dali.DaliStream"}, build, m, Plan(m.rows(), 2, seed=0), 8, place)


# Shards


@pytest.mark.parametrize("pixels", [deep(40, 60), deep(40, 60, 3)], ids=["grey", "rgb"])
def test_shrinking_keeps_sixteen_bits(pixels: NDArray[np.uint16]) -> None:
    data = png16(pixels) if pixels.ndim == 3 else tiff(pixels)
    assert shrink(data, Recipe(64)).data == data
    small = shrink(data, Recipe(16, "short", 90))
    assert small.extension == "png" and decode_deep(small.data, None).shape == (16, 24, 3)
    square = shrink(data, Recipe(16, "square", 90))
    assert np.array_equal(decode_deep(square.data, None), decode_deep(data, 16))
    assert len(np.unique(decode_deep(square.data, None))) > 200


def test_from_files_and_from_shards_the_same_weights(home: Path, tmp_path: Path) -> None:
    fill_deep(home, 12)
    shard(
        f"source={home}", "data.window=[1%,99%]", f"out={tmp_path / 'shards'}", "size=32", "resize=square", quiet=True
    )
    pretrain(*TWO_STEPS, f"data.path={home}", "data.window=[1%,99%]", f"run.dir={tmp_path / 'one'}", quiet=True)
    pretrain(*TWO_STEPS, f"data.path={tmp_path / 'shards'}", f"run.dir={tmp_path / 'two'}", quiet=True)
    for arm in ("cnn", "vit"):
        one, two = (load_file(tmp_path / name / "export" / f"{arm}.safetensors") for name in ("one", "two"))
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert np.asarray(Image.open(tmp_path / "one/samples.png")).std() > 20
    with open(tmp_path / "one/manifest.csv", newline="") as file:
        assert json.loads(file.readline().removeprefix("# "))["depth"] == 16
        assert len(list(csv.reader(file))) == 13
    scored = evaluate(
        f"run.dir={tmp_path / 'two'}", f"data.path={home}", "protocol=finetune", "protocol.epochs=1", "arm=cnn",
        "device=cpu", quiet=True,
    )  # fmt: skip
    shown = other_data(str(home), {"data": {}}, Manifest.read(tmp_path / "two" / "manifest.csv"))
    assert shown["window"] == ["1%", "99%"], "another set is shown as the run's own was"
    assert scored["n_train"] == 8 and scored["arms"]["cnn"]["accuracy"] >= 0
