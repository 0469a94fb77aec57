"""End-to-end fine-tuning: a supervised method on the one loop, scored at its best validation epoch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cass_scale import checkpoint, optim
from cass_scale.colour import to_unit
from cass_scale.encoders import Encoder
from cass_scale.evaluation.metrics import scores
from cass_scale.ledger import Todo
from cass_scale.losses.focal import class_weights, focal
from cass_scale.methods.supervised import Supervised
from cass_scale.run import Run
from cass_scale.schedule import Rates, make_schedule
from cass_scale.train import train
from cass_scale.types import Batch, Progress, Stream, ViewSpec

if TYPE_CHECKING:
    from accelerate import Accelerator


def finetune(
    name: str,
    encoder: Encoder,
    streams: dict[str, Stream],
    classes: tuple[str, ...],
    counts: Tensor,
    views: ViewSpec,
    accelerator: Accelerator,
    todo: Todo,
    run: Run,
    *,
    lr: float,
    weighting: Any,
) -> NDArray[np.float64]:
    """Train encoder and head on streams["train"], keep the best of streams["val"]; probabilities [N, C] on "test".

    Adam, one cosine, focal loss with gamma 2 (CASS, section 4.2 and appendix C.6). counts: images per class [C].
    """
    weight = class_weights(counts, weighting).to(accelerator.device)
    torch.manual_seed(todo.seed)  # the head's first weights; then dropout and stochastic depth draw from it
    method = Supervised({name: (encoder, nn.Linear(encoder.dim, len(classes)))}, partial(focal, weight=weight))
    method.to(accelerator.device)
    groups = [group | {"algorithm": "adam"} for group in method.param_groups()]  # whatever the arm was pretrained by
    optimizer = optim.build(groups, name="adam", lr=lr, weight_decay=0.0, momentum=0.0, fused=True)
    rate = make_schedule("cosine", batch_size=todo.batch_size, floor=0.0)

    def validate(at: Progress) -> dict[str, float | None]:
        truth, probability = predict(method, streams["val"], accelerator)
        found = scores(truth, probability, classes=classes, multilabel=truth.ndim == 2)
        return {f"val/{key}": value for key, value in found.items()}

    train(
        method,
        streams["train"],
        optimizer,
        lambda at: Rates(rate(at, lr), weight_decay=0.0),
        views,
        accelerator,
        todo,
        run,
        observe=validate,
    )
    method.load_state_dict(checkpoint.load(run.checkpoints.folder / "best.pt")["model"])
    return predict(method, streams["test"], accelerator)[1]


def predict(method: Supervised, stream: Stream, accelerator: Accelerator) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Labels, and probabilities [N, C]: sigmoids, for single labels scaled to sum to one. The mode is restored."""
    was = method.training
    method.eval()
    labels, outputs = [], []
    with torch.inference_mode():
        for batch in stream.epoch(0):
            labels.append(_label(batch).cpu())
            with accelerator.autocast():
                (arm,) = method.outputs([to_unit(batch.images)]).values()
            outputs.append(arm.outputs.float().cpu())
    method.train(was)
    truth, probability = torch.cat(labels).numpy(), torch.cat(outputs).double().sigmoid()
    if truth.ndim == 1:
        probability = probability / probability.sum(dim=1, keepdim=True)
    return truth, probability.numpy()


def _label(batch: Batch) -> Tensor:
    if batch.label is None:
        raise ValueError("evaluation needs a stream with labels")
    return batch.label
