"""The largest batch that fits into a memory: by trial on CUDA, by counting on a CPU; the error when one does not."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable

import torch

from cass_scale import dist
from cass_scale.errors import TooLarge
from cass_scale.measure.costs import counted
from cass_scale.measure.step import Stepper, finish
from cass_scale.measure.turns import answer
from cass_scale.types import JSON
from cass_scale.verbs import wire

MOST = 8192
SMALLEST = 2  # BatchNorm needs two


def largest(fits: Callable[[int], bool]) -> int:
    """The largest size, to within a sixteenth, that fits; 0 when not even SMALLEST does."""
    low, high = 0, SMALLEST
    while high <= MOST and fits(high):
        low, high = high, 2 * high
    while low and high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def child(job: JSON) -> JSON:
    """The largest batch of a configuration in `memory` bytes, and how that was found."""
    config = job["config"]
    if wire.choose_device(config["train"]["device"]).type == "cuda":
        return {"batch": _by_trial(config, job["memory"]), "how": "by trial"}
    return {"batch": _by_count(config, job["memory"]), "how": "counted"}


def _by_count(config: JSON, memory: int) -> int:
    eight, sixteen = (counted(config, n).memory_bytes for n in (8, 16))  # it grows linearly
    return max(0, 8 + (memory - eight) * 8 // (sixteen - eight))


def _by_trial(config: JSON, memory: int) -> int:
    stepper = Stepper(config)
    whole = torch.cuda.get_device_properties(stepper.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory / whole), stepper.device)

    def fits(number: int) -> bool:
        try:
            for _ in range(2):  # the optimizer's state comes with the first step
                stepper(stepper.images(number))
            finish(stepper.device)
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            stepper.engine.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        return True

    return largest(fits)


def too_large(config: JSON) -> TooLarge:
    """The error for a run whose batch its device could not hold, once nothing of the run is alive."""
    train = config["train"]
    batch, parts = train["batch_size"], train["accumulate"]
    said = f"train.batch_size={batch}: the device has too little memory"
    if dist.world() > 1:
        return TooLarge(f"{said} for its share; `cass-scale bench name=step` finds the largest on one device")
    found = trial(config)
    if "error" in found:
        return TooLarge(f"{said}; take a smaller one (the trial for the largest failed: {found['error']})")
    largest = found["batch"] * parts
    if not largest:
        return TooLarge(f"{said}, also for {SMALLEST} images: take smaller arms, or a smaller arms.image_size")
    if largest >= batch:
        return TooLarge(f"{said}; now up to {largest} fit, so something else was in it: run the same command again")
    return TooLarge(
        f"{said}; the largest that fits, found by trial, is {largest}. In another run.dir: train.batch_size={largest}"
        f"{_split(batch, found['batch'])}, or train.recompute=true"
    )


def _split(batch: int, fits: int) -> str:
    """The same batch in micro-batches that fit, as words for the message; '' where no number of them divides it."""
    parts = next((n for n in range(2, batch // SMALLEST + 1) if batch % n == 0 and batch // n <= fits), None)
    return f", or train.accumulate={parts}" if parts else ""


def trial(config: JSON) -> JSON:
    """What `child` finds in all of the device's memory that this process may take, in a process of its own."""
    gc.collect()
    memory = 0
    if torch.cuda.is_available():
        device = wire.choose_device(config["train"]["device"])
        torch.cuda.empty_cache()
        share = torch.cuda.get_per_process_memory_fraction(device)
        memory = int(share * torch.cuda.get_device_properties(device).total_memory)
    return answer([__name__, json.dumps({"config": config, "memory": memory})])


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
