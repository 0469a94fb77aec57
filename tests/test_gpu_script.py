"""benchmarks/gpu.sh: parts that fail or take too long are told, the others go on, and the exit code tells."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu.sh"


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [str(SCRIPT), *words], capture_output=True, text=True, env=environment, check=False, timeout=60
    )


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter whose step fails, and whose savings never end."""
    file = tmp_path / "python"
    file.write_text('#!/bin/sh\ncase "$*" in *name=step*) exit 3 ;; *name=savings*) sleep 60 ;; esac\necho "ran $*"\n')
    file.chmod(0o755)
    return str(file)


def test_the_clock_and_failures_stop_one_part_only(python: str, tmp_path: Path) -> None:
    variables = {"PYTHON": python, "DATA": str(tmp_path), "LIMIT": "8", "PARTS": "step savings-224 views"}
    done = run("--cpu", str(tmp_path / "out"), **variables)
    assert done.returncode == 1
    assert "step failed, exit code 3" in done.stderr and "savings-224 was stopped by the clock" in done.stderr
    assert "benchmarks/views.py --size 96" in done.stdout and "not done: step savings-224" in done.stdout


@pytest.mark.parametrize(
    ("words", "variables", "code", "said"),
    [
        (("--gpu",), {}, 2, "--gpu: --cpu, or the folder for the records is needed"),
        ((), {"PARTS": "steps"}, 2, "PARTS: there is no part steps"),
        (("--cpu",), {"PYTHON": "false"}, 1, "PYTHON=false cannot run cass_scale"),
    ],
)
def test_what_it_lacks_is_told(
    words: tuple[str, ...], variables: dict[str, str], code: int, said: str, tmp_path: Path
) -> None:
    done = run(*words, OUT=str(tmp_path / "out"), **variables)
    assert done.returncode == code and said in done.stderr
