"""`cass-scale export`: what timm and onnxruntime make of it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from torch import Tensor

import cass_scale
from cass_scale import encoders, records
from cass_scale.cli import main
from cass_scale.data.decode import read_image
from cass_scale.encoders import Encoder
from cass_scale.errors import CassScaleError, ConfigError, DataError
from cass_scale.release import check, onnx_file, timm_folder
from cass_scale.verbs import settings

ARMS = ("cnn", "vit")


def export(run: Path, *words: str, **flags: bool) -> dict[str, Any]:
    return cass_scale.export(f"run.dir={run}", *words, quiet=True, **flags)


def encoder_of(run: Path, arm: str) -> Encoder:
    return encoders.load_export(run / "export" / f"{arm}.safetensors").eval()


def images(number: int) -> Tensor:
    return torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(number))


@pytest.fixture(scope="module")
def out(evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("an out=@ folder")
    export(evaluated, f"out={out}")
    return out


@pytest.mark.parametrize("arm", ARMS)
def test_timm_loads_the_folder_and_gives_the_same_features(evaluated: Path, out: Path, arm: str) -> None:
    assert {path.name for path in (out / arm).iterdir()} == {"README.md", "config.json", "model.safetensors"}
    model, own = timm.create_model(f"local-dir:{out / arm}", pretrained=True).eval(), encoder_of(evaluated, arm)
    assert [n for n, x in model.state_dict().items() if not x.equal(own.body.state_dict()[n])] == []
    x = images(3)
    with torch.inference_mode():
        torch.testing.assert_close(model((x - own.mean) / own.std), own(x))
    config = timm.data.resolve_data_config({}, model=model)
    assert tuple(config["input_size"]) == (3, 32, 32) and config["interpolation"] == "bilinear"
    assert tuple(config["mean"]) == own.spec.mean and tuple(config["std"]) == own.spec.std
    written = json.loads((out / arm / "config.json").read_text())
    assert written["architecture"] == own.spec.model and written["num_features"] == own.dim


def test_timm_puts_a_fresh_classifier_on_it(evaluated: Path, out: Path) -> None:
    model = timm.create_model(f"local-dir:{out / 'vit'}", pretrained=True, num_classes=4)
    own = encoder_of(evaluated, "vit").body.state_dict()
    assert model(images(2)).shape == (2, 4)
    assert {n for n, x in model.state_dict().items() if n not in own or not x.equal(own[n])} == {
        "head.weight", "head.bias",
    }  # fmt: skip


def test_timms_own_transform_prepares_images_as_training_did(out: Path, tmp_path: Path, evaluated: Path) -> None:
    Image.effect_noise((90, 50), 80).convert("RGB").save(tmp_path / "a.png")
    model, own = timm.create_model(f"local-dir:{out / 'cnn'}", pretrained=True), encoder_of(evaluated, "cnn")
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    theirs = transform(Image.open(tmp_path / "a.png")) * own.std[0] + own.mean[0]
    ours = torch.from_numpy(read_image(tmp_path / "a.png", 32).copy()).permute(2, 0, 1) / 255
    assert (theirs - ours).abs().max() < 1.5 / 255


def test_nothing_that_leaves_names_a_place(evaluated: Path, out: Path, coloured: Path) -> None:
    for path in out.rglob("*.*"):
        data = path.read_bytes()
        assert not [p for p in (evaluated, coloured, Path(torch.__file__).parent) if str(p).encode() in data], path


@pytest.mark.parametrize("arm", ARMS)
def test_onnxruntime_gives_the_same_features_for_any_batch(evaluated: Path, tmp_path: Path, arm: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    found = export(evaluated, "to=onnx", f"arm={arm}", f"out={tmp_path}")["arms"][arm]
    assert set(found["files"]) == {"README.md", "model.onnx"} and found["difference"] < check.TOLERANCE
    assert "onnxruntime.InferenceSession" in (tmp_path / arm / "README.md").read_text()
    data = (tmp_path / arm / "model.onnx").read_bytes()
    assert b"site-packages" not in data and str(Path(cass_scale.__file__).parent).encode() not in data
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.name == "images" and given.shape[1:] == [3, 32, 32] and isinstance(given.shape[0], str)
    for batch in (1, 2, 5):
        with torch.inference_mode():
            wanted = encoder_of(evaluated, arm)(images(batch)).numpy()
        (features,) = session.run(None, {"images": images(batch).numpy()})
        np.testing.assert_allclose(features, wanted, atol=1e-4 * np.abs(wanted).max())


def test_the_same_again_takes_the_place_of_what_was_there(copied: Path) -> None:
    first = export(copied, "arm=cnn")
    (copied / "export/timm/cnn/config.json").write_text("{}")
    assert export(copied, "arm=cnn") == first
    assert json.loads((copied / "export/timm/cnn/config.json").read_text())["architecture"] == "resnet10t"
    assert sorted(p.name for p in (copied / "export").iterdir()) == ["cnn.safetensors", "timm", "vit.safetensors"]


def test_dry_run_shows_files_and_card_and_leaves_nothing(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [f"run.dir={evaluated}", "to=hub", "repo=anna/one", "arm=vit", f"out={out}"]
    assert main(["export", *words, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "README.md" in said and "model.safetensors" in said and "hf-hub:anna/one" in said
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_timm_loads_otherwise_is_noticed(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def other(*args: Any, **keys: Any) -> Any:
        model = create(*args, **keys)
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
        return model

    monkeypatch.setattr(timm_folder.timm, "create_model", other)
    with pytest.raises(CassScaleError, match=r"timm loads 83 of 84 tensors of resnet10t.*nothing was written"):
        export(evaluated, "arm=cnn", f"out={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_other_features_are_noticed(evaluated: Path) -> None:
    own, x = encoder_of(evaluated, "cnn"), images(2)
    with torch.inference_mode():
        wanted = own(x)
    assert check.same_features("it", own, x, wanted) == 0
    assert check.same_features("it", own, x, wanted + 2e-5 * wanted.abs().max()) < check.TOLERANCE
    for found in (wanted + 1e-3 * wanted.abs().max(), wanted * float("nan")):
        with pytest.raises(CassScaleError, match="it gives other features: they differ by"):
            check.same_features("it", own, x, found)
    with pytest.raises(CassScaleError, match=r"it gives features \[1, 512\], not \[2, 512\]"):
        check.same_features("it", own, x, wanted[:1])


def test_what_torch_cannot_convert_says_so(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **keys: Any) -> None:
        raise torch.onnx.OnnxExporterError("no such operator \x1b[96mStep 2\nlong story")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ConfigError, match=r"cannot convert resnet10t \(no such operator\); take to=timm"):
        onnx_file.write(encoder_of(evaluated, "cnn"), tmp_path)
    monkeypatch.setattr(onnx_file, "LIMIT", 2**20)
    with pytest.raises(ConfigError, match="an ONNX file holds less"):
        onnx_file.write(encoder_of(evaluated, "cnn"), tmp_path)


def test_onnx_without_its_packages(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "missing", lambda packages: list(packages))
    with pytest.raises(ConfigError, match=r"to=onnx needs the package onnx: `pip install 'cass-scale\[onnx\]'`"):
        export(evaluated, "to=onnx")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["arm=resnet"], "arm=resnet: this run has cnn, vit"),
        (["arm=[cnn,third]"], "arm=third: this run has cnn, vit"),
        (["to=tensorrt"], "to=tensorrt: one of timm, onnx, hub is needed"),
        (["repo=anna/one"], "repo=anna/one is for to=hub; to=timm uploads nothing"),
        (["to=hub"], "repo is missing"),
        (["to=hub", "repo=anna/one"], "add arm=cnn or arm=vit"),
        (["to=hub", "arm=cnn", "repo=one"], "repo=one: OWNER/NAME is needed"),
        (["to=hub", "arm=cnn", "repo=a/b--c"], "repo=a/b--c: "),
        ([f"out={__file__}/out"], "not writable; choose another folder"),
    ],
)
def test_what_is_refused(evaluated: Path, words: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        export(evaluated, *words)
    assert expected in str(caught.value)


def test_the_card_has_the_runs_collapse_its_controls_and_its_terms(copied: Path, tmp_path: Path) -> None:
    null = Path(shutil.copytree(copied, tmp_path / "null"))
    records.update(null, method="cass_null")
    records.update(copied, collapse=[{"step": 2, "arm": "vit", "why": "all images get the same output"}])
    trained = yaml.safe_load((copied / "config.yaml").read_text())
    trained["data"] |= {"licence": "CC BY-NC 4.0", "page": "https://x.org/set"}
    (copied / "config.yaml").write_text(yaml.safe_dump(trained))
    export(copied, "arm=vit", f"runs={tmp_path}", "licence=research only (ask us)", f"out={tmp_path / 'out'}")
    card = (tmp_path / "out/vit/README.md").read_text()
    assert "**This encoder collapsed in training**, as the run's monitor saw it: vit at step 2: all images" in card
    assert "| null control |" in card and "| cass_contrast | " in card and "CC BY-NC 4.0, https://x.org/set" in card
    assert "license_name: research-only-ask-us" in card and str(tmp_path) not in card and "zebra" not in card


def test_a_folder_with_other_files_is_refused(evaluated: Path, tmp_path: Path) -> None:
    (tmp_path / "cnn").mkdir()
    (tmp_path / "cnn/patients.csv").touch()
    with pytest.raises(ConfigError, match=r"cnn in it holds patients\.csv; choose another folder"):
        export(evaluated, f"out={tmp_path}")


def test_wrong_folders_and_unfinished_runs(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.dir is missing: the folder"):
        cass_scale.export()
    with pytest.raises(DataError, match=r"no run\.json in .*: not a run folder"):
        export(tmp_path)
    with pytest.raises(DataError, match=r"no config\.yaml in .*: name the folder that `cass-scale pretrain` wrote"):
        export(copied / "evaluate/finetune-run/cnn/seed0")
    records.update(copied, status="preempted")
    with pytest.raises(ConfigError, match=r"is not finished \(status preempted\): run its command again"):
        export(copied)
