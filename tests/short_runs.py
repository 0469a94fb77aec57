"""Runs of some steps on small images, for tests of what a run leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from cass_scale import pretrain

WORDS = (
    "data.images=21", "data.scale=0.2", "arms.image_size=32", "train.batch_size=4", "train.max_steps=3",
    "train.log_every=1", "train.device=cpu", "train.precision=fp32", "stream.workers=0", "monitor.images=8",
    "monitor.every=2",
)  # fmt: skip

TWO_STEPS = (  # where the images are what matters
    "method=cass_contrast", "arms.image_size=32", "train.batch_size=4", "train.max_steps=2", "monitor.images=4",
    "train.device=cpu", "train.precision=fp32", "stream.workers=0", "monitor.every=2",
)  # fmt: skip


def short(run: Path, *words: str) -> dict[str, Any]:
    chosen = {word.split("=")[0]: word for word in [*WORDS, *words]}
    if any(word.startswith("data.path=") for word in words):
        chosen.pop("data.images"), chosen.pop("data.scale")
    return pretrain(*chosen.values(), f"run.dir={run}", quiet=True)


def pictures(folder: Path, number: int) -> Path:
    folder.mkdir()
    for i in range(number):
        Image.effect_noise((40, 40), 40 + i).convert("RGB").save(folder / f"{i}.png")
    return folder
