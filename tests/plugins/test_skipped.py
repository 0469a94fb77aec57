"""The section SKIPPED, in a pytest run of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CASES = """
import pytest

@pytest.mark.skip(reason="needs a tape drive")
def test_marked(): ...

def test_at_run_time():
    pytest.skip("no moon tonight")

def test_kept(): ...
"""


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "tests.plugins.skipped", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-c", "/dev/null", "--rootdir", str(folder), str(folder), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_names_every_skipped_test_and_why(tmp_path: Path) -> None:
    (tmp_path / "test_cases.py").write_text(CASES)
    section = run(tmp_path).split(" SKIPPED ")[1].splitlines()
    assert section[1] == "test_cases.py::test_marked: needs a tape drive"
    assert section[2] == "test_cases.py::test_at_run_time: no moon tonight"
    assert "test_kept" not in "\n".join(section)


def test_says_nothing_where_nothing_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "test_cases.py").write_text(CASES)
    assert "SKIPPED" not in run(tmp_path, "-k", "test_kept")
