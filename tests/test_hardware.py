"""The paper's card: what is refused, what is held, what the record and the page say, and what is predicted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cass_scale import hardware, machine, precision, records
from cass_scale.cli import compose_config, main
from cass_scale.errors import ConfigError
from cass_scale.forecast import EPOCHS, on_card
from cass_scale.grid import plan
from cass_scale.hardware import Limits
from cass_scale.measure import peaks
from cass_scale.measure.steps_table import predictions, table
from cass_scale.page import report
from cass_scale.published import hours, training_images
from cass_scale.verbs import wire
from tests.short_runs import short
from tests.test_bench_step import figures

ROOT = Path(__file__).parents[1]
LIMITS = Limits("rtx8000", "Quadro RTX 8000", "published", 48, 2)
FAST = Limits("rtx8000", "Quadro RTX 8000", "fast", 48, 2)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.precision=bf16"], "train.precision=bf16 contradicts hardware=rtx8000, which has no bf16"),
        (["hardware.mode=fast", "train.precision=tf32"], "train.precision=tf32 contradicts hardware=rtx8000"),
        (["train.precision=fp16"], "contradicts hardware=rtx8000 hardware.mode=published: leave it at auto"),
        (["hardware.mode=slow"], "hardware.mode=slow: one of published, fast is needed"),
        (["hardware.memory_gb=0", "hardware.cores=two"], "hardware.cores=two: a whole number of at least 1 is needed"),
    ],
)
def test_what_the_card_has_not_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "hardware=rtx8000", "arms=tiny", *words, "--dry-run"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "precision=bf16", "run.dir=nowhere"], "precision=bf16 contradicts hardware=rtx8000"),
        (["bench", "name=step", "hardware.mode=slow"], "hardware.mode=slow"),
        (["bench", "name=step", "bench.words=['train.precision=bf16']"], "train.precision=bf16 contradicts hardware"),
        (["bench", "name=step", "bench.only=[quick]"], "bench.only: there is no variant quick; there are plain, fp32"),
    ],
)
def test_other_verbs_refuse_it_too(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "hardware=rtx8000"]) == 2
    assert said in capsys.readouterr().err


def test_the_card_means_the_papers_arms_unless_others_are_named() -> None:
    arms = compose_config("pretrain", ["hardware=rtx8000"])["arms"]
    assert (arms["cnn"]["model"], arms["image_size"]) == ("resnet50", 384)
    assert compose_config("pretrain", ["hardware=rtx8000", "arms=tiny"])["arms"]["image_size"] == 96
    assert compose_config("pretrain", [])["arms"]["image_size"] == 96
    assert compose_config("bench", ["name=step", "hardware=rtx8000"])["bench"]["arms"] == "paper_random"
    assert "arms" not in compose_config("evaluate", ["hardware=rtx8000"])


def test_workers_are_the_nodes_cores() -> None:
    assert wire.workers("auto", LIMITS) == 2 and wire.workers(5, LIMITS) == 5


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A card that is larger than the limits, and what is asked of it."""
    asked: dict[str, Any] = {"tasks": {}}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=150 * 10**9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *a: asked.update(memory=a[0]))
    monkeypatch.setattr(torch.backends.cuda, "enable_flash_sdp", lambda on: asked.update(flash=on))
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: asked.update(cudnn=on))
    monkeypatch.setattr(machine, "cores", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda task, cores: asked["tasks"].update({task: cores}))
    return asked


def test_a_larger_card_is_held_to_the_limits(h200: dict[str, Any]) -> None:
    resolved = precision.Resolved("fp32", None, False, False, "")
    held = hardware.hold(LIMITS, resolved, torch.device("cuda", 0))
    assert held["emulated_on"] == "NVIDIA H200" and all(one["enforced"] for one in held["limits"].values())
    assert h200["memory"] == pytest.approx(48 / 150) and held["limits"]["memory"]["bytes"] == 48 * 10**9
    assert os.getpid() in h200["tasks"] and set(map(tuple, h200["tasks"].values())) == {(0, 1)}
    assert h200["flash"] is h200["cudnn"] is False


