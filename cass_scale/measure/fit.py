"""The largest batch that fits into a memory: by trial on CUDA, by counting on a CPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch

from cass_scale.cli import compose_config
from cass_scale.measure.step import Stepper, counted, finish
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
    config = compose_config("pretrain", job["words"])
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


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
