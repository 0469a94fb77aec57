"""The verb as a person meets it: what it leaves behind, what it refuses, and in which words."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from cass_scale import checkpoint, evaluate, precision, pretrain, records
from cass_scale.cli import main
from cass_scale.errors import Collapsed, ConfigError, DataError, MissingExtra, NonFinite, StorageError
from cass_scale.verbs import settings
from tests.short_runs import WORDS, pictures, short


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "done"
    short(run, "method=cass_contrast")
    return run


def test_a_run_leaves_everything_a_reader_needs(done: Path) -> None:
    record = records.read(done)
    assert record["status"] == "done" and record["steps"] == 3 and record["images_seen"] == 12
    assert record["data"]["synthetic"] is True and record["data"]["bad"] == []
    assert record["device_hours"]["total"] >= record["device_hours"]["train"] > 0
    assert set(record["spans"]) >= {"data", "views", "step", "observe", "checkpoint", "other"}
    assert record["arms"]["cnn"] == {"model": "resnet10t", "weights": "random"}
    assert record["objective"] == "infonce" and record["peak_memory_bytes"] > 2**20
    assert record["command"].startswith("cass-scale pretrain ")
    rows = records.read_metrics(done / records.METRICS)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert "probe/matched" in rows[0] and "probe/vit/rankme_features" in rows[2]
    assert 0 <= rows[1]["lr"] < rows[3]["lr"] <= 1e-4, "it warms up"
    assert yaml.safe_load((done / "config.yaml").read_text())["method"]["name"] == "cass_contrast"
    assert (done / "manifest.csv").is_file() and Image.open(done / "samples.png").size[0] == 8 * 32


def test_the_same_command_again_changes_nothing(done: Path) -> None:
    before = load_file(done / "export/cnn.safetensors")
    assert short(done, "method=cass_contrast")["status"] == "done"
    after = load_file(done / "export/cnn.safetensors")
    assert all(after[key].equal(before[key]) for key in before)
    assert records.read(done)["metrics"]["step"] == 3, "nor what the record says of the last step"


def test_other_settings_in_the_same_folder_are_refused_and_listed(done: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        short(done, "method=cass_contrast", "optim.lr=0.5", "seed=3")
    assert "optim.lr: 0.0001 -> 0.5" in str(caught.value) and "seed: 0 -> 3" in str(caught.value)


def test_null_moves_batchnorm_only(tmp_path: Path) -> None:
    short(tmp_path / "run", "method=cass_null", "optim.weight_decay=0.1")
    first = checkpoint.load(tmp_path / "run/checkpoints/step_00000003.pt")["model"]
    short(tmp_path / "one", "method=cass_null", "train.max_steps=1")
    other = checkpoint.load(tmp_path / "one/checkpoints/step_00000001.pt")["model"]
    moved = {key for key in first if not first[key].equal(other[key])}
    assert moved and all(
        key.rsplit(".", 1)[1] in ("running_mean", "running_var", "num_batches_tracked") for key in moved
    )


def test_the_notebook_never_clears_gradients(tmp_path: Path) -> None:
    """So with constant data the second update of SGD is twice as large; with clearing it is not."""
    steps = {}
    for clear in ("true", "false"):
        words = (
            "method=cass_official", f"train.clear_gradients={clear}", "optim.name=sgd", "optim.momentum=0",
            "optim.lr=1e-6",
            "schedule.kind=constant", "train.keep=3", "train.save_every=1", "schedule.floor=0",
        )  # fmt: skip
        run = tmp_path / clear
        short(run, *words)
        weights = [
            checkpoint.load(path)["model"]["arms.vit.head.weight"]
            for path in sorted((run / "checkpoints").glob("step*"))
        ]
        steps[clear] = [(b - a).norm().item() for a, b in pairwise(weights)]
    assert steps["false"][1] > 1.2 * steps["true"][1]


def test_swa_runs_and_refreshes_batchnorm(tmp_path: Path) -> None:
    words = ("method=cass_paper", "train.epochs=1", "train.max_steps=null", "swa.start=0", "swa.every=1")
    short(tmp_path / "run", *words)
    last = checkpoint.load(sorted((tmp_path / "run/checkpoints").glob("step*"))[-1])
    exported = load_file(tmp_path / "run/export/vit.safetensors")
    assert not exported["pos_embed"].equal(last["model"]["arms.vit.encoder.body.pos_embed"]), (
        "the mean, not the last weights"
    )
    assert exported["pos_embed"].allclose(last["average"]["module.arms.vit.encoder.body.pos_embed"])


def test_noise_control_says_so(tmp_path: Path) -> None:
    assert short(tmp_path / "run", "data.noise=true")["data"]["noise"] is True


def test_own_views_and_projector(tmp_path: Path) -> None:
    record = short(tmp_path / "run", "views=strong", "views.per_arm=own", "method.projection=16", "objective=vicreg")
    assert record["status"] == "done"


def test_collapse_is_recorded_and_can_stop_the_run(tmp_path: Path) -> None:
    words = (
        "method=cass",
        "train.max_steps=80",
        "monitor.every=5",
        "train.on_collapse=stop",
        "schedule.kind=constant",
    )
    with pytest.raises(Collapsed, match="cass_contrast"):
        short(tmp_path / "run", *words)
    record = records.read(tmp_path / "run")
    assert record["status"] == "stopped" and record["steps"] < 80
    assert {entry["arm"] for entry in record["collapse"]} <= {"cnn", "vit", "the pair"}


def test_a_loss_that_is_not_a_number_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match=r"optim\.lr"):
        short(
            tmp_path / "run",
            "optim.lr=1e30",
            "optim.name=sgd",
            "schedule.kind=constant",
            "train.save_every=1",
            "train.max_steps=30",
        )
    record = records.read(tmp_path / "run")
    assert record["status"] == "failed" and "step" in record["error"]
    state = checkpoint.load(sorted((tmp_path / "run/checkpoints").glob("step*"))[-1])
    assert state["at"]["step"] < 30


def test_broken_weights_are_never_saved(tmp_path: Path) -> None:
    """The last step's loss is still a number; its weights are not."""
    words = ("optim.lr=1e39", "optim.name=adam", "schedule.kind=constant", "train.save_every=1", "train.max_steps=1")
    with pytest.raises(NonFinite, match="weight"):
        short(tmp_path / "run", *words)
    assert records.read(tmp_path / "run")["status"] == "failed"
    assert not list((tmp_path / "run").glob("checkpoints/step*"))


