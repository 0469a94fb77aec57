"""Training with labels on the one loop: when it stops, what it answers with, what stays frozen, what a kill leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from sklearn import metrics as sk
from torch import Tensor, nn

from cass_scale import checkpoint, records
from cass_scale.backends.engine import Engine
from cass_scale.console import Console
from cass_scale.encoders import ArmSpec
from cass_scale.errors import Preempted
from cass_scale.evaluation import finetune as module
from cass_scale.evaluation.finetune import Answers, Plateau, Recipe, finetune, validation
from cass_scale.ledger import Ledger, Todo, Trainee
from cass_scale.losses import cross_entropy
from cass_scale.meter import Meter
from cass_scale.methods.supervised import Supervised
from cass_scale.run import Run
from cass_scale.types import Batch, Crop, Progress, ViewSpec

SIZE = 4
RECIPE: dict[str, Any] = {
    "epochs": 6, "min_epochs": 0, "patience": None, "batch_size": 4, "optimizer": "adam", "lr": 0.05,
    "weight_decay": 0.0, "momentum": 0.0, "schedule": "cosine", "loss": "focal", "weighting": "none", "frozen": False,
}  # fmt: skip


class Body(nn.Module):
    """Stands for an encoder: BatchNorm, so that training mode shows, and the mean of each colour."""

    dim, spec = 3, ArmSpec("body", "random", optimizer="sgd")  # the recipe's optimizer is taken all the same

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.mix(self.norm(images)).mean(dim=(2, 3))


class Images:
    """A stream of one batch per epoch; the red of an image is its class."""

    provides = frozenset({"index", "label"})
    steps_per_epoch = 1

    def __init__(self, n: int = 12, *, multilabel: bool = False, wrong: bool = False) -> None:
        rng = torch.Generator().manual_seed(n)
        self.label = torch.arange(n) % 2
        self.images = torch.randint(0, 80, (n, 3, SIZE, SIZE), generator=rng, dtype=torch.uint8)
        self.images[:, 0] += (150 * (self.label if not wrong else 1 - self.label)).to(torch.uint8)[:, None, None]
        if multilabel:
            self.label = torch.stack([self.label, 1 - self.label], dim=1).float()
        self.batch_size = n

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        yield Batch(self.images, torch.arange(len(self.images)), label=self.label)

    def close(self) -> None: ...


def start(folder: Path) -> Run:
    if not (folder / records.RUN).exists():
        records.create(folder, {})
    return Run(folder, Meter(torch.device("cpu"), 1), Console(quiet=True))


def tune(folder: Path, *, streams: dict[str, Images] | None = None, body: Body | None = None, **changes: Any):
    torch.manual_seed(0)
    given = streams or {"train": Images(12), "val": Images(8), "test": Images(6)}
    return finetune(
        "cnn", body or Body(), given, torch.tensor([6, 6]), ViewSpec((Crop(SIZE),)), Accelerator(cpu=True),
        start(folder), Recipe(**(RECIPE | changes)), multilabel=given["train"].label.ndim == 2, seed=1,
    )  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [row["val/loss"] for row in records.read_metrics(folder / records.METRICS)[1:]]


@pytest.mark.parametrize("loss", ["focal", "cross_entropy"])
@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns_what_can_be_learnt(tmp_path: Path, loss: str, multilabel: bool) -> None:
    streams = {part: Images(n, multilabel=multilabel) for part, n in (("train", 16), ("val", 8), ("test", 6))}
    found = tune(tmp_path, streams=streams, loss=loss, epochs=30)
    expected = streams["test"].label if multilabel else nn.functional.one_hot(streams["test"].label)
    assert ((torch.tensor(found.probability) > 0.5) == (expected > 0)).all()
    sums = found.probability.sum(axis=1)
    assert (abs(sums - 1) < 1e-5).all() == (loss == "cross_entropy" and not multilabel), "sigmoids stay as they are"


def test_the_best_epoch_answers_and_not_the_last(tmp_path: Path) -> None:
    """Validation labels are turned round, so that every epoch makes its loss worse."""
    streams = {"train": Images(12), "val": Images(8, wrong=True), "test": Images(6)}
    found = tune(tmp_path, streams=streams, epochs=12, schedule="plateau")
    rows = losses(tmp_path)
    best = checkpoint.load(tmp_path / "checkpoints/best.pt")
    assert found.loss == best["score"] == min(rows) < rows[-1] and best["at"]["step"] == 1 + rows.index(min(rows))


@pytest.mark.parametrize(("patience", "least", "steps"), [(3, 0, 5), (3, 7, 7), (None, 0, 12)])
def test_training_ends_when_the_validation_loss_stops_falling(
    tmp_path: Path, patience: int | None, least: int, steps: int
) -> None:
    streams = {"train": Images(12), "val": Images(8, wrong=True), "test": Images(6)}
    tune(tmp_path, streams=streams, epochs=12, patience=patience, min_epochs=least)
    found = losses(tmp_path)
    assert found.index(min(found)) == 1 and len(found) == steps, "the second epoch is the best"
    assert records.read(tmp_path)["steps"] == steps


def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the learning rate's plateau and the patience are where they were."""
    changes: dict[str, Any] = {"epochs": 20, "patience": 9, "schedule": "plateau"}
    streams = {"train": Images(12), "val": Images(8, wrong=True), "test": Images(6)}
    whole = tune(tmp_path / "whole", streams=streams, **changes)
    asked = iter([False] * 7 + [True])
    monkeypatch.setattr(checkpoint.StopSignal, "asked", lambda self: next(asked))
    with pytest.raises(Preempted):
        tune(tmp_path / "killed", streams=streams, **changes)
    monkeypatch.undo()
    again = tune(tmp_path / "killed", streams=streams, **changes)
    assert again.loss == whole.loss and (again.probability == whole.probability).all()
    rates = [
        [row["lr"] for row in records.read_metrics(tmp_path / name / records.METRICS)[1:]]
        for name in ("whole", "killed")
    ]
    assert rates[0] == rates[1] and min(rates[0]) < max(rates[0]) and len(rates[0]) == 11


