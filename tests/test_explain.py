"""`cass-scale explain` on small runs: what it leaves behind, what it leaves out, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="needs the extra `report`")
pytest.importorskip("matplotlib", reason="needs the extra `report`")

from PIL import Image

from cass_scale import evaluate, explain, records
from cass_scale.cli import main
from cass_scale.data.sources import phantom
from cass_scale.errors import ConfigError
from cass_scale.verbs.onlookers import _names
from tests.short_runs import pictures, short
from tests.test_report_browser import WRAPPER, chromium, needs_chromium

SMALL = ("device=cpu", "per_class=3", "examples=2", "batch_size=8")
EVERY = (
    "attention-vit-images", "attention-vit-heads", "attention-vit-classes", "convolutions-cnn-first",
    "convolutions-cnn", "gradcam-cnn", "cka-cnn-vit", "cka-cnn", "cka-vit", "embedding-cnn", "embedding-vit",
)  # fmt: skip


def look(run: Path, *words: str) -> dict:
    return explain(f"run.dir={run}", *SMALL, *words, quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    short(folder, "method=cass_contrast", "data.images=60")
    return folder


@pytest.fixture(scope="module")
def looked(run: Path) -> dict:
    return look(run)


def test_the_page_and_its_files(run: Path, looked: dict) -> None:
    folder = run / "explain"
    assert {p.name for p in folder.iterdir()} == {"explain.html", "explain.json"} | {
        f"{name}.{kind}" for name in EVERY for kind in ("png", "svg")
    }
    assert json.loads((folder / "explain.json").read_text()) == json.loads(json.dumps(looked))
    html = (folder / "explain.html").read_text()
    assert html.count("data:image/png;base64,") == len(EVERY)
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)|@import|https?://", html), "everything is in the page"
    assert "Left out: cnn: resnet10t is no Vision Transformer" in html and "Synthetic images" in html
    for name in EVERY:
        with Image.open(folder / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 20, name


def test_random_arms_start_as_they_are_initialised(looked: dict) -> None:
    assert list(looked["sides"]) == ["this run", "initial"] and "random weights" in looked["sides"]["initial"]


def test_layers_and_indicators_are_in_the_record(looked: dict) -> None:
    with_itself = looked["sections"]["cka"]["numbers"]["vit"]["with itself"]
    assert with_itself["rows"] == with_itself["columns"] == [*(f"blocks.{i}" for i in range(12)), "features"]
    assert all(abs(row[i] - 1) < 1e-4 for i, row in enumerate(with_itself["cka"]))
    known = looked["sections"]["embedding"]["numbers"]["this run"]
    assert set(known["arms"]) == {"cnn", "vit"} and 1 <= known["arms"]["vit"]["rankme"] <= 20


def test_the_same_seed_gives_the_same_bytes(run: Path, looked: dict, tmp_path: Path) -> None:
    look(run, f"out={tmp_path / 'again'}")
    sums = [
        {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.suffix in (".png", ".svg")}
        for folder in (run / "explain", tmp_path / "again")
    ]
    assert len(sums[0]) == 2 * len(EVERY) and sums[0] == sums[1]


def test_other_runs_stand_beside_it_in_their_own_size(run: Path, tmp_path: Path) -> None:
    labels, dino = tmp_path / "labels" / "s0", tmp_path / "dino" / "s0"
    short(labels, "method=supervised", "arms.image_size=48", "arms.cnn.model=resnet18", "train.max_steps=1")
    short(dino, "method=dino_small", "arm=cnn", "arms.global_size=32", "arms.local_size=16", "train.max_steps=1")
    record = look(run, f"out={tmp_path / 'out'}", f"against=[{labels},{dino}]", "parts=[cka]")
    assert list(record["sides"]) == ["this run", "initial", "supervised", "dino_small"]
    numbers = record["sections"]["cka"]["numbers"]
    of_vit = {"with itself", "with initial", "with supervised"}
    assert set(numbers["vit"]) == of_vit and set(numbers["cnn"]) == of_vit | {"with dino_small"}
    assert f"The run in {dino} has no arm vit." in record["notes"]


def test_other_runs_are_called_by_what_tells_them_apart() -> None:
    methods = {Path("a/s0"): "dino", Path("b/s0"): "dino", Path("plain"): "cass", Path("random"): "cass_null"}
    assert list(_names(methods).values()) == ["dino", "dino #2", "plain", "cass_null"]
    assert list(_names({Path("a-name-of-twenty-one"): "cass"}).values()) == ["a-name-of-twent\N{HORIZONTAL ELLIPSIS}"]


def test_images_without_labels(run: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", 7)
    record = look(run, f"images={folder}", f"out={tmp_path / 'out'}")
    assert record["images"]["number"] == 7 and record["images"]["classes"] == {}
    assert "gradcam-cnn.png" not in {p.name for p in (tmp_path / "out").iterdir()}
    assert "no class to ask for" in record["sections"]["gradcam"]["left_out"][0]
    assert "nothing to keep apart" in record["sections"]["embedding"]["left_out"][0]


def test_images_of_several_classes_each(run: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", 8)
    rows = "\n".join(f"{i}.png,{label}" for i, label in enumerate(["a|b", "b", "a", "No Finding"] * 2))
    (folder / "labels.csv").write_text(f"path,label\n{rows}\n")
    record = look(run, f"images={folder}", f"out={tmp_path / 'out'}")
    assert record["images"]["classes"] == {"a": 4, "b": 4}
    assert record["sections"]["embedding"]["left_out"] == ["class separation: an image may have several classes here"]
    assert (tmp_path / "out" / "gradcam-cnn.png").exists()


def test_classes_are_drawn_in_turn(run: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", 12)
    rows = "\n".join(f"{i}.png,{'rare' if i < 2 else 'common'}" for i in range(12))
    (folder / "labels.csv").write_text(f"path,label\n{rows}\n")
    record = look(run, f"images={folder}", f"out={tmp_path / 'out'}", "most=5", "parts=[attention]")
    assert record["images"]["classes"] == {"rare": 2, "common": 3}


def test_two_cnns_have_no_attention_to_show(tmp_path: Path, run: Path) -> None:
    short(tmp_path / "cnns", "arms.vit.model=resnet10t")
    with pytest.raises(ConfigError, match="nothing of it can be shown: cnn: resnet10t is no Vision Transformer"):
        look(tmp_path / "cnns", "parts=[attention]")
    assert not (tmp_path / "cnns" / "explain").exists()
    record = look(tmp_path / "cnns", "parts=[attention,gradcam]")
    assert record["sections"]["gradcam"]["files"] == ["gradcam-cnn", "gradcam-vit"]


def test_what_cannot_be_looked_at(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished, ignore=shutil.ignore_patterns("explain", "checkpoints"))
    records.update(unfinished, status="preempted")
    (tmp_path / "empty").mkdir()
    for words, why in (
        ([], "run.dir is missing"),
        ([f"run.dir={tmp_path}"], "no run.json"),
        ([f"run.dir={unfinished}"], "is not finished (status preempted): run its command again"),
        ([f"run.dir={run}", f"against={unfinished}"], f"against={unfinished} is not finished"),
        ([f"run.dir={run}", f"images={tmp_path / 'nowhere'}"], "no such folder; name one of images or of shards"),
        ([f"run.dir={run}", f"images={tmp_path / 'empty'}"], "is an empty folder"),
        ([f"run.dir={run}", "arm=swin"], "arm=swin: this run has cnn, vit"),
        ([f"run.dir={run}", "parts=[attention,tsne]", "maps=[]"], "2 problems"),
        ([f"run.dir={run}", f"images={run}", f"out={run}/x"], "lies in the folder of images"),
    ):
        assert main(["explain", *words, "--quiet"]) in (2, 3), words
        assert why in capsys.readouterr().err, words


def test_a_run_that_shares_no_arm(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("explain", "checkpoints"))
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("\n  cnn:", "\n  left:").replace("\n  vit:", "\n  right:"))
    with pytest.raises(ConfigError, match="has the arms left, right, of which this run shows cnn, vit: none"):
        look(run, f"against={other}")


def test_initial_weights_that_are_gone_are_left_out(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("explain", "checkpoints"))
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("weights: random", "weights: gone.safetensors", 1))
    record = look(other, "parts=[gradcam]")
    assert list(record["sides"]) == ["this run", "random"] and "gone.safetensors: no such file" in record["notes"][0]


def test_a_run_that_diverged_is_said_to_have(run: Path, tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("explain", "checkpoints"))
    path = other / "export" / "vit.safetensors"
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    save_file({k: torch.full_like(v, torch.nan) for k, v in load_file(path).items()}, path, metadata=about)
    record = look(other, "parts=[embedding]")
    why = "vit: this run: its features are not finite numbers; the run has diverged"
    assert record["sections"]["embedding"]["left_out"][0] == why
    assert list(record["sections"]["embedding"]["numbers"]["this run"]["arms"]) == ["cnn"]


def test_a_collapsed_run_is_said_to_be_one(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("explain", "checkpoints"))
    records.update(other, collapse=[{"step": 2, "arm": "vit", "why": "all images get the same output"}])
    look(other, "parts=[cka]", f"against={other}")
    html = (other / "explain" / "explain.html").read_text()
    assert "This run collapsed: vit at step 2" in html and "other collapsed in pretraining (vit)" in html


def test_dry_run_starts_nothing(run: Path, tmp_path: Path) -> None:
    found = explain(f"run.dir={run}", f"out={tmp_path / 'out'}", dry_run=True, quiet=True)
    assert found["images"] == len(phantom(images=60, scale=0.2).rows("test")) and not (tmp_path / "out").exists()


def test_umap_without_its_package(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cass_scale.verbs.settings.find_spec", lambda name: None if name == "umap" else object())
    with pytest.raises(ConfigError, match=r"needs the package umap-learn: `pip install 'cass-scale\[umap\]'`"):
        look(run, "maps=[tsne,umap]")


def test_evaluate_scores_both_arms_together_and_says_what_labels_do_not(run: Path) -> None:
    record = evaluate(f"run.dir={run}", "protocol=knn", "device=cpu", quiet=True)
    assert list(record["arms"]) == ["cnn", "vit", "both", "ensemble"]
    assert set(record["indicators"]["arms"]) == {"cnn", "vit"} and list(record["indicators"]["pairs"]) == ["cnn, vit"]
    alone = evaluate(f"run.dir={run}", "protocol=linear", "arm=vit", "device=cpu", quiet=True)
    assert list(alone["arms"]) == ["vit"] and alone["indicators"]["pairs"] == {}


@pytest.mark.browser
@needs_chromium
def test_chromium_finds_nothing_wider_than_the_screen(looked: dict, tmp_path: Path) -> None:
    shutil.copy(looked["page"], tmp_path / "report.html")
    (tmp_path / "wrapper.html").write_text(WRAPPER)
    flags = ["--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom"]
    dom = chromium(tmp_path, *flags, (tmp_path / "wrapper.html").as_uri())
    for sizes, width in zip(json.loads(re.search(r"<pre>(.*)</pre>", dom)[1]), (390, 1280), strict=True):
        assert sizes["closed"] == [width, width] and sizes["text"] > 1_000


def test_brain_images(shared: Path, tmp_path: Path) -> None:
    short(tmp_path / "run", f"data.path={shared / 'data' / 'brain_mri'}", "train.max_steps=1")
    record = look(tmp_path / "run", "most=24")
    assert record["images"]["classes"] == {"glioma": 8, "meningioma": 8, "pituitary": 8}
    numbers = record["sections"]["embedding"]["numbers"]["this run"]["arms"]["cnn"]
    assert 0 < numbers["purity"] <= 1 and numbers["chance"] == pytest.approx(7 / 23)
    assert all((tmp_path / "run" / "explain" / f"{name}.svg").stat().st_size > 1000 for name in EVERY)
