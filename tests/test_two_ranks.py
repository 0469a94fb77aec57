"""The verb on two processes: one record, one bill, and a resume that puts back each rank's own random numbers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cass_scale import records

WORDS = (
    "method=cass_contrast", "data.images=28", "data.scale=0.2", "arms.image_size=32",
    "arms.vit.args.drop_path_rate=0.3",
    "train.batch_size=8", "train.device=cpu", "train.precision=fp32", "stream.workers=0", "monitor.images=8",
    "train.log_every=1",
)  # fmt: skip


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")


def start(run: Path, *words: str, restarts: int = 0) -> subprocess.Popen[str]:
    command = [
        *TORCHRUN,
        f"--max-restarts={restarts}",
        "-m",
        "cass_scale",
        "pretrain",
        *WORDS,
        *words,
        f"run.dir={run}",
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    return said


def kill_rank(number: int, run: Path, process: subprocess.Popen[str], after_step: int) -> None:
    log, deadline = run / "logs" / f"rank_{number}.log", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        text = log.read_text() if log.exists() else ""
        if f"step {after_step}/" in text and (found := re.search(r"process (\d+) on", text)):
            os.kill(int(found[1]), signal.SIGKILL)
            return
        time.sleep(0.02)
    raise AssertionError(f"rank {number} was never at step {after_step}")


@pytest.mark.long
@pytest.mark.dist
@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank_to_the_same_bits_and_both_are_billed(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    said = finish(start(whole, "train.max_steps=8"))
    assert said.count("step 8/8") == 1 and "Warning" not in said, "one rank speaks"
    process = start(broken, "train.max_steps=8", "train.save_every=2", restarts=1)
    kill_rank(1, broken, process, after_step=3)
    said = finish(process)
    assert "rank 1 (process" in said and f"resuming {broken} from step" in said
    for arm in ("cnn", "vit"):
        a, b = (load_file(run / "export" / f"{arm}.safetensors") for run in (whole, broken))
        assert all(a[key].equal(b[key]) for key in a), f"{arm} differs: stochastic depth drew other numbers"
    record = records.read(whole)
    assert record["world_size"] == record["device"]["count"] == len(record["ranks"]) == 2
    assert record["device_hours"]["total"] == pytest.approx(2 * sum(record["spans"].values()) / 3600, rel=0.01)
    assert "step 8/8" in (whole / "logs/rank_1.log").read_text(), "each rank has its own file"
