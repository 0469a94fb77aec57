"""Training with labels, end to end or of a head alone: a supervised method on the one loop, answering at its best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cass_scale import checkpoint, optim
from cass_scale.colour import to_unit
from cass_scale.encoders import Encoder
from cass_scale.ledger import Todo
from cass_scale.losses.entropy import cross_entropy
from cass_scale.losses.focal import Weighting, class_weights, focal
from cass_scale.methods.supervised import Supervised, one_hot
from cass_scale.run import Run
from cass_scale.schedule import Rates, make_schedule
from cass_scale.train import train
from cass_scale.types import JSON, Progress, Stream, ViewSpec

if TYPE_CHECKING:
    from accelerate import Accelerator

PLATEAU_PATIENCE, PLATEAU_FACTOR = 5, 0.1  # arXiv 2108.10048, appendix B.1


@dataclass(frozen=True)
class Recipe:
    """How to train with labels; the leaves of configs/protocol say which paper does so."""

    epochs: int  # at most
    min_epochs: int
    patience: int | None  # epochs without a lower validation loss after which training ends
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    momentum: float  # of sgd
    schedule: Literal["cosine", "plateau"]  # plateau: a tenth whenever PLATEAU_PATIENCE epochs bring nothing
    loss: Literal["focal", "cross_entropy"]  # focal: gamma 2, a sigmoid per class
    weighting: Weighting
    frozen: bool  # the head alone is trained


class Trained(NamedTuple):
    """What the best epoch says of the test images [N, C], and its validation loss."""

    probability: NDArray[np.float32]
    loss: float


class Plateau:
    """A learning rate that falls when the validation loss does not; what it remembers lies in the checkpoint."""

    def __init__(self, lr: float, memory: JSON) -> None:
        self.lr, self.memory = lr, memory
        memory.update({"scale": 1.0, "lowest": None, "waited": 0})

    def rate(self, at: Progress) -> float:
        """The learning rate now."""
        return self.lr * float(self.memory["scale"])

    def see(self, loss: float) -> None:
        """Take in one epoch's validation loss."""
        memory = self.memory
        if memory["lowest"] is None or loss < memory["lowest"]:
            memory["lowest"], memory["waited"] = loss, 0
            return
        memory["waited"] += 1
        if memory["waited"] > PLATEAU_PATIENCE:
            memory["scale"], memory["waited"] = memory["scale"] * PLATEAU_FACTOR, 0


def finetune(
    name: str,
    encoder: Encoder,
    streams: dict[str, Stream],
    counts: Tensor,
    views: ViewSpec,
    accelerator: Accelerator,
    run: Run,
    recipe: Recipe,
    *,
    multilabel: bool,
    seed: int,
) -> Trained:
    """Train on streams["train"], keep the epoch with the lowest loss on streams["val"], answer streams["test"].

    counts: training images per class [C].
    """
    weight = class_weights(counts, recipe.weighting).to(accelerator.device)
    torch.manual_seed(seed)  # the head's first weights; then dropout and stochastic depth draw from it
    answers = Answers(len(counts), recipe.loss, weight, multilabel)
    arms = {name: (encoder, nn.Linear(encoder.dim, len(counts)))}
    method = Supervised(arms, answers.loss, frozen=recipe.frozen).to(accelerator.device)
    optimizer = make_optimizer(method, recipe)
    memory: JSON = {}
    plateau = Plateau(recipe.lr, memory) if recipe.schedule == "plateau" else None
    todo = make_todo(recipe, streams["train"], seed)
    cosine = make_schedule("cosine", batch_size=todo.batch_size, floor=0.0)

    def validate(at: Progress) -> dict[str, float]:
        row = validation(method, streams["val"], accelerator, answers)
        if plateau and at.step:
            plateau.see(row["val/loss"])
        return row

    def rates(at: Progress) -> Rates:
        return Rates(plateau.rate(at) if plateau else cosine(at, recipe.lr), recipe.weight_decay)

    train(
        method, streams["train"], optimizer, rates, views, accelerator, todo, run, observe=validate, memory=memory
    )  # fmt: skip
    best = checkpoint.load(run.checkpoints.folder / "best.pt")
    method.load_state_dict(best["model"])
    said = [answers.probability(logits) for logits, _ in logits_of(method, streams["test"], accelerator)]
    return Trained(torch.cat(said).cpu().numpy(), float(best["score"]))


