"""What can be watched of a run from outside: status, logs, heartbeat, profile, trackers."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cass_scale import records, report, status
from cass_scale.cli import main
from cass_scale.errors import ConfigError
from cass_scale.locks import lock
from cass_scale.traces import steps
from tests.fake_runs import add_run
from tests.short_runs import short

BEAT = {
    "rank": 0, "host": "a", "pid": 7, "step": 41, "doing": "data", "where": "stream.py:99 in epoch", "step_s": 0.25,
    "data_s": 0.5, "age_s": 0.0,
}  # fmt: skip


def running(folder: Path, **fields: Any) -> Path:
    """A run at step 40 of 400, with two ranks."""
    run = add_run(folder, "run", "cass_contrast", steps=40, status="running", finished=None, **fields)
    (run / "checkpoints").mkdir()
    (run / "checkpoints/step_00000030.pt").touch()
    beats = [BEAT, BEAT | {"rank": 1, "host": "b", "age_s": 30.0}]
    records.write_json(run / "heartbeat.json", {"time": 0.0, "ranks": beats})
    return run


def test_status_of_a_dead_run_says_so_and_where_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = running(tmp_path, collapse=[{"arm": "cnn", "step": 20, "why": "one output"}])
    (run / ".lock").touch()
    run.chmod(0o555)
    assert main(["status", f"run.dir={run}"]) == 0
    run.chmod(0o755)
    said = capsys.readouterr().err
    for words in ("dead: no process holds the folder", "40 of 400", "cnn at step 20", "step 30,", "rank 1", "on b)"):
        assert words in said
    assert "0.250 s per step and 0.500 s waiting for data" in said


def test_status_of_a_running_run_as_json(tmp_path: Path) -> None:
    run = running(tmp_path)
    code = "import sys; from pathlib import Path; from cass_scale.locks import lock; held = lock(Path(sys.argv[1])); "
    command = [sys.executable, "-c", code + "print(1, flush=True); input()", str(run)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "1\n"
        found = status(f"run.dir={run}", "json=true", quiet=True)
    finally:
        holder.communicate("\n")
    assert (found["state"], found["held"], found["step"]) == ("running", True, 40)
    left = (400 - 40) * 16 / found["images_per_s"] / 3600
    assert found["hours_left"] == pytest.approx(left) and found["loss"] > 0 and found["checkpoint"]["step"] == 30
    assert [rank["host"] for rank in found["ranks"]] == ["a", "b"]


def test_status_prints_json_that_parses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", f"run.dir={running(tmp_path)}", "json=true"]) == 0
    assert json.loads(capsys.readouterr().out)["total_steps"] == 400


@pytest.mark.parametrize(("words", "code"), [([], 2), (["run.dir=nowhere"], 3), (["run.dir=x", "json=maybe"], 2)])
def test_status_names_what_is_wrong(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", *words]) == code
    said = capsys.readouterr().err
    assert ("json=maybe" if "json=maybe" in words else "nowhere" if words else "run.dir=None") in said


def test_a_folder_is_busy_for_readers_too(tmp_path: Path) -> None:
    with lock(tmp_path):
        pass
    assert status(f"run.dir={running(tmp_path)}", quiet=True)["held"] is False


def test_stragglers_are_marked_in_the_report(tmp_path: Path) -> None:
    quick = {"host": "a", "steps": 40, "step_s": 0.3, "data_s": 0.001}
    ranks = [quick, quick, quick | {"host": "slow", "data_s": 0.1}]
    add_run(tmp_path, "run", "cass_contrast", world_size=3, backend="zero2", ranks=ranks)
    page = Path(report(f"runs={tmp_path}", f"out={tmp_path / 'page.html'}", quiet=True)["out"]).read_text()
    assert page.count("the others wait for it") == 1 and "<td>slow</td>" in page
    assert "world size 3, zero2<" in page


@pytest.mark.parametrize("text", ["0", "3-2", "a", "1-2-3", "-4", "2.5"])
def test_steps_to_profile(text: str) -> None:
    assert steps("10-12") == (10, 12) and steps("7") == (7, 7)
    with pytest.raises(ConfigError, match=r"profile\.steps=.*as in 10-12"):
        steps(text)


def test_a_run_leaves_its_log_heartbeat_profile_and_all_trackers_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, and nothing outside of the run's folder."""
    for package in ("tensorboard", "wandb", "mlflow"):
        pytest.importorskip(package, reason="needs the extra `trackers`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    run = tmp_path / "run"
    record = short(run, "train.trackers=[tensorboard,wandb,mlflow]", "profile.steps=2-3")
    assert list(here.iterdir()) == [], "trackers write into the run's folder"
    assert list(run.rglob("events.out.tfevents.*")) and list(run.rglob("run-*.wandb"))
    with closing(sqlite3.connect(run / "mlflow.db")) as table:
        assert table.execute("select step from metrics where key = 'loss' order by step").fetchall() == [
            (1,),
            (2,),
            (3,),
        ]
    traced = json.loads((run / "profile/rank_0_steps_2-3.json").read_text())["traceEvents"]
    assert any("conv" in str(event.get("name")) for event in traced)
    log = (run / "logs/rank_0.log").read_text()
    assert "rank 0 of 1" in log and "step 3/3" in log
    (beat,) = json.loads((run / "heartbeat.json").read_text())["ranks"]
    assert beat["step"] == 3 and beat["bye"]
    (rank,) = record["ranks"]
    assert rank["steps"] == 3 and rank["step_s"] > 0
