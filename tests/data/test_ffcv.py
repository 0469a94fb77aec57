"""The ffcv stream beyond the contract of all streams: pixels, threads, and betons that are not what was made."""

from __future__ import annotations

import json
import random
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cass_scale.data import cache, ffcv, sources
from cass_scale.data.beton import HEADER
from cass_scale.data.decode import decode
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.data.shards import shards
from cass_scale.data.shrink import Recipe
from cass_scale.errors import DataError, MissingExtra
from tests.data.images import encode, noise
from tests.data.tars import betoned, grouped, open_stream, sharded

pytest.importorskip("ffcv", reason="needs the extra `ffcv`")


def smooth(side: tuple[int, int], seed: int) -> np.ndarray[Any, Any]:
    """Pixels that a JPEG and a resize do little to."""
    small = torch.from_numpy(noise(4, 5, 3, seed=seed)).permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(small, side, mode="bicubic").clamp(0, 255)[0].permute(1, 2, 0).byte().numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """JPEGs that are not square."""
    root = tmp_path_factory.mktemp("set") / "images"
    root.mkdir()
    for i in range(16):
        (root / f"{i:02d}.jpg").write_bytes(encode(smooth((90, 120), i), "JPEG", quality=95))
    return sources.folder(root)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    betoned(grouped(place / "images", 12), place / "beton")
    return place / "beton"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "beton"))


def every(kind: str, manifest: Manifest, **options: Any) -> torch.Tensor:
    """All images, in the order of the rows."""
    plan = Plan(manifest.rows(), 6, seed=0, shuffle=False, tail="keep")
    return torch.cat([batch.images for batch in open_stream(kind, manifest, plan, **options).epoch(0)])


def opened(root: Path) -> Any:
    manifest = shards(root)
    return open_stream("ffcv", manifest, Plan(manifest.rows(), 4, seed=0))


def off(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one.int() - two.int()).abs().max())


def test_raw_at_the_size_of_the_batch_is_the_folder(folder: Manifest, tmp_path: Path) -> None:
    made = betoned(folder, tmp_path / "raw", Recipe(24, "square"))
    assert torch.equal(every("ffcv", made, size=24), every("folder", folder, size=24))


@pytest.mark.parametrize("how", [{"mode": "jpg"}, {"mode": "mixed"}], ids=lambda how: how["mode"])
def test_jpg_is_near_and_mixed_is_both(how: dict[str, Any], folder: Manifest, tmp_path: Path) -> None:
    made = betoned(folder, tmp_path / "out", Recipe(24, "square", 90), **how)
    got, want = every("ffcv", made, size=24), every("folder", folder, size=24)
    assert 0 < (got.float() - want.float()).abs().mean() < 4
    exact = [bool(torch.equal(a, b)) for a, b in zip(got, want, strict=True)]
    assert sum(exact) == (8 if how["mode"] == "mixed" else 0)


@pytest.mark.parametrize("recipe", [Recipe(48, "square"), Recipe(None)], ids=["square", "as_it_is"])
def test_another_size_is_squashed_on_the_device(recipe: Recipe, folder: Manifest, tmp_path: Path) -> None:
    """Antialiased bilinear; on a CPU it is what the folder's decoder makes of the same pixels."""
    made = betoned(folder, tmp_path / "out", recipe)
    got = every("ffcv", made, size=24)
    assert got.shape == (16, 3, 24, 24) and got.dtype == torch.uint8 and got.is_contiguous()
    full = every("folder", folder, size=48) if recipe.size else None
    for row, image in enumerate(got):
        stored = full[row].permute(1, 2, 0).numpy() if full is not None else _pixels(folder, row)
        want = torch.from_numpy(decode(encode(stored, "PNG"), 24)).permute(2, 0, 1)
        assert torch.equal(image, want)


def _pixels(folder: Manifest, row: int) -> Any:
    return decode((folder.root / folder.keys[row]).read_bytes(), None)


