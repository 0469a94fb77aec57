"""bench name=savings: the same stream for every side, honest sums and intervals, and all that is wrong told at once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cass_scale import bench
from cass_scale.cli import build, compose_config
from cass_scale.errors import ConfigError, DataError
from cass_scale.measure import savings, savings_page, step
from cass_scale.measure.savings_table import Sides, cost, hours, saving, tables
from cass_scale.measure.savings_table import rows as lines
from cass_scale.measure.turns import UNFINISHED
from cass_scale.types import JSON
from tests.short_runs import pictures

SIDES = Sides(("cass",), ("dino_paper",), ("cnn", "vit"), {})
OPTIONS: JSON = {"turns": 3, "words": [], "watts": None, "price_per_hour": None, "grid_kg_per_kwh": None}
OPTIONS |= {"arms": "tiny", "batch": 10, "labelled": []}
SMALL = (
    "name=savings", "arms=tiny", "bench.methods=[cass]", "bench.recipes=[dino_small]", "bench.batch=4", "bench.turns=1",
    "bench.steps=3", "bench.warmup=1",
    "bench.words=['arms.image_size=32','arms.global_size=32','arms.local_size=16','train.device=cpu','stream.workers=0']",
)  # fmt: skip


def result(per_step: float, flops: float, **more: Any) -> JSON:
    """A side's turn: three steps of ten images."""
    spans = {"data": 0.3 * per_step, "views": 0.6 * per_step, "step": 2 * per_step, "after": 0.0}
    one = {"times": [per_step] * 3, "batch": 10, "spans": spans, "flops_per_image": flops, "parameters": 2_000_000}
    one |= {"optimizer": 0.1 * per_step, "peak_memory": 2**30, "joules": None, "precision": "fp32", "image_size": 96}
    return one | {"models": ["resnet10t", "vit"]} | more


def figures(cass: list[float], cnn: list[float], vit: list[float]) -> JSON:
    """Seconds of a step per turn; CASS counts 3 GFLOP per image, either run of DINO 4."""
    sides = {
        "cass": [result(t, 3e9) for t in cass],
        "dino_paper/cnn": [result(t, 4e9) for t in cnn],
        "dino_paper/vit": [result(t, 4e9) for t in vit],
    }
    return {"data": {"name": "brain", "images": 99, "synthetic": False}, "sides": sides}


def test_the_pair_is_the_sum_of_its_runs_and_turns_are_paired() -> None:
    """The machine is 10 % slower in turn 2; every side is, so the saving does not move."""
    drift = (1.0, 1.1, 1.0)
    found = figures(*([one * by for by in drift] for one in (3.6, 3.6, 7.2)))
    pair = cost(found, SIDES.of("dino_paper", "all"))
    assert pair.by_turn(hours)[0, 0] == pytest.approx([(3.6 + 7.2) / 10 * 1e6 / 3600 * by for by in drift])
    both = saving(found, SIDES, "cass", "dino_paper", "all")
    assert both and both[0].value == pytest.approx(1 - 3.6 / 10.8) and both[1] == pytest.approx(1 - 3 / 8)
    assert both[0].interval and both[0].interval[1] - both[0].interval[0] < 1e-6
    alone = saving(found, SIDES, "cass", "dino_paper", "cnn")
    assert alone and alone[0].value == pytest.approx(0.0) and alone[1] == pytest.approx(0.25)


def test_noise_of_the_turns_widens_the_interval_and_two_turns_have_none() -> None:
    noisy = saving(figures([3.0, 4.0, 5.0], [5.0, 4.0, 3.0], [4.0, 5.0, 4.0]), SIDES, "cass", "dino_paper", "all")
    assert noisy and noisy[0].interval and noisy[0].interval[1] - noisy[0].interval[0] > 0.3
    few = figures([3.0, 4.0], [5.0, 4.0], [4.0, 5.0])
    assert "2 turns: an interval needs 3" in tables(few, SIDES, OPTIONS | {"turns": 2})
    assert "2 turns of 3, then time was up. 2 turns: an interval needs 3" in tables(few, SIDES, OPTIONS)


