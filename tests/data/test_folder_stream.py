"""The folder stream: the plan's images, whatever the workers; errors that name the file; no leaks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cass_scale.data import pixels, sources
from cass_scale.data.decode import read_image
from cass_scale.data.folder import FolderStream
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.errors import DataError
from cass_scale.types import Batch
from tests.data.images import fill, labels_csv

SIDE = 12


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """30 images of three groups, two classes, all for training."""
    keys = [f"{i:02d}.png" for i in range(30)]
    fill(tmp_path / "set", *keys, side=20)
    rows = [(k, "ab"[i % 2], "train", f"p{i // 10}" if i else "") for i, k in enumerate(keys)]
    return sources.folder(labels_csv(tmp_path / "set", "path,label,split,group_id", *rows))


@pytest.fixture(autouse=True)
def no_child_stays() -> Iterator[None]:
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


def open_stream(manifest: Manifest, workers: int = 0, batch: int = 4, **options: object) -> FolderStream:
    plan = Plan(manifest.rows("train"), batch, seed=0)
    return FolderStream(manifest, plan, size=SIDE, workers=workers, device="cpu", **options)  # type: ignore[arg-type]


def same(one: list[Batch], two: list[Batch]) -> bool:
    pairs = list(zip(one, two, strict=True))
    return all(torch.equal(a.images, b.images) and torch.equal(a.index, b.index) for a, b in pairs)


def test_a_batch_is_what_the_plan_and_the_files_say(manifest: Manifest) -> None:
    stream = open_stream(manifest, with_labels=True)
    batches = list(stream.epoch(3))
    assert len(batches) == stream.steps_per_epoch == 7 and stream.batch_size == 4
    assert stream.provides == {"index", "group", "label"}
    order = Plan(manifest.rows("train"), 4, seed=0).order(3)
    assert torch.equal(torch.cat([b.index for b in batches]), order[:28])
    for batch in batches:
        assert batch.images.dtype == torch.uint8 and batch.images.shape == (4, 3, SIDE, SIDE)
        assert batch.images.is_contiguous()
        for image, index in zip(batch.images, batch.index.tolist(), strict=True):
            want = torch.from_numpy(read_image(manifest.root / manifest.keys[index], SIDE))
            assert torch.equal(image, want.permute(2, 0, 1))
        assert batch.group is not None and torch.equal(batch.group, manifest.group_tensor()[batch.index])
        assert batch.label is not None and torch.equal(batch.label, batch.index % 2)


def test_labels_are_kept_from_pretraining(manifest: Manifest) -> None:
    stream = open_stream(manifest)
    assert stream.provides == {"index", "group"} and next(stream.epoch(0)).label is None


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_batches_do_not_depend_on_workers_cache_or_start(manifest: Manifest, cache_bytes: int) -> None:
    want = [list(open_stream(manifest, cache_bytes=0).epoch(e)) for e in range(3)]
    for workers in (0, 1, 3):
        stream = open_stream(manifest, workers, cache_bytes=cache_bytes)
        assert stream.cached == bool(cache_bytes)
        for epoch in range(3):
            assert same(list(stream.epoch(epoch)), want[epoch])
        assert same(list(stream.epoch(1, start=5)), want[1][5:])
        stream.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_left_does_not_leak_into_the_next(manifest: Manifest, workers: int) -> None:
    want = list(open_stream(manifest).epoch(1))
    stream = open_stream(manifest, workers)
    next(stream.epoch(0))
    assert same(list(stream.epoch(1)), want)
    stream.close()
    assert same(list(stream.epoch(1)), want)  # closed streams open again
    stream.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_images_are_not_read_again(manifest: Manifest, workers: int) -> None:
    stream = open_stream(manifest, workers, batch=1)  # every id in every epoch
    want = {int(b.index): b.images for b in stream.epoch(0)}
    for key in manifest.keys:
        (manifest.root / key).unlink()
    again = list(stream.epoch(1))
    assert len(again) == 30 and all(torch.equal(b.images, want[int(b.index)]) for b in again)
    stream.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_went_bad_is_named(manifest: Manifest, workers: int) -> None:
    (manifest.root / "07.png").write_bytes(b"")
    stream = open_stream(manifest, workers, batch=1)
    with pytest.raises(DataError) as error:
        list(stream.epoch(0))
    assert str(error.value).startswith(f"{manifest.root}/07.png: zero bytes long")
    assert "Traceback" not in str(error.value)
    stream.close()


def test_a_killed_worker_is_a_data_error(manifest: Manifest) -> None:
    stream = open_stream(manifest, workers=1, batch=1)
    batches = stream.epoch(0)
    next(batches)
    (child,) = multiprocessing.active_children()
    os.kill(child.pid or 0, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a process that reads images died .* fewer stream.workers"):
        list(batches)
    stream.close()


def test_signals_are_left_to_the_main_process(manifest: Manifest) -> None:
    stream = open_stream(manifest, workers=2, batch=1)
    batches = stream.epoch(0)
    got = [next(batches)]
    for child in multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(child.pid or 0, number)
    assert len(got + list(batches)) == 30
    stream.close()


def test_torchs_own_random_numbers_are_not_touched(manifest: Manifest) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    stream = open_stream(manifest, workers=1)
    list(stream.epoch(0))
    stream.close()
    list(open_stream(manifest).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_process_that_ends_in_the_middle_of_an_epoch_ends(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write(tmp_path / "m.csv")
    code = f"""
import faulthandler; faulthandler.dump_traceback_later(50, exit=True)
from cass_scale.data.folder import FolderStream
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
m = Manifest.read({str(tmp_path / "m.csv")!r})
stream = FolderStream(m, Plan(m.rows(), 1, seed=0), size=12, workers=2, device="cpu")
batches = stream.epoch(0)
next(batches)
raise SystemExit(75)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60, capture_output=True)
    assert done.returncode == 75, done.stderr.decode()


def test_evaluation_reads_each_image_once(manifest: Manifest) -> None:
    plan = Plan(manifest.rows(), 8, seed=0, shuffle=False, tail="keep")
    stream = FolderStream(manifest, plan, size=SIDE, workers=0, device="cpu")
    assert torch.equal(torch.cat([b.index for b in stream.epoch(0)]), torch.arange(30))


def test_the_cache_leaves_half_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    need = pixels.bytes_needed(100, 64)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(pixels, "available_memory", lambda: 4 * need)
    assert pixels.fits(100, 64, cache_bytes=need, ranks=2)
    assert not pixels.fits(100, 64, cache_bytes=need - 1, ranks=1)
    assert not pixels.fits(100, 64, cache_bytes=need, ranks=3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # three ranks on three nodes
    assert pixels.fits(100, 64, cache_bytes=need, ranks=3)


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "CGROUP", tmp_path)
    monkeypatch.setattr(pixels, "psutil", SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=10_000)))
    assert pixels.available_memory() == 10_000  # not in a container
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert pixels.available_memory() == 10_000
    (tmp_path / "memory.max").write_text("1000\n")
    assert pixels.available_memory() == 400


@pytest.mark.gpu
def test_on_a_gpu(manifest: Manifest) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    plan = Plan(manifest.rows("train"), 4, seed=0)
    stream = FolderStream(manifest, plan, size=SIDE, workers=2, device="cuda", with_labels=True)
    got = [Batch(*(None if t is None else t.cpu() for t in b)) for b in stream.epoch(0)]  # type: ignore[arg-type]
    assert next(stream.epoch(0)).images.is_cuda
    stream.close()
    assert same(got, list(open_stream(manifest).epoch(0)))
