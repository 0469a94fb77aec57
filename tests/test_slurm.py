"""launch/slurm.sbatch under a real Slurm of one node: asked to stop it saves, is requeued, and finishes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cass_scale import records

ROOT = Path(__file__).parents[1]
WORDS = (
    "method=cass_contrast", "arms=tiny", "arms.image_size=32", "train.batch_size=16", "train.epochs=20",
    "train.max_steps=40", "train.log_every=5", "stream.workers=1",
)  # fmt: skip


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=60).stdout


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("needs root and: apt-get install slurmctld slurmd slurm-client munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # short: the path of a socket has 107 letters at most
    try:
        slurm("tests/slurm/start.sh", str(folder))
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield
        subprocess.run(["scancel", "--user=root"], timeout=20, check=False)
        time.sleep(2)
    finally:
        for file in folder.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), 15)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(text: str, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else slurm("squeue", "--long")
        time.sleep(0.2)


@pytest.mark.slurm
@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_saved_requeued_and_finished(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "job.out"
    for name, value in {"RANKS": "2", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    asked = ("--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1", f"--output={log}", f"--chdir={tmp_path}")
    words = (*WORDS, f"data.path={shared / 'data/brain_mri'}")
    job = slurm("sbatch", "--parsable", *asked, str(ROOT / "launch/slurm.sbatch"), "pretrain", *words).strip()
    folder = tmp_path / "runs" / f"cass-scale-{job}"
    wait_until("step 5/40", log, 120)
    slurm("scancel", "--signal=USR1", job)  # to all but the script, as --signal=USR1@120 of the header before the limit
    wait_until(f"job {job} goes back into the queue", log, 60)
    record = records.read(folder)
    assert record["status"] == "preempted" and 5 <= record["steps"] < 40
    while "JobState=PENDING" not in slurm("scontrol", "show", "job", job):
        time.sleep(0.2)
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now")  # else it waits for two minutes
    wait_until("done: ", log, 120)
    assert f"resuming runs/cass-scale-{job} from step {record['steps']}" in log.read_text()
    assert records.read(folder)["status"] == "done" and [f.name for f in folder.parent.iterdir()] == [folder.name]
    assert "Restarts=1" in slurm("scontrol", "show", "job", job)