def make_optimizer(method: Supervised, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's, whatever the arm was pretrained by."""
    groups = [group | {"algorithm": None} for group in method.param_groups()]
    return optim.build(
        groups, name=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum,
        fused=True,
    )  # fmt: skip


def make_todo(recipe: Recipe, stream: Stream, seed: int) -> Todo:
    """One look, one log row and one checkpoint per epoch."""
    steps = stream.steps_per_epoch
    return Todo(
        epochs=recipe.epochs, batch_size=stream.batch_size, seed=seed, log_every=steps, observe_every=steps,
        save_every=steps, best="val/loss", lowest=True, min_steps=recipe.min_epochs * steps,
        patience=None if recipe.patience is None else recipe.patience * steps,
    )  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """What logits [B, C] mean: their loss and their probabilities."""

    classes: int
    kind: Literal["focal", "cross_entropy"]
    weight: Tensor
    multilabel: bool

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of targets 0/1, float [B, C]."""
        if self.kind == "focal":
            return focal(logits, targets, weight=self.weight)
        return cross_entropy(logits, targets, exclusive=not self.multilabel, weight=self.weight)

    def probability(self, logits: Tensor) -> Tensor:
        """Sigmoids as they are where the loss takes classes one by one, else a softmax: float32 [B, C]."""
        exclusive = self.kind == "cross_entropy" and not self.multilabel
        return logits.double().softmax(dim=1).float() if exclusive else logits.double().sigmoid().float()


def validation(method: Supervised, stream: Stream, accelerator: Accelerator, answers: Answers) -> dict[str, float]:
    """The mean loss, and scores gathered batch by batch by torchmetrics; what is reported is scored by metrics.py."""
    online = online_scores(answers.classes, multilabel=answers.multilabel).to(accelerator.device)
    total, images = torch.zeros((), device=accelerator.device), 0
    for logits, labels in logits_of(method, stream, accelerator):
        total += answers.loss(logits, one_hot(labels, answers.classes)) * len(logits)
        images += len(logits)
        online.update(answers.probability(logits), labels.long())
    scores = {name: float(value) for name, value in online.compute().items()} if len(online) else {}
    return {f"val/{name}": value for name, value in ({"loss": float(total) / images} | scores).items()}


def online_scores(classes: int, *, multilabel: bool) -> Any:
    """A torchmetrics collection; empty for a single class, which it does not take."""
    from torchmetrics import MetricCollection  # takes seconds: only those who train wait for it
    from torchmetrics.classification import (
        MulticlassAccuracy,
        MulticlassF1Score,
        MulticlassRecall,
        MultilabelF1Score,
    )

    if classes < 2:
        return MetricCollection({})
    if multilabel:
        return MetricCollection({f"{how}_f1": MultilabelF1Score(classes, average=how) for how in ("macro", "micro")})
    return MetricCollection({
        "macro_f1": MulticlassF1Score(classes, average="macro"),
        "balanced_accuracy": MulticlassRecall(classes, average="macro"),
        "accuracy": MulticlassAccuracy(classes, average="micro"),
    })  # fmt: skip


def logits_of(method: Supervised, stream: Stream, accelerator: Accelerator) -> list[tuple[Tensor, Tensor]]:
    """Logits float32 [B, C] and labels of every batch, in the stream's order, in eval mode; the mode is restored."""
    was, found = method.training, []
    method.eval()
    with torch.inference_mode():
        for batch in stream.epoch(0):
            if batch.label is None:
                raise ValueError("evaluation needs a stream with labels")
            with accelerator.autocast():
                (arm,) = method.outputs([to_unit(batch.images)]).values()
            found.append((arm.outputs.float(), batch.label))
    method.train(was)
    return found
