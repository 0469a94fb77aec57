"""`cass-scale shard` as a person meets it: what it refuses, what a kill leaves, and training on what it made."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cass_scale import evaluate, pretrain, records, shard
from cass_scale.cli import compose_config, main
from cass_scale.data.plan import Plan
from cass_scale.data.shards import shards
from cass_scale.data.sources import folder
from cass_scale.errors import ConfigError
from cass_scale.verbs import shard as verb
from tests.data.images import fill, two_classes
from tests.data.tars import grouped, open_stream

ROOT = Path(__file__).parents[1]
RUN = (
    "method=cass_contrast", "arms.image_size=32", "train.batch_size=4", "train.max_steps=3", "monitor.images=8",
    "train.device=cpu", "train.precision=fp32", "stream.workers=0", "monitor.every=2",
)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith(".")}


def start(images: Path, out: Path, *words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cass_scale", "shard", f"source={images}", f"out={out}", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT, **options)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 lossless images with classes, held back a third."""
    return two_classes(tmp_path_factory.mktemp("set") / "images", side=40)


@pytest.fixture(scope="module")
def made(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "shards"
    record = shard(f"source={images}", f"out={out}", "size=null", "samples_per_shard=7", quiet=True)
    assert record["images"] == 24 and record["shards"] == record["made"] == 4 and record["bad"] == []
    assert record["fingerprint"] == folder(images).fingerprint()
    return out


def test_folder_and_shards_give_the_same_batches(images: Path, made: Path) -> None:
    got = {}
    for kind, manifest in {"folder": folder(images), "webdataset": shards(made)}.items():
        stream = open_stream(kind, manifest, Plan(manifest.rows("train"), 4, seed=2), size=32, with_labels=True)
        got[kind] = list(stream.epoch(1))
    for one, two in zip(*got.values(), strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.index, two.index)
        assert one.label is not None and two.label is not None and torch.equal(one.label, two.label)


def test_folder_and_shards_give_the_same_weights_and_scores(images: Path, made: Path, tmp_path: Path) -> None:
    for name, path in (("folder", images), ("shards", made)):
        record = pretrain(*RUN, f"data.path={path}", f"run.dir={tmp_path / name}", quiet=True)
        assert record["status"] == "done" and record["steps"] == 3
    a, b = (records.read(tmp_path / name)["data"] for name in ("folder", "shards"))
    assert a["fingerprint"] == b["fingerprint"]
    for arm in ("cnn", "vit"):
        one, two = (load_file(tmp_path / name / "export" / f"{arm}.safetensors") for name in ("folder", "shards"))
        assert one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)
    other = evaluate(f"run.dir={tmp_path / 'folder'}", f"data.path={made}", "device=cpu", quiet=True)
    own = evaluate(f"run.dir={tmp_path / 'shards'}", "device=cpu", quiet=True)
    assert other["arms"] == own["arms"]


def test_shards_are_recognised_and_need_their_stream(made: Path, images: Path) -> None:
    config = compose_config("pretrain", [f"data.path={made}"])
    assert config["data"]["_target_"].endswith("shards.shards")
    assert config["stream"]["_target_"].endswith("WebDatasetStream")
    assert compose_config("pretrain", [f"data.path={images}"])["stream"]["_target_"].endswith("FolderStream")
    with pytest.raises(ConfigError, match="stream=folder cannot read the shards"):
        compose_config("pretrain", [f"data.path={made}", "stream=folder"])


def test_killed_at_any_moment_ends_with_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grouped(tmp_path / "images", 120, side=200)
    words = ("size=64", "samples_per_shard=10", "workers=1")
    shard(f"source={tmp_path / 'images'}", f"out={tmp_path / 'whole'}", *words, quiet=True)
    out, kept = tmp_path / "broken", {}
    for wanted in (2, 7):
        process = start(tmp_path / "images", out, *words)
        deadline = time.monotonic() + 60
        while len(list(out.glob("*.index"))) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
        assert not (out / "manifest.csv").exists()
        finished = {p: p.stat().st_mtime_ns for p in out.glob("*.tar") if p.with_suffix(".index").exists()}
        assert len(finished) >= wanted and all(finished[p] == t for p, t in kept.items())
        kept = finished
    assert main(["pretrain", *RUN, f"data.path={out}", f"run.dir={tmp_path / 'run'}"]) == 3
    assert main(["shard", f"source={tmp_path / 'images'}", f"out={out}", *words]) == 0
    assert f"12 shards, {len(kept)} of them made before" in capsys.readouterr().err
    assert contents(out) == contents(tmp_path / "whole")
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items()), "a finished shard was made again"


