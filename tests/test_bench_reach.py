"""bench name=savings target=...: full runs until each arm has the score, and no ratio where one never gets there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from cass_scale import records
from cass_scale.cli import build, compose_config
from cass_scale.data.manifest import Manifest
from cass_scale.measure import reach
from cass_scale.measure.reach_table import table
from cass_scale.types import JSON

SMALL = (
    "data=phantom", "data.images=35", "data.scale=0.2", "arms.image_size=32", "train.batch_size=4", "train.device=cpu",
    "train.precision=fp32", "stream.workers=0", "monitor.images=8",
)  # fmt: skip


def look(hours: float, cnn: float, vit: float | None = None) -> JSON:
    scores = {"cnn": cnn} if vit is None else {"cnn": cnn, "vit": vit}
    return {"step": 1, "hours": {"train": hours, "total": 2 * hours}, "observe": 0.5, "scores": {"knn": scores}}


def target(runs: JSON) -> JSON:
    about = {"target": 0.8, "metric": "macro_f1", "protocols": ["knn"], "epochs": 10, "steps": 100, "every": 50.0}
    return about | {"runs": runs}


def lines(runs: JSON) -> list[str]:
    return table(target(runs), ["cass"], ["dino"], ["cnn", "vit"]).splitlines()


def runs(cnn: list[float], vit: list[float]) -> JSON:
    """CASS arrives with the CNN at 1 h and with the ViT at 2 h; runs of DINO score as given at 0, 3 and 6 h."""
    of_vit = [look(h, 0.0) | {"scores": {"knn": {"vit": s}}} for h, s in zip((0, 3, 6), vit, strict=False)]
    return {
        "cass": {"0": [look(0, 0.3, 0.3), look(1, 0.8, 0.5), look(2, 0.7, 0.9)]},
        "dino/cnn": {"0": [look(h, s) for h, s in zip((0, 3, 6), cnn, strict=False)]},
        "dino/vit": {"0": of_vit},
    }


def test_one_run_arrives_with_its_last_arm_and_runs_of_a_recipe_add_up() -> None:
    text = lines(runs([0.2, 0.85], [0.2, 0.5, 0.8]))
    assert "| cass | 1 | 2 | 2 | 1.5 |" in text
    assert "| dino | 3 | 6 | 9 | 2.5 |" in text
    assert "| cass | dino | 66.7% | 66.7% | 77.8% |" in text


def test_supervised_has_hours_beside_them_and_no_savings() -> None:
    both = runs([0.2, 0.85], [0.2, 0.5, 0.8]) | {"supervised": {"0": [look(0, 0.3, 0.3), look(1.5, 0.9, 0.9)]}}
    text = table(target(both), ["cass"], ["dino"], ["cnn", "vit"], ["supervised"])
    assert "| supervised | 1.5 | 1.5 | 1.5 | 1 |" in text and text.count("supervised") == 1


def test_who_never_arrives_has_no_ratio() -> None:
    text = lines(runs([0.2, 0.85], [0.2, 0.5, 0.79]))
    assert "| dino | 3 | never (best 0.790) | never (best 0.790) | 2.5 |" in text
    assert "| cass | dino | 66.7% | no ratio | no ratio |" in text


def test_who_was_there_before_training_or_failed_has_none_either() -> None:
    some = runs([0.81], [0.2, 0.9])
    some["dino/vit"]["0"][1] = {"error": "out of memory"}
    text = lines(some)
    assert "| dino | there before training (0.810) | failed: out of memory (best 0.200) |" in "\n".join(text)
    assert "| cass | dino | no ratio | no ratio | no ratio |" in text


def test_three_seeds_give_an_interval_and_one_that_never_arrives_spoils_the_mean() -> None:
    some = runs([0.2, 0.85], [0.2, 0.5, 0.8])
    for side in some.values():
        side |= {"1": side["0"], "2": side["0"]}
    assert "| cass | dino | 66.7% (66.7% to 66.7%) |" in "\n".join(lines(some))
    some["dino/cnn"]["2"] = [look(0, 0.1), look(3, 0.2)]
    assert "| dino | never (best 0.200) | 6 (6 to 6) |" in "\n".join(lines(some))


def test_runs_are_looked_at_until_they_arrive_and_never_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One side arrives at once, the other goes on to the end; the same command again only reads."""
    asked: list[tuple[str, int]] = []

    def here(words: Sequence[str]) -> JSON:
        job = json.loads(words[1])
        asked.append((job["config"]["method"]["name"], job["step"]))
        found = reach.child(job)
        if job["config"]["method"]["name"] == "cass_contrast" and job["step"]:
            found["scores"] = {"knn": {"cnn": 1.0, "vit": 1.0}}
            records.write_json(Path(job["config"]["run"]["dir"]) / "looks" / f"{job['step']:08d}.json", found)
        return found

    monkeypatch.setattr(reach, "answer", here)
    options = {"target": 0.999, "metric": "macro_f1", "protocols": ["knn"], "epochs": 1, "looks": 2, "seeds": [0]}
    options |= {"batch": 4, "runs": str(tmp_path)}
    configs = {name: compose_config("pretrain", [*SMALL, f"method={name}"]) for name in ("cass_contrast", "cass")}
    manifest: Manifest = build({k: v for k, v in configs["cass"]["data"].items() if k != "noise"})
    found = reach.run(configs, manifest, options, lambda text: None)
    first, last = 3, found["steps"]
    assert asked == [("cass_contrast", 0), ("cass", 0), ("cass", first), ("cass_contrast", first), ("cass", last)]
    at_start, then, ended = found["runs"]["cass"]["0"]
    assert at_start["hours"]["train"] == 0 < then["hours"]["train"] < ended["hours"]["train"] and then["observe"] > 0
    assert then["hours"]["train"] < then["hours"]["total"] and set(then["scores"]["knn"]) == {"cnn", "vit"}
    monkeypatch.setattr(reach, "answer", lambda words: pytest.fail("all of it was done"))
    assert reach.run(configs, manifest, options, lambda text: None) == found
