"""`cass-scale predict`: answers for images that nobody has seen, broken ones among them."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cass_scale import encoders, predict, records
from cass_scale.cli import build
from cass_scale.console import Console
from cass_scale.data.decode import read_image
from cass_scale.data.sources import folder
from cass_scale.data.window import Window
from cass_scale.errors import ConfigError, DataError
from cass_scale.evaluation import heads
from cass_scale.evaluation.heads import Head, Kept
from cass_scale.verbs.predict import find_images, words
from tests.data.medical import save_nifti, volume
from tests.release.conftest import COLOURS, paint

CLASSES = ("ant", "mole", "zebra")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good images in any nesting, two that are none, a list that does not matter."""
    folder = tmp_path_factory.mktemp("new")
    for number, (name, colour) in enumerate(COLOURS.items()):
        paint(folder / f"ward {number}" / f"{name}?.png", colour, 15)
    (folder / "ward 0/cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "empty.png").touch()
    (folder / "labels.csv").write_text("path,label\nempty.png,ant\n")
    return folder


def ask(run: Path, images: Path, out: Path, *more: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    given = [f"run.dir={run}", f"images={images}", f"out={out}", "device=cpu", "precision=fp32", "workers=0"]
    found = predict(*given, *(more or ["evaluation=linear-run"]), quiet=True)
    with out.open(newline="") as file:
        return found, list(csv.DictReader(file)) if out.suffix == ".csv" else []


def test_every_image_has_a_row_and_unreadable_ones_a_reason(
    evaluated: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, rows = ask(evaluated, images, tmp_path / "new/p.csv")
    assert list(rows[0]) == ["path", "predicted", "arm", "p_ant", "p_mole", "p_zebra", "error"]
    assert [row["path"] for row in rows] == [
        "empty.png", "ward 0/cut.jpg", "ward 0/zebra?.png", "ward 1/ant?.png", "ward 2/mole?.png",
    ]  # fmt: skip
    assert [row["predicted"] for row in rows] == ["", "", "zebra", "ant", "mole"]
    assert rows[0]["error"] == "zero bytes long" and rows[0]["p_ant"] == "" and rows[1]["error"]
    for row in rows[2:]:
        p = [float(row[f"p_{name}"]) for name in CLASSES]
        assert sum(p) == pytest.approx(1, abs=1e-5) and CLASSES[int(np.argmax(p))] == row["predicted"]
        assert row["arm"] == "ensemble" and row["error"] == ""
    assert found["exit_code"] == 3 and found["images"] == 3 and [b["key"] for b in found["bad"]] == [
        "empty.png", "ward 0/cut.jpg",
    ]  # fmt: skip
    assert "2 of 5 images cannot be read: empty.png (zero bytes long)" in capsys.readouterr().err
    again, same = ask(evaluated, images, tmp_path / "p.csv", "evaluation=linear-run", "data.max_bad=0.4")
    assert again["exit_code"] == 0 and same == rows


def test_an_ensemble_is_the_mean_of_its_arms(evaluated: Path, images: Path, tmp_path: Path) -> None:
    p = {}
    for arm in ("cnn", "vit", "[cnn,vit]"):
        _, rows = ask(evaluated, images, tmp_path / "p.csv", "evaluation=linear-run", f"arm={arm}")
        assert rows[2]["arm"] == ("ensemble" if "," in arm else arm)
        p[arm] = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows[2:]])
    np.testing.assert_allclose(p["[cnn,vit]"], (p["cnn"] + p["vit"]) / 2, atol=2e-6)
    assert np.abs(p["cnn"] - p["vit"]).max() > 1e-3


@pytest.mark.parametrize("evaluation", ["linear-run", "finetune-run"])
def test_one_image_gets_the_answer_of_the_evaluation(
    evaluated: Path, coloured: Path, tmp_path: Path, evaluation: str
) -> None:
    """The very weights that were scored: a fine-tuned encoder is not the run's."""
    key = "mole/3.png"
    _, rows = ask(evaluated, coloured / key, tmp_path / "p.csv", f"evaluation={evaluation}", "arm=vit")
    encoder, kept = heads.load(evaluated, evaluation, "vit")
    pixels = torch.from_numpy(read_image(coloured / key, 32).copy()).permute(2, 0, 1).unsqueeze(0) / 255
    with torch.inference_mode():
        p = kept.head(encoder.eval()(pixels).numpy())[0]
    assert len(rows) == 1 and rows[0]["path"] == "3.png" and kept.classes == CLASSES
    assert [float(rows[0][f"p_{name}"]) for name in CLASSES] == pytest.approx(p, abs=1e-5)
    run_own = encoders.load_export(evaluated / "export/vit.safetensors").body.state_dict()
    moved = [key for key, x in encoder.body.state_dict().items() if not x.equal(run_own[key])]
    assert bool(moved) == (evaluation == "finetune-run")


def test_features_are_those_of_the_exported_encoders(evaluated: Path, images: Path, tmp_path: Path) -> None:
    found, _ = ask(evaluated, images, tmp_path / "f.npz", "features=true", "batch_size=2")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert arrays["path"].tolist() == ["ward 0/zebra?.png", "ward 1/ant?.png", "ward 2/mole?.png"]
    assert arrays["bad"].tolist() == ["empty.png", "ward 0/cut.jpg"] and arrays["why"][0] == "zero bytes long"
    assert arrays["features/cnn"].shape == (3, 512) and found["exit_code"] == 3
    encoder = encoders.load_export(evaluated / "export/vit.safetensors").eval()
    pixels = [torch.from_numpy(read_image(images / path, 32).copy()) for path in arrays["path"]]
    with torch.inference_mode():
        wanted = encoder(torch.stack(pixels).permute(0, 3, 1, 2) / 255).numpy()
    np.testing.assert_allclose(arrays["features/vit"], wanted, atol=1e-5)


def test_it_runs_without_the_packages_of_training(evaluated: Path, images: Path, tmp_path: Path) -> None:
    extras = ("deepspeed", "nvidia.dali", "ffcv", "webdataset", "wandb", "mlflow", "tensorboard", "onnx", "jinja2")
    given = [
        "predict",
        f"run.dir={evaluated}",
        f"images={images}",
        f"out={tmp_path / 'p.csv'}",
        "device=cpu",
        "arm=vit",
    ]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({extras!r}))\n"
        f"from cass_scale.cli import main; sys.exit(main({[*given, 'evaluation=linear-run', 'data.max_bad=1']!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "found: 1 " in done.stderr and len((tmp_path / "p.csv").read_text().splitlines()) == 6


