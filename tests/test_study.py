"""The study verb: what is left is run, what is done is not touched, what fails or is killed stops nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cass_scale import records, study
from cass_scale.errors import ConfigError, DataError
from cass_scale.locks import lock
from cass_scale.studies import STUDY, load
from cass_scale.verbs import study as verb
from tests.short_runs import WORDS, pictures

GRID = (
    "name=batch_size", "preset=quick", "rows=[cass_contrast,cass_null]", "settings=[8,16]", "seeds=[0,1]",
    "protocols=[knn]",
)  # fmt: skip
SHORT = [word for word in WORDS if not word.startswith(("data.images", "train.batch_size"))] + ["data.images=42"]
FAKE = """
import json, pathlib, sys, time
for verb, *words in json.loads(sys.argv[1]):
    keys = dict(word.split("=", 1) for word in words if "=" in word)
    place, weights = pathlib.Path(keys["run.dir"]), keys.get("weights", "run")
    if BAD in str(place):
        raise SystemExit("loss is nan at step 3")
    (place / "evaluate").mkdir(parents=True, exist_ok=True)
    (place / "checkpoints").mkdir(exist_ok=True)
    record = {"schema": 1, "status": "done", "device_hours": {"total": 0.01, "train": 0.005}, "collapse": [],
              "method": keys.get("method"), "arms": {"cnn": {}, "vit": {}}, "data": {"name": "phantom"}, "seed": 0}
    scores = {"schema": 1, "protocol": keys.get("protocol"), "weights": weights, "n_test": 9, "seconds": 1,
              "arms": {"cnn": {"macro_f1": .5}}}
    path = place / ("run.json" if verb == "pretrain" else f"evaluate/{keys['protocol']}-{weights}.json")
    path.write_text(json.dumps(record if verb == "pretrain" else scores))
    time.sleep(SLOW)
"""


@pytest.fixture
def fake_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Rows that only write what rows leave; those whose folder contains `bad` fail."""

    def use(bad: str = "nothing", slow: float = 0.0) -> None:
        script = tmp_path / "row.py"
        script.write_text(f"BAD, SLOW = {bad!r}, {slow}\n{FAKE}")
        monkeypatch.setattr(verb, "ROW", (sys.executable, str(script)))

    use()
    return use


def stamps(folder: Path) -> dict[str, int]:
    """When each file that a row leaves was last written."""
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name not in (STUDY, ".lock")]
    return {str(path): path.stat().st_mtime_ns for path in kept}


def test_all_rows_are_run_and_the_same_command_again_touches_nothing(tmp_path: Path, fake_rows: Any) -> None:
    out = tmp_path / "out"
    record = study(*GRID, *SHORT, f"out={out}", quiet=True)
    assert record["exit_code"] == 0 and record["finished"] and len(record["rows"]) == 8
    assert len(list(out.glob("*/*/*/evaluate/knn-run.json"))) == 8
    assert len(list(out.glob("*/*/*/evaluate/knn-initial.json"))) == 4, "of one row of both arms"
    before = stamps(out)
    assert study(*GRID, *SHORT, f"out={out}", quiet=True)["exit_code"] == 0
    assert stamps(out) == before
    assert not list(out.rglob("checkpoints")), "they would fill a disk"
    grown = study(*GRID[:4], "seeds=[0,1,2]", "protocols=[knn,linear]", *SHORT, f"out={out}", quiet=True)
    assert len(grown["rows"]) == 12
    after = stamps(out)
    assert all(after[name] == when for name, when in before.items() if "/logs/" not in name)
    kept = study(*GRID, *SHORT, "keep_checkpoints=true", f"out={tmp_path / 'kept'}", quiet=True)
    assert len(list((tmp_path / "kept").rglob("checkpoints"))) == len(kept["rows"])


