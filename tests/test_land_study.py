"""A study becomes a record: its numbers are the runs', no folder of the machine stays, nothing unfinished lands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="needs the extra `report`")
pytest.importorskip("matplotlib", reason="needs the extra `report`")

from benchmarks.land_study import land
from cass_scale import records
from cass_scale.errors import ConfigError
from cass_scale.studies import load
from tests.fake_studies import batch_size


def test_a_finished_study_lands_with_its_numbers_and_without_the_machines_folders(tmp_path: Path) -> None:
    place = batch_size(tmp_path / "runs" / "study-batch_size-quick", seeds=3)
    (place / "cass_null/8/s0/export").mkdir()
    (place / "cass_null/8/s0/export/cnn.safetensors").write_bytes(b"weights")
    out = tmp_path / "record"
    land([place], out)
    record, study = records.read_json(out / "run.json"), load(out / "study", [])
    of = {"protocol": "knn", "arm": "vit", "row": "cass_contrast", "setting": "32"}
    cell = next(one for one in record["figures"]["scores"] if of.items() <= one.items())
    values = study.scores("cass_contrast", "32", "vit", "knn")
    assert cell["mean"]["value"] == pytest.approx(sum(values.values()) / 3)
    assert f"{cell['mean']['value']:.3f} (" in record["table"]
    assert "collapsed: cass_paper 9 of 9" in record["table"]
    assert "| knn | cnn | initial (resnet18.a1_in1k weights) |" in record["table"], "what the runs start from"
    verdicts = {one["claim"]: one["verdict"] for one in record["figures"]["claims"]}
    assert verdicts["CASS depends less on the batch size than DINO"] == "holds"
    both = [one for one in record["figures"]["scores"] if one["arm"] == "both" and one["row"] == "cass_contrast"]
    assert len(both) == 2 * 3 and "| knn | ensemble | cass_contrast |" in record["table"]
    tested = [one for one in record["figures"]["scores"] if one["p"] is not None]
    assert all(one["holm"] >= one["p"] for one in tested) and "corrected by Holm" in record["table"]
    assert record["table"].count("**") == 2 * sum(one["holm"] < 0.05 for one in tested)
    rankme = next(one for one in record["figures"]["choice"] if one["rule"].startswith("RankMe"))
    assert rankme["right"] == 1.0 and "Agreement of the arms names none" in record["table"]
    assert "less that of dino_small" in record["table"]
    assert "codes" not in record and record["git"]["sha"] == "3f1c" * 10
    assert (out / "study/cass_null/8/s0/env.json").is_file()
    assert not list(out.rglob("*.safetensors")) and (out / "study.html").stat().st_size > 10_000
    texts = [path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".yaml", ".jsonl", ".md")]
    assert len(texts) > 54 and not any(str(tmp_path) in text for text in texts)


def test_an_unfinished_study_does_not_land(tmp_path: Path) -> None:
    place = batch_size(tmp_path / "study", seeds=3)
    (place / "cass_null/8/s1/run.json").unlink()
    with pytest.raises(ConfigError, match=r"is not finished \(study: cass_null, 8, seed 1\).*or give --unfinished"):
        land([place], tmp_path / "record")
    assert not (tmp_path / "record").exists()
    for path in place.glob("*/*/*/run.json"):
        path.unlink()
    with pytest.raises(ConfigError, match="has no run that is done"):
        land([place], tmp_path / "record", unfinished=True)


def test_an_unfinished_study_lands_when_asked_and_lists_what_is_missing(tmp_path: Path) -> None:
    """Runs of two versions of the code are told: provenance is theirs, not that of the checkout which lands them."""
    bad = "cass_contrast/8/s1"
    place = batch_size(tmp_path / "study", seeds=3, protocols=("knn",), failed={bad: "out of memory"})
    records.update(place / bad, status="running")
    path = place / bad / "evaluate" / "knn.json"
    records.write_json(path, records.read_json(path) | {"arms": {"cnn": {"macro_f1": 0.99999}}})
    records.update(place / "cass_null/8/s0", git={"sha": "beef" * 10, "dirty": True}, versions={"torch": "2.11.0"})
    land([place], tmp_path / "record", unfinished=True)
    record, page = records.read_json(tmp_path / "record/run.json"), (tmp_path / "record/README.md").read_text()
    assert record["figures"]["unfinished"] == ["study: cass_contrast, 8, seed 1 (out of memory)"]
    assert "Not done, and in no table (1 runs): study: cass_contrast, 8, seed 1 (out of memory)." in page
    assert (tmp_path / "record/study" / bad / "run.json").is_file(), "it is stored"
    assert "(without 1 seed(s))" in record["table"] and "99999" not in json.dumps(record["figures"])
    assert record["git"] == {"sha": "3f1c" * 10, "dirty": False} and record["versions"]["torch"] == "2.11.0, 2.13.0"
    assert record["machine"] == "Xeon, 2 cores" and len(record["codes"]) == 2
    assert (
        "Code: of several versions: 3f1c3f1c3f1c (53 records); beefbeefbeef, with uncommitted changes (1 records)"
        in page
    )
    assert "Rows of several versions of the code stand side by side" in (tmp_path / "record/study.html").read_text()


def test_one_study_on_several_sets_has_a_column_for_each(tmp_path: Path) -> None:
    places = [batch_size(tmp_path / name, seeds=3) for name in ("first", "second")]
    land(places, tmp_path / "record")
    record = records.read_json(tmp_path / "record" / "run.json")
    assert record["table"].splitlines()[2].count("brain_mri") == 6, "three settings of two studies"
    assert (tmp_path / "record/study/second/study.json").is_file()
    assert "collapsed: cass_paper 18 of 18" in record["table"]
