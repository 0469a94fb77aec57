"""The protocols of `cass-scale evaluate` through the verb: amounts, seeds, folds, what is kept, and bad input."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cass_scale import checkpoint, evaluate, records
from cass_scale.cli import main
from cass_scale.errors import ConfigError, DataError, NonFinite, Preempted
from cass_scale.evaluation.metrics import scores
from cass_scale.evaluation.predictions import Predictions
from cass_scale.verbs import frozen, tuning
from tests.data.images import labels_csv
from tests.short_runs import short

CLASSES = ("blue", "green", "red")
QUICK = ("device=cpu", "precision=fp32", "replicates=100")
TUNE = (*QUICK, "protocol=finetune", "protocol.epochs=1", "arm=cnn")


def colours(root: Path, n: int, *, test: int, labels: list[str] | None = None, seed: int = 0, **columns: Any) -> Path:
    """n images whose colour is their class; the last `test` are held back."""
    rng = np.random.default_rng(seed)
    root.mkdir()
    rows = []
    for i in range(n):
        pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[..., 2 - i % 3] += 150
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
        own = labels[i] if labels else CLASSES[i % 3]
        rows.append((f"{i:02d}.png", own, "test" if i >= n - test else "train", *(f(i) for f in columns.values())))
    return labels_csv(root, ",".join(["path", "label", "split", *columns]), *rows)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("set") / "images", 42, test=24, view=lambda i: "ab"[i % 2])


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("runs") / "done"
    short(made, f"data.path={images}", "method=cass_contrast", "train.max_steps=1")
    return made


@pytest.fixture
def again(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be spoilt."""
    return Path(shutil.copytree(run, tmp_path / "again"))


def ask(run: Path, *words: str, **keys: Any) -> dict[str, Any]:
    return evaluate(f"run.dir={run}", *words, quiet=True, **keys)


def test_predictions_are_kept_and_the_record_follows_from_them(run: Path, images: Path) -> None:
    record = ask(run, *QUICK, "protocol=linear", "by=view")
    said = Predictions.load(run / "evaluate" / record["predictions"])
    assert said.key.tolist() == [f"{i}.png" for i in range(18, 42)] and set(said.split) == {"test"}
    assert said.probability["cnn"].shape == (1, 24, 3) and said.classes.tolist() == list(CLASSES)
    for arm, row in record["arms"].items():
        again = scores(said.label, said.probability[arm][0], classes=CLASSES, multilabel=False)
        assert {name: row[name] for name in again} == again
        assert row["intervals"]["brier"][0] <= row["brier"] <= row["intervals"]["brier"][1]
        assert set(row["subgroups"]["view"]["groups"]) == {"a", "b"}
        assert arm == "ensemble" or row["chosen"][0]["c"] > 0
    assert list(record["arms"]) == ["cnn", "vit", "both", "ensemble"]
    mean = (said.probability["cnn"] + said.probability["vit"]) / 2
    np.testing.assert_allclose(said.probability["ensemble"], mean, atol=1e-6)
    assert record["labels"] == 1.0 and record["trainings"] == [0] and record["shift"] is False


