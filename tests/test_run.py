"""The run folder: who may write, what a resume puts back, and how two configurations differ."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cass_scale import records
from cass_scale.console import Console
from cass_scale.errors import ConfigError, StorageError
from cass_scale.locks import lock
from cass_scale.meter import Meter
from cass_scale.run import Run, differences
from cass_scale.samples import save_grid

# Holds the folder as a run does, with a forked child that outlives it, as data workers do for some seconds.
HOLDER = """
import os, sys, time
from pathlib import Path
from cass_scale.locks import lock
held = lock(Path(sys.argv[1]))
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(120)
"""


def make(folder: Path, *, main: bool = True) -> Run:
    if not (folder / records.RUN).exists():
        records.create(folder, {})
    return Run(folder, Meter(torch.device("cpu")), Console(quiet=True), main=main)


def row(step: int, seconds: float = 0.0) -> dict[str, Any]:
    return {
        "step": step, "epoch": 0, "loss": 1.0, "images_per_s": 1.0, "data_wait": 0.0, "device_hours": 0.0,
        "seconds": seconds,
    }  # fmt: skip


def test_rows_are_logged_shown_and_sent_to_the_trackers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path)
    run.console.quiet = False
    sent: list[tuple[dict[str, Any], int]] = []
    run.track = lambda found, step: sent.append((found, step))
    run.log(row(5), 10)
    assert records.read_metrics(tmp_path / records.METRICS) == [row(5)]
    assert sent == [(row(5), 5)]
    assert "step 5/10" in capsys.readouterr().err


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    records.create(tmp_path, {})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    run = make(tmp_path, main=False)
    run.log(row(1), 10)
    run.update(status="done")
    assert run.last == row(1)
    run.rewind(0, {"spans": {}, "elapsed": 3.0})
    assert run.meter.elapsed() > 3.0
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_updates_carry_the_meter(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.meter.add("step", 7200.0)
    run.update(status="done", steps=3)
    record = records.read(tmp_path)
    assert (record["status"], record["steps"]) == ("done", 3)
    assert record["spans"]["step"] == 7200.0
    assert record["device_hours"]["train"] == 2.0
    assert record["peak_memory_bytes"] > 0


def test_a_collapse_is_noted_once_per_arm_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path)
    run.note_collapse(1, [])
    run.note_collapse(2, [("cnn", "one output")])
    run.note_collapse(3, [("cnn", "one output")])
    run.note_collapse(4, [("cnn", "one output"), ("vit", "too")])
    found = [(entry["step"], entry["arm"]) for entry in records.read(tmp_path)["collapse"]]
    assert found == [(2, "cnn"), (4, "vit")]
    assert capsys.readouterr().err == "COLLAPSE at step 2, cnn: one output\nCOLLAPSE at step 4, vit: too\n"


def test_killed_when_only_the_row_of_step_0_was_written(tmp_path: Path) -> None:
    make(tmp_path).log({"step": 0, "epoch": 0, "images": 0}, 10)
    again = make(tmp_path)
    again.rewind(-1, None)
    assert records.read_metrics(tmp_path / records.METRICS) == [] and again.last == {}


def test_a_resume_forgets_rows_and_collapses_after_the_checkpoint_and_bills_the_time(tmp_path: Path) -> None:
    first = make(tmp_path)
    for step in (2, 4, 6):
        first.log(row(step, seconds=10.0 * step), 10)
    first.note_collapse(3, [("cnn", "early")])
    first.note_collapse(5, [("vit", "late")])

    again = make(tmp_path)
    again.rewind(4, {"spans": {"step": 30.0}, "elapsed": 40.0})
    assert [r["step"] for r in records.read_metrics(tmp_path / records.METRICS)] == [2, 4]
    assert [entry["arm"] for entry in again.collapse] == ["cnn"]
    assert again.meter.spans == {"step": 30.0, "lost": 20.0}
    assert again.meter.elapsed() == pytest.approx(60.0, abs=5.0)
    assert again.last == row(4, seconds=40.0), "what the record repeats when nothing is left to do"
    assert [entry["arm"] for entry in records.read(tmp_path)["collapse"]] == ["cnn"]
    again.note_collapse(5, [("vit", "late")])
    assert [entry["arm"] for entry in again.collapse] == ["cnn", "vit"]


WRITES: dict[str, Callable[[Run], object]] = {
    "metrics.jsonl": lambda run: run.log(row(2), 10),
    "run.json": lambda run: run.update(status="done"),
}


@pytest.mark.parametrize("file", WRITES)
def test_a_full_disk_is_one_clear_message_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    run = make(tmp_path)
    run.log(row(1), 10)
    before = (tmp_path / file).read_bytes()

    real = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **keys: Any) -> Any:
        if mode.startswith("r"):
            return real(path, mode, *args, **keys)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(
        StorageError, match=rf"{file} could not be written \(No space left on device\).*free some space"
    ):
        WRITES[file](run)
    monkeypatch.undo()
    assert (tmp_path / file).read_bytes() == before


def test_a_second_process_is_refused_and_kill_9_frees_the_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(ConfigError, match=rf"run\.dir={tmp_path} is in use by another process"):
            lock(tmp_path)
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it lives
        with lock(tmp_path):
            pass
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with lock(tmp_path):
            assert (tmp_path / ".lock").exists()


def test_differences_are_dotted_sorted_and_complete() -> None:
    old = {"seed": 0, "optim": {"lr": 0.1, "name": "adam"}, "arms": {"cnn": {"mean": None}}, "gone": 1}
    new = {
        "seed": 0,
        "optim": {"lr": 0.2, "name": "adam"},
        "arms": {"cnn": {"mean": [0.5]}},
        "more": {"a": 1},
    }
    assert differences(old, new) == [
        "arms.cnn.mean: None -> [0.5]", "gone: 1 -> None", "more: None -> {'a': 1}", "optim.lr: 0.1 -> 0.2",
    ]  # fmt: skip
    assert differences(new, new) == []
    assert differences({"a": None}, {}) == []


def test_a_grid_shows_rows_of_images_in_order(tmp_path: Path) -> None:
    grey = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 2.0]).view(2, 3, 1, 1, 1).expand(2, 3, 3, 4, 4)
    save_grid(tmp_path / "samples.png", list(grey))
    pixels = np.asarray(Image.open(tmp_path / "samples.png"))
    assert pixels.shape == (8, 12, 3)
    assert pixels[::4, ::4, 0].tolist() == [[0, 51, 102], [153, 204, 255]]