def test_kept_gradients_contradict_loss_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = precision.Resolved("fp16", torch.float16, use_scaler=True, tf32=False, why="a Turing card")
    monkeypatch.setattr(precision, "resolve", lambda asked, device: scaled)
    with pytest.raises(ConfigError, match="clear_gradients=false"):
        short(tmp_path / "run", "method=cass_official")


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, calls = torch.save, []

    def full(state: object, file: Any) -> None:
        calls.append(1)
        if len(calls) > 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="No space left"):
        short(tmp_path / "run", "train.save_every=1", "train.max_steps=9")
    left = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir() if p.name.startswith(("step", ".")))
    assert left and not any("partial" in name for name in left)
    assert checkpoint.load(tmp_path / "run/checkpoints" / left[-1])["at"]["step"] >= 1
    monkeypatch.undo()
    assert short(tmp_path / "run", "train.save_every=1", "train.max_steps=9")["status"] == "done"


def test_dry_run_counts_and_starts_nothing(tmp_path: Path) -> None:
    found = pretrain(*WORDS, f"run.dir={tmp_path / 'run'}", dry_run=True, quiet=True)
    assert found["steps"] == 3 and found["images"] == 12
    assert found["flops_per_image"] > 1e6 and found["memory_bytes"] > 16 * found["parameters"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train.batch_size=abc", "optim.lr=-1"], 2, "2 problems in the configuration"),
        (["train.batch_size=6", "train.accumulate=4"], 2, "not divisible"),
        (["train.device=cuda"], 2, "torch sees no CUDA device"),
        (["train.precision=fp16"], 2, "precision=fp16"),
        (["data.path=/nowhere"], 3, "/nowhere"),
        (["train.batch_size=4000"], 3, "4000"),
        (["method=nope"], 2, "no such choice"),
        (["schedule.warmup=0.1"], 2, "schedule.warmup=0.1 contradicts schedule.kind=cosine16"),
        (["method.frozen=maybe"], 2, "method.frozen=maybe: true or false"),
        (["objective=infonce", "objective.temperature=0"], 2, "objective.temperature=0"),
        (["data.path="], 2, "data.path="),
    ],
)
def test_exit_codes(words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if words == ["train.device=cuda"] and torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    chosen = {w.split("=")[0]: w for w in [*WORDS[2:], *words]}
    assert main(["pretrain", *chosen.values(), f"run.dir={tmp_path / 'run'}"]) == code
    said_here = capsys.readouterr().err
    assert said in said_here and "Traceback" not in said_here
    assert not (tmp_path / "run").exists(), "a run that cannot start leaves nothing"


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        main(["pretrain", "--debug", "data.path=/nowhere", f"run.dir={tmp_path / 'run'}"])


def test_bf16_where_the_device_lacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_flags", lambda: {"avx2"})
    with pytest.raises(ConfigError, match="bf16"):
        short(tmp_path / "run", "train.precision=bf16")


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cass-scale\[trackers\]"):
        short(tmp_path / "run", "train.trackers=[wandb]")
    assert issubclass(MissingExtra, ConfigError)


def test_tensorboard_gets_every_row(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra `trackers`")
    short(tmp_path / "run", "train.trackers=[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((tmp_path / "run").rglob("events.out.*")).parent))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


def test_unwritable_run_directory(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ConfigError, match="not writable"):
        short(blocker / "run")


def test_bad_images_are_counted_listed_and_skipped(tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", 20)
    (images / "empty.jpg").touch()
    (images / "text.png").write_text("not an image")
    with pytest.raises(DataError, match="max_bad"):
        short(tmp_path / "run", f"data.path={images}")
    record = short(tmp_path / "run", f"data.path={images}", "data.max_bad=0.2", "train.max_steps=1")
    assert sorted(bad["key"] for bad in record["data"]["bad"]) == ["empty.jpg", "text.png"]
    assert record["data"]["images"] == 20


def test_evaluate_scores_a_run_and_its_references(done: Path) -> None:
    for protocol in ("knn", "linear"):
        for weights in ("run", "initial", "random"):
            record = evaluate(f"run.dir={done}", f"protocol={protocol}", f"weights={weights}", "device=cpu", quiet=True)
            assert (
                set(record["arms"]) == {"cnn", "vit", "both", "ensemble"}
                and 0 <= record["arms"]["vit"]["macro_f1"] <= 1
            )
            assert (
                json.loads((done / "evaluate" / f"{protocol}-{weights}.json").read_text())["n_test"] == record["n_test"]
            )


def test_finetuning_runs_on_the_same_loop(done: Path) -> None:
    words = (
        "protocol=finetune",
        "protocol.epochs=2",
        "protocol.batch_size=4",
        "arm=vit",
        "device=cpu",
        "precision=fp32",
    )
    record = evaluate(f"run.dir={done}", *words, quiet=True)
    assert list(record["arms"]) == ["vit"]
    rows = records.read_metrics(done / "evaluate/finetune-run-vit/vit/seed0/metrics.jsonl")
    other = evaluate(f"run.dir={done}", *words, "protocol.lr=1e-5", quiet=True)
    assert other["arms"] != record["arms"], "other settings start anew, and do not go on from the first ones' end"
    again = evaluate(f"run.dir={done}", *words, "protocol.lr=1e-5", quiet=True)
    assert again["arms"] == other["arms"]
    assert "val/macro_f1" in rows[-1] and (done / "evaluate/finetune-run-vit/vit/seed0/checkpoints/best.pt").is_file()


def test_evaluate_refuses_what_it_cannot_score(done: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.dir is missing"):
        evaluate(quiet=True)
    with pytest.raises(ConfigError, match="this run has cnn, vit"):
        evaluate(f"run.dir={done}", "arm=[rnn]", quiet=True)
    with pytest.raises(DataError, match="not a run folder"):
        evaluate(f"run.dir={tmp_path}", quiet=True)
    copy = tmp_path / "copy"
    shutil.copytree(done, copy)
    records.update(copy, status="preempted")
    with pytest.raises(ConfigError, match="not finished"):
        evaluate(f"run.dir={copy}", quiet=True)
    images = pictures(tmp_path / "images", 9)
    short(tmp_path / "run", f"data.path={images}", "train.max_steps=1")
    with pytest.raises(DataError, match="no labels"):
        evaluate(f"run.dir={tmp_path / 'run'}", quiet=True)
