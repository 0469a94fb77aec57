"""Two records side by side: what is noise, what is a change, and which records cannot be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cass_scale import bench, records
from cass_scale.errors import ConfigError, DataError
from cass_scale.measure.compare import leaves, paired, verdict


def record(folder: Path, figures: Any, **fields: Any) -> Path:
    folder.mkdir()
    whole = {
        "schema": 1, "question": "How fast?", "figures": figures, "options": {"batch": 16, "out": str(folder)},
        "git": {"sha": "a" * 40, "dirty": False}, "versions": {"cass-scale": "0.1.0", "torch": "2.13.0"},
        "machine": "Xeon, 2 cores", "finished": "2026-11-20T10:00:00+00:00",
    }  # fmt: skip
    records.write_json(folder / records.RUN, whole | fields)
    return folder


def test_a_change_inside_the_spread_is_noise_and_one_outside_is_not(tmp_path: Path) -> None:
    a = record(tmp_path / "a", {"fast": [1.0, 1.1, 1.2], "slow": [5.0, 5.1, 5.2], "size": 7, "gone": 1})
    b = record(tmp_path / "b", {"fast": [1.15, 1.05, 1.3], "slow": [4.0, 4.1, 4.2], "size": 8})
    made = bench("compare", str(a), str(b), quiet=True)
    found = {row["figure"]: row["verdict"] for row in made["figures"]}
    assert found == {"slow": "lower", "size": "one value", "gone": "one value", "fast": "noise"}
    assert next(iter(found)) == "slow", "changes come first"
    assert "1 of 4 figures changed by more than their spread" in made["table"]
    assert "| slow | 5.1 (5.01 to 5.19, 3) | 4.1 (4.01 to 4.19, 3) | 0.804 | **lower in b** |" in made["table"]
    assert "not there" in made["table"]


def test_one_odd_hiccup_among_many_does_not_hide_a_change() -> None:
    before, after = [1.0 + i / 1000 for i in range(40)], [0.8 + i / 1000 for i in range(39)] + [1.5]
    assert verdict("step", before, after)["verdict"] == "lower"
    assert verdict("step", before, before)["verdict"] == "noise"


def test_turns_and_repeated_times_are_one_figure_and_epochs_are_not() -> None:
    turns = [{"start": s, "epochs": [{"s": 1.0}, {"s": 2.0}], "name": "x", "ok": True} for s in (3.0, 4.0)]
    figures = {"folder/1": turns}
    assert paired(figures, {})["folder/1.start"] == ([3.0, 4.0], [])
    assert paired(figures, figures)["folder/1.epochs.1.s"] == ([2.0, 2.0], [2.0, 2.0])
    assert [value for _, value in leaves({"bare": [{"times": [1, 2]}, {"times": [3]}]})] == [1.0, 2.0, 3.0]


def test_other_options_machines_and_versions_are_said(tmp_path: Path) -> None:
    a = record(tmp_path / "a", {"x": [1, 2]})
    b = record(
        tmp_path / "b", {"x": [1, 2]}, options={"batch": 32}, machine="H200",
        versions={"cass-scale": "0.2.0", "torch": "3.0"}, git={"sha": "b" * 40, "dirty": True},
    )  # fmt: skip
    text = bench("name=compare", f"a={a}", f"b={b / 'run.json'}", quiet=True)["table"]
    assert "batch: 16 -> 32" in text and "machine: Xeon, 2 cores -> H200" in text and "torch: 2.13.0 -> 3.0" in text
    assert "cass-scale 0.2.0 at bbbbbbbbbbbb with changes" in text


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = record(tmp_path / "a", {})
    other = record(tmp_path / "other", {}, question="How large?")
    with pytest.raises(ConfigError, match=r"answer different questions: 'How fast\?' and 'How large\?'"):
        bench("name=compare", f"a={a}", f"b={other}", quiet=True)
    old = record(tmp_path / "old", {}, schema=0, git={"sha": "c" * 40, "dirty": False})
    both = r"a has schema 1 \(cass-scale 0.1.0 at a{12}\), b has schema 0 \(cass-scale 0.1.0 at c{12}\)"
    with pytest.raises(ConfigError, match=both):
        bench("name=compare", f"a={a}", f"b={old}", quiet=True)
    records.write_json(tmp_path / "run.json", {"schema": 1, "status": "done"})
    with pytest.raises(DataError, match=r"b=.* is no record of a benchmark; give a folder"):
        bench("name=compare", f"a={a}", f"b={tmp_path}", quiet=True)
    with pytest.raises(ConfigError, match=r"bench.b=None: the folder of a record is needed"):
        bench("name=compare", f"a={a}", quiet=True)