def test_the_tables_say_measured_counted_and_published() -> None:
    text = tables(figures([3.6] * 3, [3.6] * 3, [7.2] * 3), SIDES, OPTIONS)
    row = "| **cass**, all arms | 9 | 2.78 (2.78 to 2.78) | 100 (100 to 100) | 3 | 0.00833 |"
    assert f"{row} 10.0 % | 20.0 % | 10.0 % | 2.0 |" in text
    assert "| dino_paper, 2 runs | 9 + 9 | 0.93 (0.93 to 0.93) | 300 (300 to 300) | 8 | 0.00741 |" in text
    assert "| cass | dino_paper, all 2 runs | 66.7% (66.7% to 66.7%) | 62.5% | +4.2 |" in text
    assert "| cass | dino_paper, cnn alone | 0.0% (0.0% to 0.0%) | 25.0% | \N{MINUS SIGN}25.0 |" in text
    assert "More than 10 points apart: cass against dino_paper, cnn (0.75 times its FLOP/s)" in text
    assert "| ISIC 2019 | 17,732 | 109.35 | 29.97 | 72.6% | 177 | 532 |" in text
    assert "kWh" not in text and "price" not in text and "CO2" not in text


def test_energy_money_and_co2_only_by_factors_that_were_given() -> None:
    found, given = figures([3.6] * 3, [3.6] * 3, [7.2] * 3), {"watts": 500, "price_per_hour": 2, "grid_kg_per_kwh": 0.4}
    text = tables(found, SIDES, OPTIONS | given)
    assert "| kWh per million images, at 500 W | price, at 2 an hour | kg CO2, at 0.4 a kWh |" in text
    assert "| 1.0 | 50 (50 to 50) | 200 (200 to 200) | 20 (20 to 20) |" in text
    for side in found["sides"].values():
        for turn in side:
            turn["joules"] = 108.0  # 3.6 J per image are 1 kWh per million
    assert "kWh per million images, by the card's counter |" in tables(found, SIDES, OPTIONS)
    assert "| 1.0 | 1 (1 to 1) |" in tables(found, SIDES, OPTIONS)
    assert "CO2" not in tables(figures([1.0] * 3, [1.0] * 3, [1.0] * 3), SIDES, OPTIONS | {"grid_kg_per_kwh": 0.4})


def test_a_side_that_fails_is_told_and_its_savings_are_left_out() -> None:
    found = figures([3.6] * 3, [3.6] * 3, [7.2] * 3)
    found["sides"]["dino_paper/vit"] = [{"error": "out of | memory"}]
    text = tables(found, SIDES, OPTIONS)
    assert "| dino_paper, vit | failed: out of / memory |" in text and "| dino_paper, 2 runs | failed:" in text
    assert "| cass | dino_paper, cnn alone |" in text and "all 2 runs" not in text
    assert "here: dino_paper" not in text and "No side ran." in tables(
        found | {"sides": {key: [{"error": "no"}] for key in found["sides"]}}, SIDES, OPTIONS
    )


def test_a_side_that_was_not_reached_in_time_is_told() -> None:
    found = figures([3.6], [3.6], [7.2])
    found["sides"]["dino_paper/vit"] = [dict(UNFINISHED)]
    text = tables(found, SIDES, OPTIONS)
    assert "| dino_paper, vit | unfinished: its time was up | |" in text
    assert "| dino_paper, 2 runs | unfinished: its time was up | |" in text
    assert "| cass | dino_paper, cnn alone |" in text and "all 2 runs" not in text
    none = found | {"sides": {name: [dict(UNFINISHED)] for name in found["sides"]}}
    assert "No side ran." in tables(none, SIDES, OPTIONS)
    assert "savings.html" in savings_page.page("How much?", none, SIDES, OPTIONS, print)


def test_supervised_has_rows_and_nothing_is_saved_against_it() -> None:
    sides = replace(SIDES, labelled=("supervised",))
    found = figures([3.6] * 3, [3.6] * 3, [7.2] * 3)
    found["sides"]["supervised"] = [result(3.0, 2e9)] * 3
    text = tables(found, sides, OPTIONS)
    assert "| supervised, all arms, with labels | 9 | 3.33 (3.33 to 3.33) | 83.3 (83.3 to 83.3) | 2 |" in text
    assert (
        "here: supervised, hours |" in text and "| cass | supervised" not in text and "| supervised | dino" not in text
    )


def test_a_cnn_of_dino_is_trained_as_its_authors_train_resnets(tmp_path: Path) -> None:
    data = pictures(tmp_path / "set", 12)
    words = [word for word in SMALL if "recipes" not in word]
    config = compose_config("bench", [*words, "bench.recipes=[dino,dino_small]", f"data.path={data}"])
    sides, _ = savings.prepare(config, build)
    methods = {name: one["method"]["name"] for name, one in sides.configs.items()}
    assert methods == {
        "cass": "cass", "dino/cnn": "dino_resnet", "dino/vit": "dino",
        "dino_small/cnn": "dino_small", "dino_small/vit": "dino_small",
    }  # fmt: skip
    assert sides.configs["dino/cnn"]["optim"]["name"] == "sgd" and sides.configs["dino/vit"]["optim"]["name"] == "adamw"
    assert "dino, cnn (dino_resnet)" in dict(lines(sides))


