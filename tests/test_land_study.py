"""A study becomes a record: its numbers are the runs', no folder of the machine stays, nothing unfinished lands."""

from __future__ import annotations

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
    assert not list(out.rglob("*.safetensors")) and (out / "study.html").stat().st_size > 10_000
    texts = [path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".yaml", ".jsonl", ".md")]
    assert len(texts) > 54 and not any(str(tmp_path) in text for text in texts)


def test_an_unfinished_study_does_not_land(tmp_path: Path) -> None:
    place = batch_size(tmp_path / "study", seeds=3)
    (place / "cass_null/8/s1/run.json").unlink()
    with pytest.raises(ConfigError, match="is not finished"):
        land([place], tmp_path / "record")
    assert not (tmp_path / "record").exists()


def test_one_study_on_several_sets_has_a_column_for_each(tmp_path: Path) -> None:
    places = [batch_size(tmp_path / name, seeds=3) for name in ("first", "second")]
    land(places, tmp_path / "record")
    record = records.read_json(tmp_path / "record" / "run.json")
    assert record["table"].splitlines()[2].count("brain_mri") == 6, "three settings of two studies"
    assert (tmp_path / "record/study/second/study.json").is_file()
    assert "collapsed: cass_paper 18 of 18" in record["table"]
