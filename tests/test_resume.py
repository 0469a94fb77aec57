"""A run that is killed at any moment, and run again, ends with the same bits as one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from cass_scale import records, shard

WORDS = (
    "arms.image_size=32", "train.batch_size=8", "train.epochs=5", "train.save_every=2", "train.log_every=1",
    "monitor.every=3", "monitor.images=8", "stream.workers=0", "train.device=cpu",
)  # fmt: skip
VARIANTS = {
    "cass_contrast": ("train.precision=fp32",),
    "cass_official": (
        "train.precision=fp32",
        "train.epochs=4",
    ),  # gradients that are never cleared are state too
    "cass_paper": (
        "train.precision=fp32",
        "swa.every=3",
        "arms.vit.args.drop_path_rate=0.2",
        "train.accumulate=2",
    ),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 small images, unlabelled."""
    folder = tmp_path_factory.mktemp("images")
    numbers = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(numbers.integers(0, 255, (36, 40, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def start(images: Path, run: Path, method: str, *words: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "cass_scale",
        "pretrain",
        f"method={method}",
        f"data.path={images}",
        f"run.dir={run}",
        *WORDS,
    ]
    chosen = {word.split("=")[0]: word for word in [*command[5:], *words]}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command[:5], *chosen.values()], stderr=subprocess.PIPE, text=True, env=environment)


def finish(images: Path, run: Path, method: str, *words: str) -> str:
    process = start(images, run, method, *words)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return errors


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        rows = records.read_metrics(run / records.METRICS) if (run / records.METRICS).exists() else []
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.005)


def same_weights(one: Path, other: Path) -> None:
    for arm in ("cnn", "vit"):
        a, b = (load_file(run / "export" / f"{arm}.safetensors") for run in (one, other))
        assert a.keys() == b.keys()
        assert all(a[key].equal(b[key]) for key in a), f"{arm} differs"


@pytest.mark.long
@pytest.mark.parametrize("method", list(VARIANTS))
def test_killed_at_random_points_ends_with_the_same_bits(method: str, images: Path, tmp_path: Path) -> None:
    words = VARIANTS[method]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(images, whole, method, *words)
    dice = random.Random(method)
    for step in sorted(dice.sample(range(1, 18), 2 if method == "cass_contrast" else 1)):
        process = start(images, broken, method, *words)
        wait_for_step(broken, step, process)
        time.sleep(dice.uniform(0, 0.3))
        process.kill()
        process.wait()
    finish(images, broken, method, *words)
    same_weights(whole, broken)
    kept, redone = (records.read_metrics(run / records.METRICS) for run in (whole, broken))
    assert [row["step"] for row in kept] == [row["step"] for row in redone], "rows are neither lost nor doubled"
    record = records.read(broken)
    assert record["status"] == "done"
    assert record["device_hours"]["total"] > 0 and record["spans"]["lost"] >= 0, "work that was lost is billed"


@pytest.mark.long
@pytest.mark.shared
def test_real_shards_killed_in_an_epoch_and_resumed_with_other_workers(shared: Path, tmp_path: Path) -> None:
    """And uninterrupted they end with the weights of the folder that they were made of."""
    source, shards = shared / "data" / "skin_isic2017", tmp_path / "shards"
    shard(f"source={source}", f"out={shards}", "size=null", quiet=True)
    words = ("train.precision=fp32", "train.max_steps=12", "stream.cache_bytes=0")
    finish(source, tmp_path / "folder", "cass_contrast", *words)
    broken = tmp_path / "broken"
    process = start(shards, broken, "cass_contrast", *words, "stream.workers=2")
    wait_for_step(broken, 5, process)
    process.kill()
    process.wait()
    assert records.read(broken)["status"] == "running", "it was killed before it ended"
    finish(shards, broken, "cass_contrast", *words, "stream.workers=1")
    same_weights(tmp_path / "folder", broken)


def test_sigterm_saves_within_a_step_and_exits_75(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(images, run, "cass_contrast", "train.epochs=400", "train.save_every=100000")
    wait_for_step(run, 2, process)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert time.monotonic() - sent < 20
    assert "SIGTERM: saved at step" in errors
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "preempted"
    steps = [row["step"] for row in records.read_metrics(run / records.METRICS)]
    saved = [int(path.stem.split("_")[1]) for path in (run / "checkpoints").glob("step_*.pt")]
    assert saved == [steps[-1]], "the step it stood at is the one it saved"
