"""torchrun whose exit code a scheduler can read: what ranks end with, what a signal to the launcher becomes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENDS = "import os, sys, time; os.environ['RANK'] == '1' or time.sleep(60); "  # rank 1 alone
SAVES = """
import os, pathlib, signal, sys, time
asked = []
signal.signal(signal.SIGUSR1, lambda number, frame: asked.append(number))
pathlib.Path(sys.argv[1], os.environ["RANK"]).touch()
while not asked:
    time.sleep(0.05)
sys.exit(75)
"""


def start(folder: Path, program: str, *words: str) -> subprocess.Popen[str]:
    script = folder / "rank.py"
    script.write_text(program)
    command = [sys.executable, "-m", "cass_scale.torchrun", "--nproc-per-node=2", *words, str(script), str(folder)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


def finish(launched: subprocess.Popen[str]) -> tuple[int, str]:
    said = launched.communicate(timeout=60)[1]
    return launched.returncode, said


def wait_for(folder: Path, names: Sequence[str]) -> None:
    deadline = time.monotonic() + 60
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ("sys.exit(3)", 3, "rank 1 ended with exit code 3"),
        ("os.kill(os.getpid(), 9)", 1, "rank 1 was killed by SIGKILL"),
    ],
)
def test_the_job_ends_as_the_rank_that_ended_first(tmp_path: Path, ending: str, code: int, words: str) -> None:
    found, said = finish(start(tmp_path, ENDS + ending, "--standalone"))
    assert found == code and words in said, said


@pytest.mark.dist
@pytest.mark.parametrize("program", [SAVES, SAVES.replace("signal.signal", "print")], ids=["saves", "is killed by it"])
def test_a_signal_goes_to_the_ranks_and_the_job_ends_with_75(tmp_path: Path, program: str) -> None:
    launched = start(tmp_path, program, "--standalone")
    wait_for(tmp_path, "01")
    launched.send_signal(signal.SIGUSR1)
    code, said = finish(launched)
    assert code == 75 and "stopped by SIGUSR1" in said, said


@pytest.mark.dist
def test_a_signal_before_the_hosts_have_met_is_preemption_too(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as found:
        port = found.getsockname()[1]
    meet = ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=alone")
    launched = start(tmp_path, SAVES, *meet)
    time.sleep(2)  # in its imports, or waiting for the other host
    launched.send_signal(signal.SIGTERM)
    assert finish(launched)[0] == 75