def test_the_card_itself_is_not_emulated(h200: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Quadro RTX 8000")
    resolved = precision.Resolved("fp16", torch.float16, True, False, "")
    assert hardware.hold(FAST, resolved, torch.device("cuda", 0))["emulated_on"] is None


@pytest.mark.gpu
def test_more_than_the_limit_cannot_be_allocated() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda", 0)
    resolved = hardware.resolve(LIMITS, "auto", device)
    cores = os.sched_getaffinity(0)
    try:
        held = hardware.hold(Limits("rtx8000", "Quadro RTX 8000", "published", 1, 2), resolved, device)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(2 * 10**9, dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        os.sched_setaffinity(0, cores)
    assert held["limits"]["memory"]["enforced"] and len(os.sched_getaffinity(0)) == len(cores)


def test_a_cpu_says_what_it_cannot_enforce(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = hardware.resolve(FAST, "auto", CPU)
    assert resolved.name == "fp32" and "in place of fp16, which a CPU has not" in resolved.why
    monkeypatch.setattr(machine, "cores", lambda: 16)
    limits = hardware.hold(FAST, resolved, CPU)["limits"]
    assert {name: one["enforced"] for name, one in limits.items()} == dict.fromkeys(
        ("precision", "memory", "cores"), False
    )
    assert limits["precision"]["name"] == "fp16 with loss scaling"
    with pytest.raises(ConfigError, match=r"precision=fp32 contradicts hardware=rtx8000 hardware\.mode=fast"):
        hardware.resolve(FAST, "fp32", CPU)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "emulated"
    patch = pytest.MonkeyPatch()
    patch.setattr(peaks, "matrix_product", lambda device, dtype: 1e11)
    short(folder, "hardware=rtx8000", "arms=tiny", "train.precision=auto")
    patch.undo()
    return folder


def test_the_record_says_what_was_held_and_predicts(run: Path) -> None:
    record = records.read(run)
    held, seconds = record["hardware"], 3600 * record["device_hours"]["train"]
    assert held["emulated_on"] == machine.cpu_name() and held["mode"] == "published"
    assert held["limits"]["memory"]["enforced"] is False and held["limits"]["precision"]["enforced"] is True
    assert [text.split(":")[0] for text in held["differs"]] == ["arms", "arms.image_size", "train.batch_size"]
    found = held["prediction"]
    assert found["efficiency"] == pytest.approx(record["images_seen"] / seconds * record["flops_per_image"] / 1e11)
    assert found["card_peak"] == 16.3e12 and found["precision"] == "fp32"


def test_the_page_says_emulated_and_marks_the_prediction(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="needs the extra `report`")
    text = " ".join(report(run, tmp_path / "page.html").read_text().split())
    assert f"Quadro RTX 8000, published, emulated on {machine.cpu_name()}; not enforced: memory" in text
    assert "On a real Quadro RTX 8000: a prediction" in text and "<strong>Predicted, not measured</strong>" in text
    assert "arms.image_size: 32, the paper 384" in text and "30.0 h" in text


def test_the_prediction_is_arithmetic() -> None:
    """Half of a peak of 1 TFLOP/s here is half of what the other card sustains of its 16 there."""
    found = on_card(flops_per_image=4e11, images_per_s=1.25, measured_peak=1e12, card_peak=16e12)
    assert found["efficiency"] == 0.5 and found["images_per_s"] == pytest.approx([20.0, 14.0])
    assert found["hours"]["ISIC 2019"] == pytest.approx([EPOCHS * 17732 / rate / 3600 for rate in (20.0, 14.0)])


def test_table_2_itself_is_a_possible_rate_of_the_card() -> None:
    """The paper's hours are a quarter to half of the card's peak on every set: images and hours belong together."""
    flops = 403.6e9  # of an image in `pretrain arms=paper_random --dry-run`
    shares = [
        flops * EPOCHS * images / (3600 * hours()[name][1]) / 16.3e12 for name, images in training_images().items()
    ]
    assert all(0.25 < share < 0.54 for share in shares)


def test_the_bench_page_predicts_beside_table_2() -> None:
    one = figures()
    one["peaks"]["matrix_product"]["fp32"] = 1e11
    one["sides"]["plain/8"][0]["precision"] = "fp32"
    one["predicted"] = {"card": LIMITS.card, "differs": ["arms: a, the paper b"], "rows": predictions(LIMITS, one)}
    text = table(one)
    assert "**Prediction, not measurement**" in text and "Not the paper's setting: arms: a, the paper b." in text
    assert (
        "| plain | 8 | fp32 | 80 % |" in text
        and "| Table 2, CASS | 16 | | | | 21.0 min | 71.0 min | 7.2 h | 30.0 h |" in text
    )


def test_a_studys_rows_are_scored_under_the_same_limits() -> None:
    study = compose_config("study", ["name=batch_size"])
    asked = {key: None for key in ("rows", "settings", "protocols", "seeds")}
    rows = plan(study["study"], asked, ["hardware=rtx8000", "hardware.mode=fast"])
    assert all({"hardware=rtx8000", "hardware.mode=fast"} <= set(words) for words in rows[0].evaluations.values())


def script(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """launch/rtx8000.sh with a `cass-scale` of this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [str(ROOT / "launch/rtx8000.sh"), *words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )


@pytest.fixture
def command(tmp_path: Path) -> str:
    """A PATH on which `cass-scale` is this checkout."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/cass-scale").write_text(f'#!/bin/sh\nexec {sys.executable} -m cass_scale "$@"\n')
    (tmp_path / "bin/cass-scale").chmod(0o755)
    return f"{tmp_path / 'bin'}:{os.environ['PATH']}"


def test_one_command_per_set_is_planned(command: str, shared: Path) -> None:
    words = ("brain_mri", "--dry-run", "--cpu", "data=folder", "arms=tiny", "hardware.mode=fast", "seed=3")
    done = script(*words, PATH=command, DATA=str(shared / "data/brain_mri"))
    assert done.returncode == 0, done.stderr
    assert "steps        6000 of 16 images" in done.stderr and "hardware     Quadro RTX 8000, fast" in done.stderr
    scoring = done.stdout.split("then: ")[1].splitlines()[0]
    assert "protocol=finetune" in scoring and "labels=[0.01,0.1,1.0] seeds=5" in scoring
    assert {"hardware=rtx8000", "hardware.mode=fast", "seed=3", "device=cpu"} <= set(scoring.split())


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        (("isic",), {"DATA": "x"}, "SET=isic: one of isic2019, brain_mri, dermofit, autoimmune is needed"),
        (("isic2019",), {"DATA": ""}, "DATA is not set"),
        (("isic2019", "fast"), {"DATA": "x"}, "fast: --dry-run, --trial, --cpu or key=value is needed"),
    ],
)
def test_the_script_says_what_it_lacks(words: tuple[str, ...], variables: dict[str, str], said: str) -> None:
    done = script(*words, **variables)
    assert done.returncode == 2 and said in done.stderr
