"""The bench verb: sides take turns, tables say what was measured, a record is left, problems are told at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from cass_scale import bench, records
from cass_scale.errors import ConfigError, DataError
from cass_scale.evidence import Finding
from cass_scale.measure import costs, loaders, savings, step, turns
from cass_scale.measure.turns import UNFINISHED, end_of, failed, in_turns, ratio, spread, told
from cass_scale.types import Call
from cass_scale.verbs import bench as bench_verb
from tests.short_runs import pictures

STAYS = """
import json, os, sys
for turn, _ in enumerate(sys.stdin):
    if sys.argv[1] == "leaves" and turn:
        sys.exit("out of memory")
    print("noise")
    print(json.dumps({"process": os.getpid(), "turn": turn}), flush=True)
"""
STEP = "import json,sys,time; print('noise'); print(json.dumps({'side': sys.argv[1], 'at': time.monotonic()}))"


@pytest.fixture
def side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_side.py").write_text(STEP)
    (tmp_path / "a_staying_side.py").write_text(STAYS)
    (tmp_path / "a_broken_side.py").write_text("raise SystemExit('no such loader')")
    told = "print('{\"error\": \"rank 1: no room\"}'); raise SystemExit('a report of the launcher')"
    (tmp_path / "a_side_that_tells.py").write_text(told)
    (tmp_path / "a_slow_side.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_sides_take_turns_in_alternating_order(side: None) -> None:
    said: list[str] = []
    found = in_turns({name: ["one_side", name] for name in "abc"}, 2, said.append)
    order = sorted((result["at"], result["side"]) for results in found.values() for result in results)
    assert [name for _, name in order] == ["a", "b", "c", "c", "b", "a"]
    assert len(said) == 6


def test_a_side_that_fails_is_told_once_and_the_others_go_on(side: None) -> None:
    sides = {"bad": ["a_broken_side"], "telling": ["a_side_that_tells"], "good": ["one_side", "good"]}
    found = in_turns(sides, 3, lambda text: None)
    assert failed(found["telling"]) == "rank 1: no room"
    assert failed(found["bad"]) == "no such loader" and len(found["bad"]) == 1
    assert failed(found["good"]) == "" and len(found["good"]) == 3


def test_sides_that_stay_are_started_once_and_leave_at_the_end(side: None) -> None:
    names = {name: ["a_staying_side", name] for name in ("stays", "leaves")} | {"bad": ["a_broken_side"]}
    found = in_turns(names, 3, lambda text: None, stay=True)
    (process,) = {result["process"] for result in found["stays"]}
    assert [result["turn"] for result in found["stays"]] == [0, 1, 2] and not Path(f"/proc/{process}").exists()
    assert len(found["leaves"]) == 2 and failed(found["leaves"]) == "out of memory"
    assert len(found["bad"]) == 1 and failed(found["bad"]) == "no such loader"


@pytest.mark.parametrize("stay", [True, False])
def test_at_the_end_of_its_time_a_side_is_stopped_and_the_others_are_kept(side: None, stay: bool) -> None:
    """The second side would take a minute: the first is there, and the two that are not are told."""
    names = {"quick": ["a_staying_side", "stays"], "slow": ["a_slow_side"], "not begun": ["a_staying_side", "stays"]}
    names |= {} if stay else {"quick": ["one_side", "quick"]}
    begun = time.monotonic()
    found = in_turns(names, 2, lambda text: None, stay=stay, until=end_of(3))
    assert time.monotonic() - begun < 30
    assert len(found["quick"]) == 1 and not failed(found["quick"])
    assert told(found["slow"]) == told(found["not begun"]) == "unfinished: its time was up"


def test_only_whole_turns_count_when_time_is_up() -> None:
    one, late, broken = {"x": 1}, dict(UNFINISHED), {"error": "no room"}
    found = turns._whole_turns({"a": [one] * 3, "b": [one, one, late], "c": [one, broken]})
    assert found == {"a": [one] * 2, "b": [one] * 2, "c": [one, broken]}
    assert turns._whole_turns({"a": [one, late], "b": [late], "c": []}) == {"a": [one], "b": [late], "c": []}
    assert told([broken]) == "failed: no room" and told([one]) == ""


def test_ratio_is_taken_turn_by_turn() -> None:
    assert ratio([2.0, 30.0, 400.0], [1.0, 10.0, 100.0]) == 3.0
    assert spread([1.0, 3.0, 2.0], 1) == "2.0 (1.0 to 3.0)"


@pytest.mark.parametrize("name", ["folder", "imagefolder", "imagefolder_v2", "dali_reader"])
def test_a_side_reads_whole_batches_of_one_form(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "dali_reader":
        pytest.importorskip("nvidia.dali", reason="needs the extra dali")
    monkeypatch.setenv("CASS_SCALE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    pictures(tmp_path / "set" / "all", 10)
    job = {"side": name, "path": str(tmp_path / "set"), "size": 48, "batch": 4, "workers": 1, "epochs": 2}
    result = loaders.child(job)
    assert [epoch["images"] for epoch in result["epochs"]] == [8, 8]
    assert 0 < result["start"] < 60 and all(epoch["memory"] > 2**20 for epoch in result["epochs"])


def test_all_that_is_wrong_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as found:
        bench("name=loaders", f"data.path={tmp_path}", "bench.turns=0", "bench.workers=2", "bench.size=big")
    assert all(key in str(found.value) for key in ("bench.turns=0", "bench.workers=2", "bench.size=big"))
    with pytest.raises(ConfigError, match=r"bench=loader: no such choice; did you mean loaders"):
        bench("name=loader", f"data.path={tmp_path}")
    with pytest.raises(ConfigError, match=r"bench.only: there is no side lmdb; there are folder, folder_cached"):
        bench("name=loaders", f"data.path={tmp_path}", "bench.only=[lmdb]")


def test_too_few_images_for_a_batch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 images are fewer than bench.batch=32"):
        bench("name=loaders", f"data.path={pictures(tmp_path / 'few', 3)}", quiet=True)


def test_a_record_is_left_and_its_page_holds_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(config: object, build: object, say: object) -> Finding:
        return Finding("How fast?", "| a |\n|---|\n| 1 |", {"a": [1.0]}, {"more.csv": "a\n1\n"})

    monkeypatch.setattr(loaders, "run", quick)
    made = bench("name=loaders", f"data.path={tmp_path}", f"out={tmp_path / 'record'}", quiet=True)
    record = records.read_json(tmp_path / "record" / "run.json")
    assert record["figures"] == {"a": [1.0]} == made["figures"]
    assert record["command"].startswith("cass-scale bench name=loaders")
    assert (tmp_path / "record" / "more.csv").read_text() == "a\n1\n"
    assert "| a |\n|---|\n| 1 |" in (tmp_path / "record" / "README.md").read_text()


def test_the_time_that_a_process_takes_to_begin_is_part_of_its_limit() -> None:
    options = {"limit": 100.0, "turns": 1}
    left = bench_verb.left_of(options, Call("", born=time.time() - 30))
    assert left["turns"] == 1 and 65 < left["limit"] <= 70
    assert bench_verb.left_of(options, Call("", born=time.time() - 300))["limit"] == 0
    assert bench_verb.left_of(options, Call("")) == options and bench_verb.left_of({}, Call("", born=1.0)) == {}


def test_table_and_legend_come_from_the_figures() -> None:
    def result(speed: float) -> dict[str, object]:
        epochs = [{"images": 10, "seconds": 1, "cpu": 0.5, "memory": 2**20 * size} for size in (50, 100, 110)]
        for epoch in epochs[1:]:
            epoch["seconds"] = 10 / speed
        return {"start": 2.0, "epochs": epochs}

    figures = {f"{name}/1": [result(100.0), result(100.0)] for name in loaders.SIDES}
    figures |= {"folder/1": [result(150.0), result(150.0)], "imagefolder/1": [result(100.0), result(50.0)]}
    figures["litdata/1"] = [{"error": "No module named 'litdata'"}]
    text = loaders.table(figures, 1)  # type: ignore[arg-type]
    row = next(line for line in text.splitlines() if line.startswith("| **folder** |"))
    assert row == "| **folder** | 150 (150 to 150) | 2.25 | 50.00 | 10 | 2.0 | 110 | 1.10 |"
    assert "| litdata | failed: No module named 'litdata' |" in text
    assert "ffcv_raw / ffcv_raw_loader, 1 workers: 1.00" in loaders.legend(figures)  # type: ignore[arg-type]
    few = {key: figures[key] for key in ("folder/1", "dali/1")}
    assert len(loaders.table(few, 1).splitlines()) == 4 and loaders.legend(few) == ""  # type: ignore[arg-type]


def test_a_dry_run_checks_every_side_and_says_what_each_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (step, savings):
        monkeypatch.setattr(module, "in_turns", lambda *_, **__: pytest.fail("nothing may start"))
    monkeypatch.setattr(costs, "matrix_product", lambda device, dtype: 1e12)
    small = ["bench.words=['arms.image_size=32','arms.global_size=32','arms.local_size=16']", "bench.steps=4"]
    words = [*small, "bench.only=[plain,fp16]", "bench.batch_sizes=[2,4]", "bench.cuda_only=[]"]
    found = bench("step", *words, dry_run=True)["sides"]
    able = torch.cuda.is_available()
    assert list(found) == ["plain/2", "plain/4", *(["fp16/2"] if able else [])]
    flops, seconds = found["plain/4"]["flops_per_image"], found["plain/4"]["seconds"]
    assert flops > 1e6 and seconds == pytest.approx((3 + 4) * 4 * flops / 1e12)
    data = pictures(tmp_path / "set", 12)
    words = [*small, f"data.path={data}", "bench.recipes=[dino_small]", "bench.methods=[cass]", "bench.batch=4"]
    found = bench("savings", *words, "bench.turns=2", dry_run=True)["sides"]
    assert list(found) == ["cass", "dino_small/cnn", "dino_small/vit"] and all(one["seconds"] for one in found.values())
    with pytest.raises(ConfigError, match=r"method=dino_smal: no such choice"):
        bench("savings", *words[:3], "bench.recipes=[dino_smal]", dry_run=True)


def test_seconds_of_a_side_are_those_that_its_steps_may_take() -> None:
    assert costs.seconds(1.0, {"turns": 2, "warmup": 3, "steps": 20, "seconds": 5}) == 2 * (3 + 5)
    assert costs.seconds(4.0, {"turns": 1, "warmup": 1, "steps": 20, "seconds": 5}) == 4 + 3 * 4
