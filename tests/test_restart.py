"""The same command again: what a run folder accepts, what it refuses, and what its record says then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cass_scale import records
from cass_scale.errors import ConfigError
from tests.short_runs import pictures, short


def test_max_steps_may_grow(tmp_path: Path) -> None:
    short(tmp_path / "run", "train.max_steps=1")
    record = short(tmp_path / "run", "train.max_steps=2")
    assert record["steps"] == record["total_steps"] == 2 and "train.max_steps=2" in record["command"]
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["train"]["max_steps"] == 2


def test_a_run_killed_before_its_record_or_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    short(run, "train.max_steps=2")
    shutil.rmtree(run / "checkpoints")  # as if killed in step 2, with two rows in the log
    record = short(run, "train.max_steps=2")
    assert [row["step"] for row in records.read_metrics(run / records.METRICS)] == [0, 1, 2]
    assert record["spans"]["lost"] > 0, "what was worked before the kill is billed"
    (tmp_path / "half").mkdir()
    for name in ("config.yaml", "env.json"):
        shutil.copy(run / name, tmp_path / "half" / name)
    (tmp_path / "half/.run.json.7.tmp").touch()
    assert short(tmp_path / "half")["status"] == "done"


def test_what_changed_around_a_run_is_recorded_and_another_precision_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    short(run, "train.max_steps=1")
    old = records.read(run)
    records.update(run, world_size=8, versions=old["versions"] | {"torch": "1.0"})
    (resumed,) = short(run, "train.max_steps=2")["resumed"]
    assert resumed["world_size"] == 1 and resumed["versions"] == old["versions"] and "git" not in resumed
    records.update(run, precision="bf16")
    with pytest.raises(ConfigError, match=r"train\.precision: bf16 -> fp32 on this device"):
        short(run, "train.max_steps=3")


def test_changed_images_are_refused_on_resume(tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", 9)
    short(tmp_path / "run", f"data.path={images}", "train.max_steps=1")
    Image.new("RGB", (40, 40), "red").save(images / "0.png")
    with pytest.raises(ConfigError, match="the images or labels themselves"):
        short(tmp_path / "run", f"data.path={images}", "train.max_steps=2")


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="holds no run"):
        short(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