def test_new_volumes_and_deep_images_are_cut_and_shown_as_the_runs_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nibabel", reason="needs the extra `medical`")
    trained = {"data": {"slices": {"_target_": "cass_scale.data.parts.Slices", "axis": "x", "stride": 4}}}
    save_nifti(tmp_path / "train/a.nii.gz", volume())
    replace(folder(tmp_path / "train"), window=Window(0, 300)).write(tmp_path / "manifest.csv")
    found = find_images(tmp_path / "train/a.nii.gz", tmp_path, trained, build, Console())
    assert found.depth == 16 and found.window == Window(0, 300)
    assert len(found) == 4 and all("#x=" in key and key.endswith("window=0:300") for key in found.keys)
    paint(tmp_path / "new/eight.png", COLOURS["ant"])
    assert find_images(tmp_path / "new", tmp_path, trained, build, Console()).window is None
    assert "they are not shown under the run's window" in capsys.readouterr().err


def test_several_labels_are_joined_and_may_be_none() -> None:
    head = Head(np.zeros(1), np.zeros((3, 1)), np.zeros(3), "sigmoid")
    p = np.array([[0.9, 0.1, 0.6], [0.5, 0.2, 0.1]])
    assert words(Kept(head, CLASSES, True, ""), p) == ["ant|zebra", ""]
    assert words(Kept(head, CLASSES, False, ""), p) == ["ant", "ant"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["evaluation=null"], "evaluation is missing: this run has finetune-run, linear-run; name the one"),
        (["evaluation=knn-run"], "evaluation=knn-run: this run has finetune-run, linear-run"),
        (["evaluation=linear-run", "arm=resnet"], "arm=resnet: this run has cnn, vit"),
        (["features=true", "out=f.npz", "arm=resnet"], "arm=resnet: this run has cnn, vit"),
        (["features=true"], "out=p.csv: features=true writes a file *.npz"),
        (["out=p.txt"], "out=p.txt: features=false writes a file *.csv"),
        (["images=nowhere"], "images=nowhere is not there"),
        (["images=null", "out=null"], "images is missing: a folder of images, or one image"),
        (["data.max_bad=2"], "data.max_bad=2: a number from 0 to 1"),
        (["data.path=x"], "unknown key data.path"),
    ],
)
def test_what_is_refused(evaluated: Path, images: Path, more: list[str], expected: str) -> None:
    given = {"run.dir": str(evaluated), "images": str(images), "out": "p.csv"} | dict(w.split("=", 1) for w in more)
    with pytest.raises(ConfigError) as caught:
        predict(*(f"{key}={value}" for key, value in given.items()), quiet=True)
    assert expected in str(caught.value)


def test_nothing_to_read(evaluated: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match=r"images=.*void is an empty folder"):
        ask(evaluated, tmp_path / "void", tmp_path / "p.csv")
    with pytest.raises(DataError, match="no good image is left"):
        ask(evaluated, images / "empty.png", tmp_path / "p.csv")


def test_runs_that_cannot_answer(copied: Path, images: Path, tmp_path: Path) -> None:
    encoders.export(
        encoders.load_export(copied / "evaluate/finetune-run/cnn.safetensors"), copied / "export/cnn.safetensors", {}
    )
    with pytest.raises(
        DataError, match=r"cnn\.head\.safetensors was trained on other weights .*: evaluate the run again"
    ):
        ask(copied, images, tmp_path / "p.csv")
    (copied / "evaluate/linear-run/vit.head.safetensors").write_bytes(b"{}")
    with pytest.raises(DataError, match=r"vit\.head\.safetensors is no whole head"):
        ask(copied, images, tmp_path / "p.csv", "evaluation=linear-run", "arm=vit")
    for path in (copied / "evaluate").rglob("*.head.safetensors"):
        path.unlink()
    with pytest.raises(ConfigError, match="has learnt no classes yet: first run `cass-scale evaluate"):
        ask(copied, images, tmp_path / "p.csv")
    records.update(copied, status="running")
    with pytest.raises(ConfigError, match="is not finished"):
        ask(copied, images, tmp_path / "p.csv")