@pytest.mark.gpu
def test_on_a_gpu(folder: Manifest, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    made = betoned(folder, tmp_path / "out", Recipe(48, "square"))
    for size, away in ((48, 0), (24, 1)):
        got = every("ffcv", made, size=size, device="cuda")
        assert got.is_cuda and got.is_contiguous()
        assert off(got.cpu(), every("ffcv", made, size=size)) <= away


def test_starting_late_gives_ffcv_nothing_of_what_was_skipped(whole: Path) -> None:
    stream = opened(whole)
    (last,) = list(stream.epoch(1, start=2))
    assert stream._order.sample_order(0).tolist() == last.index.tolist()
    assert list(stream.epoch(1, start=3)) == []


def test_streams_beside_each_other_and_left_in_the_middle(whole: Path) -> None:
    """They share one Loader, with batches and orders of their own."""
    manifest, before = shards(whole), set(threading.enumerate())
    images = every("ffcv", manifest)
    plans = [Plan(manifest.rows(), size, seed=size) for size in (2, 3)]
    streams = [open_stream("ffcv", manifest, plan) for plan in plans]
    for pair in zip(*(stream.epoch(4) for stream in streams), strict=False):
        assert all(torch.equal(batch.images, images[batch.index]) for batch in pair)
        assert [len(batch.index) for batch in pair] == [2, 3]
    left = [stream.epoch(5) for stream in streams]
    first = [next(batches) for batches in left]
    left[0].close()
    streams[1].close()
    assert set(threading.enumerate()) == before
    assert torch.equal(next(streams[1].epoch(5)).images, first[1].images)


def test_nothing_else_in_the_process_changes(copy: Path) -> None:
    """FFCV sets torch's threads and draws from numpy's global state."""
    before, state = torch.get_num_threads(), np.random.get_state()[1].tolist()  # type: ignore[index]
    torch.set_num_threads(2)
    try:
        list(opened(copy).epoch(0))  # a file that no test before has read: everything is made anew
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


def test_without_ffcv_the_extra_and_the_system_packages_are_named(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffcv, "_ffcv", ffcv._ffcv.__wrapped__)
    for name in [name for name in sys.modules if name.split(".")[0] == "ffcv"]:
        monkeypatch.setitem(sys.modules, name, None)
    manifest = shards(whole)
    with pytest.raises(MissingExtra) as error:
        ffcv.FFCVStream(manifest, Plan(manifest.rows(), 4, seed=0), size=12, workers=0, device="cpu")
    assert "pip install 'cass-scale[ffcv]'" in str(error.value) and error.value.exit_code == 2
    assert "apt-get install libopencv-dev libturbojpeg0-dev pkg-config" in str(error.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_of_ffcv_that_dies_is_an_error(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffcv, "PATIENCE", 0.05)
    stream = opened(copy)
    monkeypatch.setattr(stream._loader, "code", ([(lambda **_: 1 / 0, [])], []))
    with pytest.raises(DataError, match=r"FFCV stopped reading .*images.beton; what it said is above"):
        next(stream.epoch(0))


def header(path: Path, **changes: int) -> None:
    head, rest = np.fromfile(path, HEADER, 1), path.read_bytes()[HEADER.itemsize :]
    for name, value in changes.items():
        head[name] = value
    path.write_bytes(head.tobytes() + rest)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def of_another(root: Path) -> None:
    """The manifest of as many other images of the same size."""
    (root.parent / "others").mkdir()
    for i in range(12):
        (root.parent / f"others/{i}.png").write_bytes(encode(noise(9, 9, 3, seed=99 + i), "PNG"))
    betoned(sources.folder(root.parent / "others"), root.parent / "other")
    shutil.copy(root.parent / "other/manifest.csv", root)


def edited(root: Path) -> None:
    text = (root / "manifest.csv").read_text()
    (root / "manifest.csv").write_text(text.replace(",train,", ",test,", 1))


def noted(root: Path, **changes: Any) -> None:
    head = json.loads((root / "shards.json").read_text())
    (root / "shards.json").write_text(json.dumps({k: v for k, v in (head | changes).items() if v is not None}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda r: header(r / "images.beton", version=3), "images.beton is of version 3, or no beton at all"),
        (lambda r: header(r / "images.beton", samples=11), "images.beton holds 11 images, its manifest 12"),
        (lambda r: flip(r / "images.beton", (2 << 20) + 77), "sha256 of .*images.beton is not that of shards.json"),
        (
            lambda r: (r / "images.beton").write_bytes(b"\2\0"),
            r"images.beton is 2 bytes long and was made \d+: cut off",
        ),
        (lambda r: (r / "images.beton").unlink(), "images.beton cannot be read: No such file"),
        (of_another, "manifest.csv does not belong to the images.beton beside it"),
        (edited, "manifest.csv is cut off or changed"),
        (lambda r: (r / "manifest.csv").unlink(), "the beton is not whole; finish with the same `cass-scale shard`"),
        (lambda r: noted(r, made=None), "the beton is not whole; finish with the same `cass-scale shard`"),
        (lambda r: noted(r, made={}), "shards.json does not describe a beton"),
        (lambda r: (r / "shards.json").write_text("{"), "shards.json cannot be read"),
    ],
)
def test_what_is_not_what_was_made(harm: Any, said: str, copy: Path) -> None:
    harm(copy)
    with pytest.raises(DataError, match=said) as error:
        opened(copy)
    assert str(copy) in str(error.value) and error.value.exit_code == 3


def test_a_header_that_ends_in_the_middle(copy: Path) -> None:
    (copy / "images.beton").write_bytes(b"\2\0")
    noted(copy, made=json.loads((copy / "shards.json").read_text())["made"] | {"bytes": 2})
    with pytest.raises(DataError, match=r"images.beton is cut off in its header, or no beton at all"):
        opened(copy)


def test_streams_and_shards_that_do_not_fit(copy: Path, tmp_path: Path) -> None:
    folder = grouped(tmp_path / "images", 8)
    tars = sharded(folder, tmp_path / "tars")
    for kind, manifest, said in (
        ("ffcv", folder, "stream=ffcv reads a beton, and data.path=.*images holds files; make one with `cass-scale"),
        ("ffcv", tars, "stream=ffcv reads a beton, and data.path=.*tars holds tars; make one with"),
        ("dali", shards(copy), "holds a beton, no tars: only stream=ffcv reads it"),
        ("webdataset", shards(copy), "holds a beton, no tars: only stream=ffcv reads it"),
    ):
        with pytest.raises(DataError, match=said):
            open_stream(kind, manifest, Plan(manifest.rows(), 4, seed=0))


def test_the_whole_file_is_read_once_and_when_it_changed(
    copy: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    plain = cache.file_sha256
    monkeypatch.setattr(cache, "file_sha256", lambda path: seen.append(path) or plain(path))
    for _ in range(2):
        opened(copy)
    assert len(seen) == 1
    (copy / "images.beton").touch()
    opened(copy)
    assert len(seen) == 2
    shutil.rmtree(own_cache)
    own_cache.write_text("no folder")
    opened(copy)  # cannot be noted: read twice, by the manifest and by the stream
    assert len(seen) == 4


@pytest.mark.parametrize("place", ["in place", "by renaming", "before it is mapped"])
def test_a_beton_changed_under_a_running_job(place: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy / "images.beton"
    if place == "before it is mapped":
        plain = ffcv.check_beton
        monkeypatch.setattr(ffcv, "check_beton", lambda *about: plain(*about) or flip(path, 3 << 20))
        with pytest.raises(DataError, match=r"images.beton was changed under the running job"):
            opened(copy)
        return
    stream = opened(copy)
    list(stream.epoch(0))
    if place == "in place":
        flip(path, 3 << 20)
    else:
        shutil.copy(path, copy / "new")
        (copy / "new").replace(path)
    with pytest.raises(DataError, match=r"images.beton was changed under the running job; restore it, then run"):
        next(stream.epoch(1))


def test_random_damage_is_an_error_or_harmless(whole: Path, copy: Path) -> None:
    images, dice, refused = every("ffcv", shards(whole)), random.Random(0), 0
    for name, cases in (("images.beton", 60), ("manifest.csv", 60), ("shards.json", 60)):
        good = (copy / name).read_bytes()
        for case in range(cases):
            at, cut = dice.randrange(len(good)), dice.random() < 0.25
            harmed = good[:at] + bytes([good[at] ^ dice.randrange(1, 256)]) + good[at + 1 :]
            (copy / name).write_bytes(good[:at] if cut else harmed)
            try:
                manifest = shards(copy)
                pixels = every("ffcv", manifest)
            except DataError as error:
                refused += 1
                assert str(copy) in str(error), "an error names the file"
            else:  # a note, an option
                assert name != "images.beton" and torch.equal(pixels, images), f"case {case}: another picture"
        (copy / name).write_bytes(good)
    assert refused > 120
