"""Where the device's memory ends: the message names the largest batch that fits, and the exit code is 1."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from cass_scale import records
from cass_scale.cli import main
from cass_scale.measure import fit
from cass_scale.types import JSON
from cass_scale.verbs import pretrain
from tests.short_runs import WORDS

BATCH = [word for word in WORDS if not word.startswith("train.batch_size")] + ["train.batch_size=12"]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[torch.nn.Module]]:
    """The first step finds no memory; what the run held by then."""
    held: list[weakref.ref[torch.nn.Module]] = []

    def work(config: JSON, build: object, method: torch.nn.Module, *rest: object) -> None:
        held.append(weakref.ref(method))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(pretrain, "work", work)
    return held


def say(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["pretrain", *BATCH, *words, f"run.dir={tmp_path / 'run'}", "--quiet"]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("holds", "words", "said"),
    [
        (7, [], "that fits, found by trial, is 7. In another run.dir: train.batch_size=7, or train.accumulate=2, or"),
        (3, ["train.accumulate=2"], "is 6. In another run.dir: train.batch_size=6, or train.accumulate=4, or train."),
        (1, [], "also for 2 images: take smaller arms, or a smaller arms.image_size"),
        (40, [], "fit, so something else was in it: run the same command again"),
    ],
)  # fmt: skip
def test_the_largest_batch_is_named(
    holds: int,
    words: list[str],
    said: str,
    full: list[weakref.ref[torch.nn.Module]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def trial(config: JSON) -> JSON:
        gc.collect()
        assert full[0]() is None, "the run must be gone, or the trial finds its memory taken"
        return {"batch": fit.largest(lambda number: number <= holds)}

    monkeypatch.setattr(fit, "trial", trial)
    text = say(tmp_path, capsys, *words)
    assert "train.batch_size=12: the device has too little memory" in text and said in text and "Traceback" not in text
    assert records.read(tmp_path / "run")["status"] == "failed"


def test_a_trial_that_fails_is_told(
    full: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit, "answer", lambda words: {"error": "driver lost"})
    assert "take a smaller one (the trial for the largest failed: driver lost)" in say(tmp_path, capsys)


def test_ranks_of_one_run_do_not_try_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(fit, "trial", lambda config: pytest.fail("the device is not free"))
    assert "bench name=step" in str(fit.too_large({"train": {"batch_size": 12, "accumulate": 1}}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_real_device_the_run_ends_with_a_batch_that_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(0).total_memory)
    words = ["pretrain", "data.images=700", "arms.image_size=224", "train.batch_size=448", "stream.workers=0"]
    try:
        assert main([*words, f"run.dir={tmp_path / 'run'}", "--quiet"]) == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "the largest that fits, found by trial, is" in capsys.readouterr().err