def test_supervised_is_a_side_where_images_have_labels(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("a", "b", "c"):
        pictures(tmp_path / "set" / name, 6)
    config = compose_config("bench", [*SMALL, f"data.path={tmp_path / 'set'}", "bench.images=8"])
    sides, _ = savings.prepare(config, build)
    assert sides.names()[1] == "supervised" and sides.configs["supervised"]["arms"]["vit"]["outputs"] == 3
    job = {"config": sides.configs["supervised"], "steps": 3, "warmup": 1, "seconds": 9.0, "images": 8}
    assert len(step.child(job)["times"]) == 3


def test_the_page_has_bars_and_a_point_per_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures([3.6] * 3, [3.6] * 3, [7.2] * 3)
    page = savings_page.page("How much?", found, SIDES, OPTIONS, print)["savings.html"]
    assert page.count('class="timing"') == 4 and page.count("<tr><th>cass</th>") == 3
    assert "width:33.33%" in page and "width:66.7%" in page and "FLOPs against hours" in page and "<svg" in page
    said: list[str] = []
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    assert savings_page.page("How much?", found, SIDES, OPTIONS, said.append) == {} and "cass-scale[report]" in said[0]


def here(
    sides: dict[str, list[str]], turns: int, say: Callable[[str], None], *, stay: bool, until: float
) -> dict[str, list[JSON]]:
    """In place of processes: every side once, in this one."""
    assert stay and until == math.inf
    return {name: [step.child(json.loads(words[1]))] * turns for name, words in sides.items()}


def test_every_side_trains_on_the_same_images_and_a_record_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(savings, "in_turns", here)
    data, out = pictures(tmp_path / "set", 12), tmp_path / "record"
    found = bench(*SMALL, f"data.path={data}", "bench.images=8", f"out={out}", quiet=True)["figures"]
    assert found["data"] == {"name": "set", "images": 12, "synthetic": False}
    assert list(found["sides"]) == ["cass", "dino_small/cnn", "dino_small/vit"]
    for (one,) in found["sides"].values():
        assert len(one["times"]) == 3 and one["batch"] == 4 and one["flops_per_image"] > 1e6 and one["optimizer"] > 0
        assert 0 < one["spans"]["data"] < sum(one["times"]) and one["spans"]["views"] > 0
    teacher = found["sides"]["dino_small/vit"][0]["spans"]["after"]
    assert teacher > 10 * found["sides"]["cass"][0]["spans"]["after"], "only DINO has one"
    assert "| cass | dino_small, all 2 runs |" in (out / "README.md").read_text() and (out / "savings.html").is_file()


def test_all_that_is_wrong_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "in_turns", lambda *_, **__: pytest.fail("nothing may start"))
    data = pictures(tmp_path / "set", 12)
    for words, said in (
        ([], "data.path is missing"),
        ([f"data.path={data}", "data.noise=true"], "data.noise=true is a control"),
        (
            [f"data.path={data}", "bench.recipes=[dino_smal]"],
            "method=dino_smal: no such choice; did you mean dino_small",
        ),
        (
            [f"data.path={data}", "bench.recipes=[cass_contrast]"],
            r"CASS compares exactly two \(side cass_contrast/cnn\)",
        ),
        ([f"data.path={data}", "bench.recipes=[cass]"], "cass is among bench.methods"),
        (
            [f"data.path={data}", "bench.turns=0", "bench.methods=[]", "target=2"],
            r"bench\.turns=0(.|\n)*bench\.methods",
        ),
        ([f"data.path={data}", "bench.words=['train.precison=fp32']"], "unknown key train.precison"),
    ):
        with pytest.raises(ConfigError, match=said):
            bench(*[word for word in SMALL if word.split("=")[0] not in {w.split("=")[0] for w in words}], *words)
    with pytest.raises(DataError, match=r"12 .*16|16.* 12 "):
        bench("name=savings", f"data.path={data}", quiet=True)
    with pytest.raises(DataError, match="no labels to score with"):
        bench(*SMALL, f"data.path={data}", "target=0.5", quiet=True)
