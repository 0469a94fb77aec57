"""Records: whole after a crash, honest about their origin, silent about secrets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cass_scale import records
from cass_scale.errors import ConfigError, DataError
from cass_scale.records import MetricsLog, read_metrics

ROOT = Path(__file__).parents[1]


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_atomic_write_replaces_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    records.atomic_write_text(file, "old")
    records.atomic_write_text(file, "nöu\n")
    assert file.read_bytes() == "nöu\n".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_write_that_fails_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    records.atomic_write_text(file, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        records.atomic_write_text(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_has_no_nan_and_paths_are_text(tmp_path: Path) -> None:
    records.write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("-inf"), 1.5], "c": Path("x/y")})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [None, 1.5], "c": "x/y"}


def test_config_hash_depends_on_content_only() -> None:
    one = records.config_hash({"a": 1, "b": {"c": (1, 2), "d": None}})
    assert re.fullmatch("[0-9a-f]{16}", one)
    assert one == records.config_hash({"b": {"d": None, "c": [1, 2]}, "a": 1})
    assert one != records.config_hash({"a": 1, "b": {"c": [2, 1], "d": None}})
    assert one == "6146dd4938e3bf91"  # stays the same across versions of Python, or no old run resumes


def test_versions_of_what_is_installed() -> None:
    found = records.versions(["pytest", "no-such-package"])
    assert found == {"pytest": pytest.__version__}


def test_env_keeps_secrets_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "RANK": "3",
    }
    hidden = ("WANDB_API_KEY", "HF_TOKEN", "ACCELERATE_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "XRANK", "HOME")
    for name in (*shown, *hidden):
        monkeypatch.setenv(name, shown.get(name, "hush"))
    found = records.env()
    assert shown.items() <= found["variables"].items()
    assert "hush" not in json.dumps(found)
    assert found["cores"] >= 1 and found["memory_bytes"] > 2**28


def test_git_state_follows_the_checkout(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("installed/\n")
    nothing = {"sha": None, "dirty": None}
    assert records.git_state(package) == nothing  # no repository
    git(tmp_path, "init", "-q")
    assert records.git_state(package) == nothing  # a repository that does not track it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    clean = records.git_state(package)
    assert re.fullmatch("[0-9a-f]{40}", clean["sha"]) and clean["dirty"] is False
    (tmp_path / "notes.txt").write_text("outside the package, untracked")
    assert records.git_state(package) == clean
    (package / "b.py").write_text("untracked code")
    assert records.git_state(package) == {**clean, "dirty": True}
    (package / "b.py").unlink()
    (package / "a.py").write_text("a = 2\n")
    assert records.git_state(package)["dirty"] is True


def test_git_state_of_an_installed_package_is_not_its_surroundings(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("installed/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "a.py").write_text("a = 1\n")
    assert records.git_state(tmp_path / "installed") == {"sha": None, "dirty": None}


def test_git_state_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert records.git_state() == {"sha": None, "dirty": None}


def test_record_is_created_once_updated_and_read(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    made = records.create(run, {"method": "cass", "seed": 3})
    assert made["schema"] == 1 and made["status"] == "running" and made["finished"] is None
    assert made["collapse"] == [] and made["started"].endswith("+00:00")
    records.update(run, status="done", images_seen=64)
    assert records.read(run) == made | {"status": "done", "images_seen": 64}
    with pytest.raises(ConfigError, match=r"run.dir=.*one already holds a run; resume it or choose another"):
        records.create(run, {})


def test_record_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run.json in .*: not a run folder; run `cass-scale pretrain` first"):
        records.read(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 1,')
    with pytest.raises(DataError, match=r"run.json cannot be read as JSON \(.*\); restore it, or remove"):
        records.read(tmp_path)
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(DataError, match=r"run.json holds a list, not a JSON object"):
        records.read(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 2}')
    with pytest.raises(DataError, match=r"run.json has schema 2; this cass-scale reads schema 1 to 1: `pip"):
        records.read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run.dir=.*/file/run cannot be written \(Not a directory\)"):
        records.create(tmp_path / "file" / "run", {})


def test_find_runs_is_sorted_and_does_not_look_into_runs(tmp_path: Path) -> None:
    for name in ("b", "a/deep", "b/checkpoints/inner"):
        records.create(tmp_path / name, {})
    (tmp_path / "c").mkdir()
    assert records.find_runs(tmp_path) == [tmp_path / "a" / "deep", tmp_path / "b"]
    assert records.find_runs(tmp_path / "b") == [tmp_path / "b"]
    assert records.find_runs(tmp_path / "absent") == []


def test_metrics_cut_by_a_kill_are_read_truncated_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    log = MetricsLog(path)
    log.truncate(0)  # nothing there yet
    for step in range(1, 6):
        log.append({"step": step, "loss": 1 / step})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]
    log = MetricsLog(path)
    log.append({"step": 6, "loss": float("inf")})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5, 6]
    assert read_metrics(path)[-1]["loss"] is None
    with path.open("a") as file:
        file.write('{"step": 7, "lo')
    log.truncate(4)
    log.append({"step": 5, "loss": 0.5})
    assert read_metrics(path) == [
        *({"step": s, "loss": 1 / s} for s in range(1, 5)),
        {"step": 5, "loss": 0.5},
    ]
    assert path.read_bytes().endswith(b"}\n")


def test_a_last_row_without_its_newline_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    MetricsLog(path).append({"step": 3})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_a_damaged_row_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl, line 2 is damaged \(.*\); remove that line"):
        read_metrics(path)


def test_nothing_is_lost_or_torn_by_kill_nine(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cass_scale import records\n"
        "run = Path(sys.argv[1]); records.create(run, {'big': ['x' * 100] * 1000})\n"
        "log = records.MetricsLog(run / 'metrics.jsonl')\n"
        "for step in range(10**9):\n"
        "    log.append({'step': step, 'pad': 'y' * 200}); records.update(run, steps=step)\n"
        "    print(step, flush=True)\n"
    )
    run = tmp_path / "run"
    command = [sys.executable, "-c", code, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(20)]
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.readlines()
    last = int(seen[-1])
    record, rows = records.read(run), read_metrics(run / "metrics.jsonl")
    assert last <= record["steps"] <= last + 1 and len(record["big"]) == 1000
    assert [row["step"] for row in rows] == list(range(len(rows))) and len(rows) >= last + 1


def test_records_need_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import cass_scale.records\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names - {'cass_scale'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
