"""What the sides of a benchmark take: their FLOPs, counted, and for `--dry-run` seconds at the rate of this device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch

from cass_scale import hardware
from cass_scale.cli import build
from cass_scale.console import Console
from cass_scale.estimate import Estimate
from cass_scale.measure.peaks import matrix_product
from cass_scale.types import JSON
from cass_scale.verbs import settings, wire

COLUMNS = ("side", "method", "batch", "GFLOP per image", "seconds at least")


def show(configs: Mapping[str, JSON], wrong: Mapping[str, str], options: JSON, console: Console) -> JSON:
    """Print FLOPs per image and seconds of every side, and return them; `wrong`: why a side cannot run here.

    Seconds are a lower bound: the warm-up and the steps of all turns without what it takes to begin, as often as
    `bench.seconds` lets them.
    """
    product = cache(matrix_product)
    found: JSON = {}
    for name, config in configs.items():
        if name not in wrong:
            train = config["train"]
            device = wire.choose_device(train["device"])
            kind = hardware.resolve(hardware.read(config["hardware"]), train["precision"], device).autocast_dtype
            flops = counted(config, train["batch_size"]).flops_per_image
            step = flops * train["batch_size"] / product(device, kind or torch.float32)
            found[name] = {"flops_per_image": flops, "seconds": seconds(step, options)}
    rows = [_row(name, config, found.get(name), wrong.get(name, "")) for name, config in configs.items()]
    console.table(COLUMNS, rows)
    whole = sum(one["seconds"] for one in found.values())
    console.say(f"{len(found)} of {len(configs)} sides can run here: {whole:.3g} s of steps at least")
    return found


def seconds(step: float, options: JSON) -> float:
    """Of all turns of a side whose step takes `step` seconds."""
    timed = min(options["steps"] * step, max(3 * step, options["seconds"]))
    return float(options["turns"] * (options["warmup"] * step + timed))


def _row(name: str, config: JSON, cost: JSON | None, wrong: str) -> list[str]:
    about = [name, config["method"]["name"], str(config["train"]["batch_size"])]
    return [*about, f"{cost['flops_per_image'] / 1e9:.4g}", f"{cost['seconds']:.3g}"] if cost else [*about, wrong, ""]


def counted(config: JSON, batch: int) -> Estimate:
    """FLOPs and memory of the whole step, on the meta device."""
    device, limits = wire.choose_device(config["train"]["device"]), hardware.read(config["hardware"])
    width = 2 if hardware.resolve(limits, config["train"]["precision"], device).autocast_dtype else 4
    return wire.cost(config, build, settings.arm_specs(config), batch, width)