def test_features_are_computed_once_for_all_protocols(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask(run, *QUICK, "protocol=knn")

    def never(*_: object) -> None:
        raise AssertionError("features were computed again")

    monkeypatch.setattr(frozen, "extract", never)
    assert ask(run, *QUICK, "protocol=knn")["arms"] == first["arms"]
    ask(run, *QUICK, "protocol=linear", "subset=[6]", "folds=2")
    with pytest.raises(AssertionError, match="computed again"):
        ask(run, *QUICK, "weights=random")


def test_fractions_subsets_and_folds_of_frozen_protocols(run: Path) -> None:
    record = ask(run, *QUICK, "protocol=knn", "labels=[0.5,1.0]", "seeds=2", "seed=4")
    half, whole = record["all"]["knn-run-labels0.5"], record["all"]["knn-run"]
    assert (half["n_train"], half["trainings"]) == (9, [4, 5]) and (whole["n_train"], whole["trainings"]) == (18, [4])
    assert len(half["arms"]["vit"]["each"]) == 2 and half["arms"]["vit"]["seeds"]["macro_f1"]["interval"]
    assert record["arms"] == whole["arms"], "the last one's record is returned"
    folded = ask(run, *QUICK, "protocol=linear", "subset=[S,F]", "folds=3")["all"]
    small, full = folded["linear-run-subsetS-folds3"], folded["linear-run-subsetF-folds3"]
    assert small["n_train"] == 3 and full["n_train"] == 12 and full["n_val"] == 6 and full["trainings"] == [0, 1, 2]


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which trainings were really done, by the names of their folders."""
    done: list[str] = []
    finetune = tuning.finetune

    def count(*given: Any, **more: Any) -> Any:
        done.append("/".join(given[6].folder.parts[-3:]))
        return finetune(*given, **more)

    monkeypatch.setattr(tuning, "finetune", count)
    yield done


def test_trainings_that_are_done_are_not_done_again(again: Path, tuned: list[str]) -> None:
    words = (*TUNE, "labels=[0.5,1.0]", "seeds=2")
    first = ask(again, *words)
    folders = [f"finetune-run{part}-cnn/cnn/seed{s}" for part in ("-labels0.5", "") for s in (0, 1)]
    assert tuned == folders
    second = ask(again, *words)
    assert tuned == folders and second["arms"] == first["arms"]
    each = [records.read(again / "evaluate" / place)["device_hours"]["total"] for place in folders[2:]]
    assert second["device_hours"]["total"] == pytest.approx(sum(each)) and min(each) > 0, "work done before counts"
    more = ask(again, *TUNE, "seeds=3")
    assert tuned[4:] == ["finetune-run-cnn/cnn/seed2"] and len(more["arms"]["cnn"]["each"]) == 3
    (again / "evaluate" / folders[0] / tuning.SAID).write_bytes(b"cut")
    ask(again, *words)
    assert tuned[5:] == folders[:1], "one whose answers are lost is done again"
    left = again / "evaluate" / folders[3]
    assert (left / "checkpoints/best.pt").is_file() and not list((left / "checkpoints").glob("step_*"))


def test_a_killed_study_goes_on_where_it_was(again: Path, tuned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainings of four steps; the signal comes in the second one's third step."""
    words = (*TUNE, "protocol.epochs=2", "protocol.batch_size=8", "seeds=2")
    words = tuple({word.split("=")[0]: word for word in words}.values())
    asked = iter([False] * 6 + [True] + [False] * 9)
    monkeypatch.setattr(checkpoint.StopSignal, "asked", lambda self: next(asked))
    with pytest.raises(Preempted):
        ask(again, *words)
    assert not (again / "evaluate/finetune-run-cnn.json").exists()
    killed = ask(again, *words)
    assert [name[-5:] for name in tuned] == ["seed0", "seed1", "seed1"]
    whole = ask(again, *words, "batch_size=24")  # nothing that decides a training
    assert len(tuned) == 3 and whole["arms"] == killed["arms"]


@pytest.mark.parametrize("protocol", ["linear_transfer", "finetune_transfer"])
def test_the_transfer_papers_protocols(again: Path, tuned: list[str], protocol: str) -> None:
    words = ("protocol.epochs=1", "protocol.min_epochs=0", "arm=cnn", "subset=[6]", "folds=2")
    record = ask(again, *QUICK, f"protocol={protocol}", *words)
    assert [name.split("/", 1)[1] for name in tuned] == ["cnn/fold0", "cnn/fold1"]
    assert record["subset"] == 6 and record["folds"] == 2 and record["n_train"] == 6 and record["n_val"] == 9


def test_a_grid_is_searched_by_the_first_training_and_used_by_all(again: Path, tuned: list[str]) -> None:
    grid = ("protocol.grid.lr=[0.001,1e30]", "protocol.grid.weight_decay=[0.0,0.01]")
    words = ("protocol=finetune_micle", "protocol.epochs=1", "protocol.batch_size=8", "arm=cnn", "seeds=2")
    record = ask(again, *QUICK, *words, *grid)
    names = [name.rsplit("/", 1)[1] for name in tuned]
    assert sorted(names[:4]) == [f"seed0-lr{lr}-weight_decay{w}" for lr in ("0.001", "1e+30") for w in ("0", "0.01")]
    left = {n: records.read(again / "evaluate/finetune_micle-run-cnn/cnn" / n) for n in names[:4]}
    assert {n for n, row in left.items() if row["status"] == "diverged"} == {n for n in left if "1e+30" in n}
    losses = {n: row["loss"] for n, row in left.items() if row["status"] == "done"}
    best = min(losses, key=losses.__getitem__)
    assert names[4:] == [best.replace("seed0", "seed1")]
    chosen = record["arms"]["cnn"]["chosen"]
    assert len(chosen) == 2 and best == f"seed0-lr{chosen[0]['lr']:g}-weight_decay{chosen[0]['weight_decay']:g}"
    with pytest.raises(NonFinite, match=r"cnn: training diverged at every point of protocol\.grid; add lower lr"):
        ask(again, *QUICK, *words, "protocol.grid.lr=[1e30]", "protocol.grid.weight_decay=[0.0]")


def test_a_shift_scores_all_of_another_set_by_what_the_runs_own_taught(run: Path, tmp_path: Path) -> None:
    other = colours(tmp_path / "other", 12, test=3, seed=9)
    record = ask(run, *QUICK, "protocol=linear", f"data.path={other}")
    assert record["shift"] and record["split"] == "all" and record["n_test"] == 12 and record["n_train"] == 18
    assert record["learnt_from"]["name"] == "images" and record["data"]["name"] == "other"
    assert (run / "evaluate/linear-run-other-shift.npz").is_file()
    itself = ask(run, *QUICK, "protocol=linear", f"data.path={other}", "data.learn=path")
    assert not itself["shift"] and itself["n_train"] == 9 and itself["n_test"] == 3
    assert (run / "evaluate/linear-run-other.json").is_file()
    shifted = ask(run, *TUNE, f"data.path={other}")
    assert shifted["shift"] and np.sum(shifted["arms"]["cnn"]["confusion"]) == 12


def test_a_leak_ends_with_exit_code_3(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = colours(tmp_path / "other", 6, test=3, seed=9)
    shutil.copy(images / "00.png", other / "03.png")
    words = [f"run.dir={run}", f"data.path={other}", *QUICK]
    assert main(["evaluate", *words]) == 3
    assert "1 of 6 test images have the bytes of training images" in capsys.readouterr().err
    assert main(["evaluate", *words, "leaks=warn"]) == 0
    assert "LEAK: 1 of 6" in capsys.readouterr().err
    assert records.read_json(run / "evaluate/knn-run-other-shift.json")["warnings"][0].startswith("LEAK")


def test_a_collapsed_run_is_scored_and_says_so(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records.update(again, collapse=[{"step": 1, "arm": "vit", "why": "the same output"}])
    record = ask(again, *QUICK)
    warning = "again collapsed in pretraining (vit); scored all the same"
    assert record["warnings"] == [warning] and warning in capsys.readouterr().err
    assert record["arms"]["vit"]["macro_f1"] is not None
    assert ask(again, *QUICK, "weights=initial")["warnings"] == []
    pytest.importorskip("jinja2", reason="needs the extra `report`")
    assert main(["report", f"runs={again.parent}", f"out={again.parent / 'report.html'}", "--quiet"]) == 0
    assert warning in (again.parent / "report.html").read_text()


def test_all_labels_equal_prints_what_cannot_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = colours(tmp_path / "same", 16, test=4, labels=["healthy"] * 16)
    short(tmp_path / "run", f"data.path={same}", "train.max_steps=1")
    for protocol in (["protocol=knn"], ["protocol=linear"], TUNE[3:]):
        assert main(["evaluate", f"run.dir={tmp_path / 'run'}", *QUICK, *protocol]) == 0
        said = capsys.readouterr().err
        assert "auc n/a: no class has test images with it and without it" in said
        assert next(line for line in said.splitlines() if line.startswith("cnn ")).split()[-1] == "n/a"


def test_the_positive_class_is_recorded_printed_and_chosen(
    again: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = colours(tmp_path / "two", 30, test=12, labels=["abnormal", "normal"] * 15)
    words = ["evaluate", f"run.dir={again}", *QUICK, f"data.path={two}", "protocol=knn"]
    assert main(words) == 0
    second = records.read_json(again / "evaluate/knn-run-two.json")
    assert "auc, sensitivity and specificity are of normal against the other class" in capsys.readouterr().err
    assert main([*words, "positive=abnormal"]) == 0
    first = records.read_json(again / "evaluate/knn-run-two.json")
    assert (second["positive"], first["positive"]) == ("normal", "abnormal")
    for one, other in ((first, second), (second, first)):
        row = one["arms"]["cnn"]
        assert row["sensitivity"] == pytest.approx(row["per_class"][one["positive"]]["sensitivity"])
        assert row["sensitivity"] == pytest.approx(other["arms"]["cnn"]["per_class"][one["positive"]]["sensitivity"])


def test_labels_that_training_never_saw_are_said(again: Path, tmp_path: Path) -> None:
    odd = colours(tmp_path / "odd", 12, test=3, seed=5, labels=["x", "y", "x"] * 3 + ["x", "y", "z"])
    record = ask(again, *QUICK, f"data.path={odd}", "protocol=linear")
    assert record["warnings"][0].startswith("no training image shows z")
    assert record["arms"]["cnn"]["per_class"]["z"]["recall"] == 0


def test_several_labels(tmp_path: Path) -> None:
    several = ["a|b", "b", "c", "a", "No Finding", "b|c"] * 5
    root = colours(tmp_path / "several", 30, test=12, labels=several, patient_id=lambda i: f"p{i // 2}")
    short(tmp_path / "run", f"data.path={root}", "train.max_steps=1")
    for words in (["protocol=knn"], ["protocol=linear", "labels=[0.5]"], TUNE[3:]):
        record = ask(tmp_path / "run", *QUICK, *words)
        row = record["arms"]["cnn"]
        assert record["multilabel"] and len(row["confusion"]) == 3 and row["micro_f1"] == row["official_f1"]
    assert Predictions.load(tmp_path / "run/evaluate/finetune-run-cnn.npz").label.dtype == np.uint8


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["labels=[0.01]"], DataError, r"labels=0\.01 leaves no image of blue \(6 training images\)"),
        (["labels=[]"], ConfigError, r"labels=\[\]: a list of one or more, each a share above 0 and up to 1"),
        (["labels=[2.0]"], ConfigError, "a share above 0"),
        (["subset=[S]", "labels=[0.1]"], ConfigError, r"subset=\['S'\] contradicts labels=\[0\.1\]"),
        (["subset=[XL]"], ConfigError, "S, M, F or a number of images"),
        (["folds=3", "seeds=2"], ConfigError, "folds=3 contradicts seeds=2: each fold is one training"),
        (["folds=19"], DataError, "fewer patients, groups or single images than folds"),
        (["protocol=finetune", "by=sex"], DataError, "by=sex: images has no such column; it has group, label, path"),
        (["positive=red"], ConfigError, r"positive=red needs a set of two exclusive classes \(images\)"),
        (["replicates=10"], ConfigError, "replicates=10: 0, or a whole number of at least 100"),
        (["leaks=ignore"], ConfigError, "leaks=ignore: one of refuse, warn"),
        (["protocol=finetune", "protocol.loss=mse"], ConfigError, r"protocol\.loss=mse: one of focal, cross_entropy"),
    ],
)
def test_refusals(run: Path, words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ask(run, *QUICK[:2], *words)


def test_a_set_without_a_test_split_or_with_one_patient(tmp_path: Path) -> None:
    alone = colours(tmp_path / "alone", 15, test=3, patient_id=lambda i: "q" if i > 11 else "p")
    short(tmp_path / "run", f"data.path={alone}", "train.max_steps=1")
    with pytest.raises(
        DataError, match="alone has no validation images, and none of its 12 training images can be held back"
    ):
        ask(tmp_path / "run", *TUNE)
    with pytest.raises(DataError, match="there are fewer patients, groups or single images than folds"):
        ask(tmp_path / "run", *QUICK, "folds=2")
    text = (alone / "labels.csv").read_text().replace("test", "train")
    (alone / "labels.csv").write_text(text)
    with pytest.raises(DataError, match="alone has no labelled images to hold back"):
        ask(tmp_path / "run", *QUICK)


def test_one_image_cannot_be_fine_tuned_on(tmp_path: Path) -> None:
    one = colours(tmp_path / "one", 8, test=4, labels=["healthy"] * 8)
    short(tmp_path / "run", f"data.path={one}", "train.max_steps=1")
    with pytest.raises(DataError, match="one: 1 image to learn from; finetune needs 2 for BatchNorm"):
        ask(tmp_path / "run", *TUNE, "labels=[0.3]")


def test_an_export_of_other_arms_is_refused(again: Path) -> None:
    shutil.copy(again / "export/vit.safetensors", again / "export/cnn.safetensors")
    with pytest.raises(DataError, match=r"cnn\.safetensors holds vit_tiny.*, and this run's arm is resnet10t"):
        ask(again, *QUICK)


def test_dry_run_says_what_would_be_trained(run: Path) -> None:
    planned = ask(run, *TUNE, "labels=[0.5,1.0]", "seeds=5", dry_run=True)
    assert (planned["n_train"], planned["n_test"], planned["split"], planned["trainings"]) == (9, 24, "test", 10)
