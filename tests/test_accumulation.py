"""Four micro-batches of 8 are one batch of 32, where no layer and no loss looks at other images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cass_scale import records
from tests.short_runs import short

WORDS = (
    "data.images=70",
    "train.batch_size=32", "optim.name=sgd", "optim.lr=0.01", "train.save_every=1", "train.max_steps=2",
    "train.count_flops=false", "monitor.every=9", "arms.vit.args.drop_path_rate=0",
)  # fmt: skip
KINDS = {
    "cass": ("arms.cnn.model=convnext_atto", "method.noise_rule=false"),
    "dino_small": (
        "arm=vit", "arms.global_size=32", "arms.local_size=16", "method.head.hidden=32", "method.head.prototypes=32",
        "method.head.batchnorm=false",
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", KINDS)
def test_accumulated_micro_batches_equal_one_batch(method: str, tmp_path: Path) -> None:
    found = {}
    for parts in (1, 4):
        run = tmp_path / str(parts)
        short(run, f"method={method}", *WORDS, *KINDS[method], f"train.accumulate={parts}")
        found[parts] = [
            torch.cat([x.double().flatten() for x in torch.load(file, weights_only=True)["model"].values()])
            for file in sorted((run / "checkpoints").glob("step_*.pt"))
        ]
        found[f"{parts} loss"] = [row["loss"] for row in records.read_metrics(run / records.METRICS) if "loss" in row]
    assert found["1 loss"] == pytest.approx(found["4 loss"], rel=1e-5)
    gone = (found[1][1] - found[1][0]).norm()
    assert gone > 0 and (found[1][1] - found[4][1]).norm() < 1e-3 * gone