def test_a_disk_that_fills_up_keeps_what_is_finished(tmp_path: Path) -> None:
    """A limit on the size of a file stands for it: the second shard's images are larger."""
    fill(tmp_path / "images", *(f"a{i}.png" for i in range(4)), side=20)
    fill(tmp_path / "images", *(f"b{i}.png" for i in range(4)), side=120)
    words, out = ("size=null", "samples_per_shard=4", "workers=1"), tmp_path / "out"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = start(tmp_path / "images", out, *words, preexec_fn=limit)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert "finished shards are kept: mend that, then run the same command again" in said and "Traceback" not in said
    assert sorted(contents(out)) == ["shard-000000.index", "shard-000000.tar", "shards.json"]
    assert not list(out.glob(".shard-*"))
    assert shard(f"source={tmp_path / 'images'}", f"out={out}", *words, quiet=True)["made"] == 1
    assert len(shards(out)) == 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_somebody_else_fills_up(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There was room when the conversion began."""
    fill(tmp_path / "images", *(f"{i:02d}.png" for i in range(40)), side=120)
    words = [f"source={tmp_path / 'images'}", "size=null", "samples_per_shard=10", "workers=1"]
    plain, done = verb.Watch.__call__, iter(range(1, 99))

    def watch(self: verb.Watch) -> None:
        plain(self)
        if next(done) == 25:
            with open(small_disk / "other", "wb", buffering=0) as f, contextlib.suppress(OSError):
                while f.write(bytes(4096)):
                    pass

    monkeypatch.setattr(verb.Watch, "__call__", watch)
    assert main(["shard", *words, f"out={small_disk / 'out'}"]) == 3
    assert "No space left on device; finished shards are kept: mend that" in capsys.readouterr().err
    kept = {p: p.stat().st_mtime_ns for p in (small_disk / "out").glob("*.index")}
    assert len(kept) == 2 and not list((small_disk / "out").glob(".shard-*"))
    (small_disk / "other").unlink()
    assert shard(*words, f"out={small_disk / 'out'}", quiet=True)["made"] == 2
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items()), "a finished shard was made again"
    shard(*words, f"out={tmp_path / 'whole'}", quiet=True)
    assert contents(small_disk / "out") == contents(tmp_path / "whole")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(40_000))
    assert main(["shard", f"source={images}", f"out={tmp_path / 'out'}", "size=null"]) == 3
    assert "MiB and its disk has 0 MiB free" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing(images: Path, tmp_path: Path) -> None:
    record = shard(f"source={images}", f"out={tmp_path / 'out'}", "size=16", dry_run=True, quiet=True)
    assert record["shards"] == record["made"] == 1 and record["bytes"] > 24 * 512
    assert not (tmp_path / "out").exists()


def test_the_same_command_again_makes_nothing(images: Path, made: Path) -> None:
    before = contents(made)
    assert shard(f"source={images}", f"out={made}", "size=null", "samples_per_shard=7", quiet=True)["made"] == 0
    assert contents(made) == before


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["size=3", "quality=0", "resize=long", "format=zip"], 2, "4 problems in the configuration"),
        (["data.noise=true"], 2, "data.noise=true is a control of pretraining"),
        (["samples_per_shard=0", "workers=0"], 2, "workers=0: auto, or a whole number of at least 1"),
        (["source=/nowhere"], 3, "data.path=/nowhere does not exist"),
        (["out=/dev/null/x"], 2, "not writable"),
        (["size=16"], 2, "holds another conversion"),
    ],
)
def test_refusals(
    words: list[str], code: int, said: str, images: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {w.split("=")[0]: w for w in (f"source={images}", f"out={made}", "size=null", *words)}
    assert main(["shard", *chosen.values()]) == code
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown


def test_what_is_missing_is_named(images: Path) -> None:
    with pytest.raises(ConfigError, match="out"):
        shard(f"source={images}", quiet=True)
    with pytest.raises(ConfigError, match="path"):
        shard("out=x", quiet=True)


def test_bad_images_are_shown_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "images", *(f"{i}.png" for i in range(9)))
    for i in range(7):
        (tmp_path / f"images/x{i}.jpg").write_bytes(b"no image")
    words = [f"source={tmp_path / 'images'}", f"out={tmp_path / 'out'}"]
    assert main(["shard", *words]) == 3
    assert main(["shard", *words, "data.max_bad=0.5"]) == 0
    shown = capsys.readouterr().err
    assert "7 bad images are left out" in shown and "x0.jpg: not one of JPEG" in shown and "and 2 more" in shown


def test_embedded_sets_can_be_sharded(tmp_path: Path) -> None:
    record = shard("data=phantom", "data.images=21", "data.scale=0.1", f"out={tmp_path / 'out'}", quiet=True)
    found = shards(tmp_path / "out")
    assert record["images"] == len(found) == 21 and found.synthetic and found.name == "phantom"


def test_rate_and_time_left_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    console = verb.Console()
    monkeypatch.setattr(console, "say", said.append)
    monkeypatch.setattr(verb, "SAY_EVERY", -1.0)
    watch = verb.Watch(console, 4)
    watch.began -= 2.0
    watch()
    assert said[0].startswith("image 1/4  0.5 images/s  6 s left")


def test_two_conversions_into_one_folder(images: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = f"""
import fcntl, sys
handle = open({str(made / ".lock")!r}, "w")
fcntl.lockf(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert main(["shard", f"source={images}", f"out={made}", "size=null", "samples_per_shard=7"]) == 2
        other.communicate()
    assert "is in use by another process; wait for it or choose another out" in capsys.readouterr().err
