"""How fast this machine is at what a run does: a training step of a network, and reading a JPEG."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from PIL import Image

from cass_scale.precision import Resolved

MOST_STEPS, MOST_IMAGES = 20, 500


def step_speed(
    network: str,
    args: Mapping[str, Any],
    resolved: Resolved,
    device: torch.device,
    batch: int,
    seconds: float,
) -> tuple[float, float]:
    """Images/s of forward and backward at 96 px with random weights, and the last loss."""
    model = timm.create_model(network, pretrained=False, **args).to(device)
    images = torch.rand(batch, 3, 96, 96, device=device)
    loss = torch.zeros((), device=device)

    def step() -> None:
        nonlocal loss
        with torch.autocast(device.type, resolved.autocast_dtype, enabled=resolved.autocast_dtype is not None):
            loss = model(images).float().square().mean()
        loss.backward()
        model.zero_grad()

    step()  # allocates memory and picks kernels
    loss.item()
    speed = _rate(step, lambda: loss.item(), MOST_STEPS, seconds)
    return batch * speed, float(loss.item())


def decode_speed(seconds: float) -> float:
    """Images/s of decoding a generated JPEG of 500 x 400 pixels in one thread."""
    file = io.BytesIO()
    Image.effect_noise((125, 100), 60).resize((500, 400)).convert("RGB").save(file, "JPEG", quality=90)

    def decode() -> None:
        with Image.open(io.BytesIO(file.getvalue())) as image:
            image.load()

    return _rate(decode, lambda: None, MOST_IMAGES, seconds)


def _rate(work: Callable[[], object], finish: Callable[[], object], most: int, seconds: float) -> float:
    """Calls per second over at most `most` calls and about `seconds`; `finish` waits for the device."""
    count, start = 0, time.perf_counter()
    while count == 0 or (count < most and time.perf_counter() - start < seconds):
        work()
        count += 1
    finish()
    return count / (time.perf_counter() - start)
