"""The model card: what it must say, what it must not, and that a collapse cannot be overlooked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cass_scale import encoders, results
from cass_scale.encoders import ArmSpec, Encoder
from cass_scale.release.card import Terms, card
from tests.fake_runs import DATA, add_run, add_scores, demo

NOTHING = Terms(None, None, None)
CONFIG: dict[str, Any] = {
    "method": {"name": "cass"},
    "optim": {"lr": 0.00037},
    "data": {"path": "/home/anna/mri"},
    "run": {"dir": "/home/anna/runs/1"},
    "arms": {"image_size": 32, "cnn": {"model": "resnet10t", "weights": "/home/anna/w/start.safetensors"}},
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return encoders.build(ArmSpec("resnet10t"), 32, seed=0)[0]


def written(folder: Path, encoder: Encoder, *, runs: Path | None = None, arm: str = "cnn", **keys: Any) -> str:
    (this,), _ = results.load(folder)
    others = [one for one in results.load(runs)[0] if one.folder != folder] if runs else []
    tables = results.tables([this, *others])
    return card(this, arm, encoder, CONFIG, tables, keys.get("terms", NOTHING), keys.get("where", "hf-hub:anna/one"))


def head(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---")[1]))


def test_a_collapse_is_said_before_anything_else(tmp_path: Path, encoder: Encoder) -> None:
    text = written(demo(tmp_path) / "cass", encoder)
    first = text.split("# resnet10t")[1].splitlines()[2]
    assert first.startswith("> **This encoder collapsed in training**")
    assert "cnn at step 50: cosine between different images 0.998" in first and "vit at step 30" in first
    only = add_run(tmp_path, "only", "cass", collapse=[{"step": 9, "arm": "vit", "why": "w"}])
    assert "**The encoder that was trained beside this one collapsed" in written(only, encoder)
    pair = add_run(tmp_path, "pair", "cass", collapse=[{"step": 9, "arm": "the pair", "why": "w"}])
    assert "**This encoder collapsed" in written(pair, encoder)
    assert "collapsed" not in written(tmp_path / "contrast", encoder)


def test_scores_stand_beside_their_controls(tmp_path: Path, encoder: Encoder) -> None:
    runs = demo(tmp_path)
    text = written(runs / "contrast", encoder, runs=runs)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == "| weights | Macro F1 | Balanced accuracy | AUC |"
    assert rows[1].startswith("| cass_contrast | 0.860 [0.825, 0.895] (+0.035, within noise) | 0.862")
    assert rows[2].startswith("| null control | 0.825 [0.790, 0.860] | 0.830")
    assert any(row.startswith("| initial weights, untouched | 0.850") for row in rows)
    assert not any(row.startswith("| cass |") for row in rows), "other methods have cards of their own"
    assert (
        "within noise unless both 95 % intervals lie apart" in text
        and "194 images held back** (test), 679 to learn from" in text
    )
    alone = written(runs / "contrast", encoder)
    assert (
        "**No null control stands beside these scores**" in alone
        and "| cass_contrast | 0.860 [0.825, 0.895] |" in alone
    )


def test_what_nobody_has_scored_says_so(tmp_path: Path, encoder: Encoder) -> None:
    assert "None: nobody has evaluated these weights" in written(add_run(tmp_path, "new", "cass"), encoder)


def test_places_patients_and_classes_stay_in_the_house(tmp_path: Path, encoder: Encoder) -> None:
    data = DATA | {"path": "/home/anna/mri", "bad": [{"key": "Erika Mustermann/1.jpg", "why": "cut"}]}
    data |= {"classes": ["Erika Mustermann", "Max Mustermann"]}
    run = add_run(tmp_path, "runs", "cass", data=data, command="cass-scale pretrain data.path=/home/anna/mri")
    add_scores(run, {"cnn": (0.5, 0.5, 0.5)}, classes=data["classes"], warnings=["/home/anna/mri/x.png is odd"])
    there = encoders.build(ArmSpec("resnet10t"), 32, seed=0)[0]
    there.spec = ArmSpec("resnet10t", "/home/anna/w/start.safetensors", mean=(0, 0, 0), std=(1, 1, 1))
    text = written(run, there)
    assert not [word for word in ("anna/mri", "anna/w", "/home", "Mustermann", str(tmp_path)) if word in text]
    assert "1 unreadable left out" in text and "start.safetensors" in text


def test_it_says_what_the_run_was(tmp_path: Path, encoder: Encoder) -> None:
    text = written(add_run(tmp_path, "run", "cass", versions={"torch": "2.13.0"}), encoder)
    expected = (
        "brain_mri, 970 images", "9f2c41d07b3e5a68", "400 steps of 16 images, 6400 seen", "**Precision**: bf16",
        "0.0578 device-hours", "on 1 x Xeon", "seed 0", "0123456789abcdef", "code 3f1c3f1c3f1c", "torch 2.13.0",
        "trained together with vit_small_patch14_reg4_dinov2", "lr: 0.00037", "32 x 32",
    )  # fmt: skip
    assert [part for part in expected if part not in text] == []
    assert 'timm.create_model("hf-hub:anna/one", pretrained=True)' in text
    assert head(text)["library_name"] == "timm" and head(text)["pipeline_tag"] == "image-feature-extraction"
    onnx = written(tmp_path / "run", encoder, where="model.onnx")
    assert 'InferenceSession("model.onnx")' in onnx and head(onnx)["library_name"] == "onnx"


def test_controls_and_drawn_data_are_named_as_such(tmp_path: Path, encoder: Encoder) -> None:
    assert "> **A control**: no weight was moved" in written(add_run(tmp_path, "null", "cass_null"), encoder)
    noise = add_run(tmp_path, "noise", "cass", data=DATA | {"noise": True, "synthetic": True})
    text = written(noise, encoder)
    assert "> **A control**: trained on Gaussian noise" in text and "> **Synthetic data**" in text


@pytest.mark.parametrize(
    ("terms", "expected", "words"),
    [
        (NOTHING, {"license": "other", "license_name": "terms-of-the-training-data"}, "not known here: ask"),
        (Terms(None, "CC BY-NC 4.0", "https://x.org/d"), {"license": "other", "license_link": "https://x.org/d"},
         "None was chosen for these weights. They follow the terms of the data (CC BY-NC 4.0, https://x.org/d)."),
        (Terms("cc-by-nc-4.0", "CC BY-NC 4.0", None), {"license": "cc-by-nc-4.0"}, "cc-by-nc-4.0. Where they ask"),
        (Terms("For research, ask us", None, None), {"license": "other", "license_name": "for-research-ask-us"},
         "For research, ask us."),
    ],
)  # fmt: skip
def test_licence(tmp_path: Path, encoder: Encoder, terms: Terms, expected: dict[str, str], words: str) -> None:
    text = written(add_run(tmp_path, "run", "cass"), encoder, terms=terms)
    assert head(text).items() >= expected.items() and words in text
    assert "license_link" in expected or "license_link" not in head(text)


def test_names_break_no_table_and_no_head(tmp_path: Path, encoder: Encoder) -> None:
    run = add_run(tmp_path, "run", "cass", data=DATA | {"name": "a|b\n---\n# c"})
    add_scores(run, {"cnn": (0.5, 0.5, None)}, data={"name": "a|b\n---", "fingerprint": "x"})
    text = written(run, encoder)
    assert "pretrained with cass on a\\|b --- # c\n" in text and "| cass | 0.500 | 0.500 | n/a |" in text