def test_a_frozen_encoder_does_not_move_at_all(tmp_path: Path) -> None:
    body = Body()
    before = {key: value.clone() for key, value in body.state_dict().items()}
    tune(tmp_path / "frozen", body=body, frozen=True)
    assert all(value.equal(before[key]) for key, value in body.state_dict().items()), "nor BatchNorm's statistics"
    tune(tmp_path / "free", body=body)
    assert not any(value.equal(before[key]) for key, value in body.state_dict().items() if "mix" in key)


def test_plateau_waits_five_epochs_and_then_takes_a_tenth() -> None:
    plateau = Plateau(1e-3, {})
    rates = []
    for loss in (3.0, 2.0, *[2.0] * 5, 2.5, 1.0, math.nan):
        rates.append(plateau.rate(Progress(0, 0, 0, 1)))
        plateau.see(loss)
    assert rates == pytest.approx([1e-3] * 8 + [1e-4] * 2)
    assert plateau.memory["waited"] == 1 and plateau.memory["lowest"] == 1.0


def test_plateau_is_torchs() -> None:
    losses = [3.0, 2.5, *[2.6] * 6, 2.4, *[2.5] * 7, 2.3]
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, factor=0.1, patience=5, threshold=0.0)
    ours = Plateau(1.0, {})
    for loss in losses:
        theirs.step(loss)
        ours.see(loss)
        assert ours.rate(Progress(0, 0, 0, 1)) == pytest.approx(sgd.param_groups[0]["lr"])


@pytest.mark.parametrize("multilabel", [False, True])
def test_validation_is_of_all_batches_together(multilabel: bool) -> None:
    stream = Images(13, multilabel=multilabel)

    def batches(epoch: int, start: int = 0) -> Iterator[Batch]:
        for rows in torch.arange(13).split(5):
            yield Batch(stream.images[rows], rows, label=stream.label[rows])

    answers = Answers(2, "focal", torch.ones(2), multilabel)
    torch.manual_seed(3)
    arms: dict[str, Any] = {"cnn": (Body(), nn.Linear(3, 2))}
    method = Supervised(arms, answers.loss).train()
    whole = validation(method, stream, Accelerator(cpu=True), answers)
    stream.epoch = batches  # type: ignore[method-assign]
    found = validation(method, stream, Accelerator(cpu=True), answers)
    assert found == pytest.approx(whole) and method.training
    with torch.no_grad():
        said = method.eval().outputs([stream.images.float() / 255])["cnn"].outputs.sigmoid()
    guess = said > 0.5 if multilabel else said.argmax(dim=1)
    assert found["val/macro_f1"] == pytest.approx(sk.f1_score(stream.label, guess, average="macro", zero_division=0))


def test_images_of_16_bits_are_answered_as_those_of_8() -> None:
    eight, sixteen = Images(6), Images(6)
    sixteen.images = (eight.images.int() * 257).to(torch.uint16)
    arms: dict[str, Any] = {"cnn": (Body(), nn.Linear(3, 2))}
    method = Supervised(arms, nn.functional.cross_entropy)
    logits = [module.logits_of(method, images, Accelerator(cpu=True))[0][0] for images in (eight, sixteen)]
    torch.testing.assert_close(*logits)


def test_a_single_class_has_a_loss_and_nothing_else() -> None:
    assert len(module.online_scores(1, multilabel=False)) == len(module.online_scores(1, multilabel=True)) == 0


def test_patience_counts_from_the_best_step(tmp_path: Path) -> None:
    method, optimizer = nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    trainee = Trainee(Engine(method, optimizer, Accelerator(cpu=True)), None, {}, best_step=10)  # type: ignore[arg-type]
    todo = Todo(epochs=9, batch_size=1, seed=0, patience=5, min_steps=20)
    ledger = Ledger(trainee, todo, start(tmp_path), None, 90)
    assert [ledger.out_of_patience(Progress(0, step, step, 90)) for step in (14, 15, 20)] == [False, False, True]


def test_cross_entropy_of_exclusive_classes_and_of_several_labels() -> None:
    logits, weight = torch.randn(5, 3), torch.tensor([1.0, 2.0, 3.0])
    labels = torch.tensor([0, 1, 2, 2, 0])
    hot = nn.functional.one_hot(labels).float()
    each = nn.functional.cross_entropy(logits, labels, reduction="none") * weight[labels]
    torch.testing.assert_close(cross_entropy(logits, hot, exclusive=True, weight=weight), each.mean())
    many = nn.functional.binary_cross_entropy_with_logits(logits, hot)
    torch.testing.assert_close(cross_entropy(logits, hot, exclusive=False), many)