def test_a_failed_row_is_reported_with_its_last_words_and_the_rest_goes_on(
    tmp_path: Path, fake_rows: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_rows(bad="cass_contrast/16/s1")
    record = study(*GRID, *SHORT, f"out={tmp_path / 'out'}")
    said = " ".join(capsys.readouterr().err.split())
    assert record["exit_code"] == 1 and record["failed"] == {"cass_contrast/16/s1": "loss is nan at step 3"}
    assert "FAILED cass_contrast, 16, seed 1: loss is nan at step 3 (log: " in said
    assert "7 of 8 rows done" in said and "to go, about" in said
    found = load(tmp_path / "out", [])
    assert [member.failed for member in found.members if not member.done] == ["loss is nan at step 3"]
    fake_rows()
    again = study(*GRID, *SHORT, f"out={tmp_path / 'out'}", quiet=True)
    assert again["exit_code"] == 0 and again["failed"] == {}


def test_a_row_that_was_another_one_is_refused_before_anything_runs(tmp_path: Path, fake_rows: Any) -> None:
    words = [*GRID, *SHORT, f"out={tmp_path / 'out'}"]
    study(*words, quiet=True)
    another = r"holds another study \(cass_contrast/8/s0: nothing -> optim.lr=0.5; .* and 5 more"
    with pytest.raises(ConfigError, match=another):
        study(*words, "optim.lr=0.5", quiet=True)
    assert study(*words, "train.save_every=7", "stream.cache_bytes=0", quiet=True)["exit_code"] == 0, (
        "changes no weight"
    )
    with pytest.raises(ConfigError, match=r"name=batch_size preset=quick -> name=epochs preset=quick"):
        study("name=epochs", "preset=quick", "rows=[cass_null]", *SHORT, f"out={tmp_path / 'out'}", quiet=True)
    with lock(tmp_path / "out", "out"):
        other = [sys.executable, "-m", "cass_scale", "study", *words, "--quiet"]
        done = subprocess.run(other, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "is in use by another process" in done.stderr


def test_a_dry_run_predicts_from_finished_rows_and_starts_nothing(
    tmp_path: Path, fake_rows: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "matrix_product", lambda device, dtype: 1e9)
    out = tmp_path / "out"
    first = study(*GRID, *SHORT, f"out={out}", dry_run=True)
    assert not out.exists() and first["left"] == 8 and first["flops"] > 1e9
    assert first["device_hours"] == pytest.approx(first["flops"] / 1e9 / 3600) and "a lower bound" in first["why"]
    study(*GRID[:4], "seeds=[0]", "protocols=[knn]", *SHORT, f"out={out}", quiet=True)
    second = study(*GRID, *SHORT, f"out={out}", dry_run=True)
    assert second["left"] == 4 and second["why"] == "4 rows as long as finished rows of the same shape took"
    assert second["device_hours"] == pytest.approx(4 * 0.01 + (2 + 4) / 3600, rel=0.01), "evaluations are counted too"
    said = capsys.readouterr().err
    assert "4 of 8 rows to run" in said and "nothing was started" in said


def test_sigterm_stops_cleanly(tmp_path: Path, fake_rows: Any) -> None:
    fake_rows(slow=30)
    words = [*GRID, *SHORT, f"out={tmp_path / 'out'}"]
    command = (
        f"from cass_scale import cli; from cass_scale.verbs import study; study.ROW = {verb.ROW!r}; "
        f"raise SystemExit(cli.main({['study', *words]!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/*/*/*/run.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "SIGTERM: rows under way have saved" in said
    assert records.read_json(tmp_path / "out" / STUDY)["failed"] == {}, "what was stopped has not failed"


def test_bad_input_is_told_before_anything_runs(
    tmp_path: Path, fake_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(tmp_path / "images", 12)
    out = f"out={tmp_path / 'out'}"
    small = [word for word in SHORT if not word.startswith("data.")] + [f"data.path={images}", out]
    with pytest.raises(DataError, match=r"12 images are fewer than one batch of 16"):
        study(*GRID, *small, quiet=True)
    with pytest.raises(DataError, match=r"has no labels to score with"):
        study(*GRID[:3], "settings=[8]", *GRID[4:], *small, quiet=True)
    with pytest.raises(ConfigError) as found:
        study(GRID[0], *SHORT, "target=accuracy", "jobs=0", "preset=tiny", quiet=True)
    assert all(word in str(found.value) for word in ("target=accuracy: one of macro_f1", "jobs=0", "preset=tiny"))
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="start it without accelerate launch"):
        patch.setenv("WORLD_SIZE", "2")
        study(*GRID, *SHORT, quiet=True)
    with pytest.raises(ConfigError, match=r"name=batchsize|study=batchsize: no such choice; did you mean batch_size"):
        study("name=batchsize")
    assert not (tmp_path / "out").exists()


def test_fewer_seeds_than_an_interval_needs_are_said(
    tmp_path: Path, fake_rows: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    study(*GRID, *SHORT, f"out={tmp_path / 'out'}", quiet=True)
    assert "2 seed(s): an interval needs 3; the report will give none" in " ".join(capsys.readouterr().err.split())


def test_slots_are_the_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [verb.Row("one", "8", 0, ())]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert verb.choose_slots(None, rows) == ["0", "1", "2"] and verb.choose_slots(4, rows) == ["0", "1", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    assert verb.choose_slots(2, rows) == ["GPU-a", "GPU-b"]
    assert verb.choose_slots(None, [verb.Row("one", "8", 0, ("train.device=cpu",))]) == [None]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_study_survives_kill_9_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cass_scale", "study", *GRID, *SHORT, f"out={out}", "jobs=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 500
    scored = "*/*/*/evaluate/knn-run.json"
    while len(list(out.glob(scored))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    rows = records.read_json(out / STUDY)["rows"]
    finished = [out / key for key in rows if not verb.commands(_row(rows[key]), out)]
    assert 0 < len(finished) < 8
    before = {str(place): stamps(place) for place in finished}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"{len(finished)} rows were done before" in done.stderr and "8 of 8 rows done" in done.stderr
    assert {str(place): stamps(place) for place in finished} == before, "rows that were done are untouched"
    whole = load(out, [])
    assert all(member.done for member in whole.members)
    assert set(whole.scores("cass_contrast", "16", "vit", "knn")) == {0, 1}
    assert whole.scores("initial", "8", "cnn", "knn") == whole.scores("initial", "16", "cnn", "knn")


def _row(record: Any) -> Any:
    return verb.Row(record["row"], record["setting"], record["seed"], tuple(record["words"]), record["evaluations"])
