"""Published sets through the verbs, and what their leaves must say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from cass_scale import evaluate, machine, pretrain, shard, split, verify
from cass_scale.cli import config_dir, main
from cass_scale.data.shards import shards
from tests.data.images import noise
from tests.data.sets import nih

PUBLISHED = sorted(
    p for p in config_dir().glob("data/*.yaml") if "_target_: cass_scale.data.published" in p.read_text()
)


@pytest.mark.parametrize("leaf", PUBLISHED, ids=lambda p: p.stem)
def test_every_set_says_whence_under_what_licence_and_how_many(leaf: Path) -> None:
    text = leaf.read_text()
    node = yaml.safe_load(text)
    assert node["page"].startswith("https://") and node["licence"] and "# expected: " in text
    numbers = [n for key, n in (node["expected"] or {}).items() if key != "classes"]
    assert all(isinstance(n, int) and n > 0 for n in numbers) and (numbers or "# expected: null, because" in text)
    classes = (node["expected"] or {}).get("classes", {})
    if classes and all(classes.values()):
        assert sum(classes.values()) == node["expected"]["images"]
    row = next(line for line in (config_dir() / "README.md").read_text().splitlines() if f"| `{leaf.stem}` |" in line)
    assert node["page"] in row


def test_a_wrong_key_is_told_with_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "data=chexpert", "data.layout.uncertain=maybe", "data.counts=no", "data.noise=true"]) == 2
    said = capsys.readouterr().err
    assert "data.layout.uncertain=maybe: one of zeros, ones, ignore" in said and "data.path is missing" in said
    assert "data.counts=no: one of check, note" in said and "data.noise=true is a control of pretraining" in said


def test_verify_and_split_read_a_published_set(tmp_path: Path) -> None:
    """The lists divide one patient; the split that is drawn divides none, and takes their place."""
    home = nih(tmp_path / "nih", train=5)
    words = ("data=nih_chestxray14", f"data.path={home}", "data.counts=note")
    found = verify(*words, quiet=True)
    assert found["exit_code"] == 3
    assert found["data"]["groups"] == {"group": [{"group": "2", "splits": {"train": 1, "test": 1}}]}
    assert "the same group on both sides of a split" in found["faults"][0]["what"]
    assert f"put clean.csv into {home} as labels.csv" in found["faults"][0]["mend"]
    split(*words, "data.split=[0.5,0.0,0.5]", f"out={tmp_path / 'clean.csv'}", quiet=True)
    (tmp_path / "clean.csv").rename(home / "labels.csv")
    clean = verify(f"data.path={home}", quiet=True)
    assert clean["exit_code"] == 0 and list(clean["data"]["classes"]) == ["Edema", "Hernia", "Mass"]


def test_a_published_set_becomes_shards(tmp_path: Path) -> None:
    home, out = nih(tmp_path / "nih"), tmp_path / "shards"
    shard("data=nih_chestxray14", f"source={home}", "data.counts=note", f"out={out}", "size=null", quiet=True)
    made = shards(out)
    assert made.name == "nih_chestxray14" and made.groups[:3] == ("0", "0", "1") and made.splits.count("test") == 2


def test_a_set_that_was_written_out_trains_and_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record keeps where the person's files lie, not the cache, also when the path was relative."""
    (tmp_path / "sets").mkdir()
    images = {f"{part}_images": noise(4, 28, 28, seed=i) for i, part in enumerate(("train", "val", "test"))}
    labels = {name.replace("images", "labels"): np.arange(4, dtype=np.uint8)[:, None] % 2 for name in images}
    np.savez(tmp_path / "sets" / "breastmnist.npz", **images, **labels)
    monkeypatch.chdir(tmp_path)
    words = ("data=medmnist", "data.path=sets", "data.layout.set=breastmnist", "data.counts=note")
    record = pretrain(
        *words, "arms.image_size=32", "train.batch_size=2", "train.max_steps=1", "monitor.images=4", "run.dir=run",
        "train.device=cpu", "train.precision=fp32", "stream.workers=0", quiet=True,
    )  # fmt: skip
    assert record["data"]["path"] == str(tmp_path / "sets") and record["data"]["name"] == "breastmnist"
    monkeypatch.chdir(tmp_path / "sets")
    assert evaluate(f"run.dir={tmp_path / 'run'}", "protocol=knn", "protocol.k=1", quiet=True)["n_test"] == 4


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert machine.free_disk(tmp_path / "a" / "b") == pytest.approx(machine.free_disk(tmp_path), rel=0.1)
