"""What two ranks send and become under several settings of the exchange; `torchrun -m tests.exchanging_ranks OUT`."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs
from torch import distributed as td

from cass_scale import dist
from cass_scale.cli import compose_config
from cass_scale.measure.step import Stepper
from cass_scale.measure.traffic import Traffic
from cass_scale.verbs import exchange

SMALL = (
    "arms=tiny", "arms.image_size=32", "arms.vit.args.depth=1", "train.device=cpu", "train.precision=fp32",
    "train.batch_size=8",
)  # fmt: skip
CONTRAST = "method=cass_contrast"
DINO = ("method=dino", "arm=vit", "arms.global_size=32", "arms.local_size=16", "method.head.prototypes=16")
SETTINGS: dict[str, tuple[str, ...]] = {
    "plain": (CONTRAST,),  # torch's own settings
    "fp32": (CONTRAST,),
    "bf16": (CONTRAST, "train.comm=bf16"),
    "buckets": (CONTRAST, "train.bucket_mb=1"),
    "accumulate": (CONTRAST, "train.accumulate=2"),
    "recompute": (CONTRAST, "train.recompute=true"),
    "dino": DINO,
}


def tried(name: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Three steps; what the last one sent, and the weights after it."""
    ours = exchange.gradients
    if name == "plain":
        exchange.gradients = lambda train: DistributedDataParallelKwargs()
    stepper = Stepper(compose_config("pretrain", [*SMALL, *words]))
    exchange.gradients = ours
    torch.manual_seed(dist.rank())
    for _ in range(3):
        images = stepper.images(4)
        with Traffic() as traffic:
            stepper(images)
    weights = torch.cat([p.detach().flatten() for p in stepper.method.parameters()])
    return {
        "static": bool(stepper.engine.model.static_graph),
        "trained": sum(p.numel() for p in stepper.method.parameters() if p.requires_grad),
        "sent": traffic.sent,
        "operations": traffic.operations,
        "weights": dist.of_all_ranks(hashlib.sha256(weights.numpy().tobytes()).hexdigest()),
        "norm": weights.double().norm().item(),
    }


if __name__ == "__main__":
    found = {name: tried(name, words) for name, words in SETTINGS.items()}
    if dist.rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    td.destroy_process_group()
