"""The verb on two processes: one record, one bill, and a resume that puts back each rank's own random numbers."""

from __future__ import annotations

import os
import subprocess
import sys
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


def launch(run: Path, *words: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "cass_scale"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "pretrain", *WORDS, *words, f"run.dir={run}"],
        capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.dist
@pytest.mark.slow
def test_two_ranks_resume_to_the_same_bits_and_are_billed_as_two(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    said = launch(whole, "train.max_steps=3")
    assert said.count("step 3/3") == 1 and "Warning" not in said, "one rank speaks"
    launch(broken, "train.max_steps=1")
    launch(broken, "train.max_steps=3")
    for arm in ("cnn", "vit"):
        a, b = (load_file(run / "export" / f"{arm}.safetensors") for run in (whole, broken))
        assert all(a[key].equal(b[key]) for key in a), f"{arm} differs: stochastic depth drew other numbers"
    record = records.read(whole)
    assert record["world_size"] == record["device"]["count"] == 2
    assert record["device_hours"]["total"] == pytest.approx(2 * sum(record["spans"].values()) / 3600, rel=0.01)
