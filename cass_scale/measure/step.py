"""`cass-scale bench name=step`: one training step as the loop does it, over batch sizes and what makes it faster."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from cass_scale import precision
from cass_scale.cli import build, compose_config
from cass_scale.estimate import Estimate
from cass_scale.evidence import Finding
from cass_scale.ledger import Todo
from cass_scale.machine import cpu_name
from cass_scale.measure import peaks
from cass_scale.measure.energy import Energy
from cass_scale.measure.steps_table import as_csv, table
from cass_scale.measure.turns import in_turns
from cass_scale.meter import Meter, peak_memory
from cass_scale.train import update
from cass_scale.types import JSON, Batch, Progress
from cass_scale.verbs import settings, wire
from cass_scale.verbs.wire import Build

FIT = "cass_scale.measure.fit"
QUESTION = "Step: one training step over batch sizes and what makes it faster"


def run(config: JSON, build: Build, say: Callable[[str], None]) -> Finding:
    """Every batch size with the first variant, every variant with the first batch size; in turns."""
    options = config["bench"]
    sizes, variants = options["batch_sizes"], dict(options["variants"])
    for name in options["cuda_only"] if not torch.cuda.is_available() else ():
        variants.pop(name, None)
    first, *others = variants
    pairs = [(first, size) for size in sizes] + [(name, sizes[0]) for name in others]
    common, sides = [f"arms={options['arms']}", f"method={options['method']}", *options["words"]], {}
    for name, size in pairs:
        job: JSON = {"words": [*common, f"train.batch_size={size}", *variants[name]]}
        job |= {key: options[key] for key in ("steps", "warmup", "seconds")}
        sides[f"{name}/{size}"] = [__name__, json.dumps(job)]
    figures = {"peaks": measured_peaks(say), "sides": in_turns(sides, options["turns"], say)}
    if options["memory_gib"]:
        memory = int(options["memory_gib"] * 2**30)
        words = {name: [*common, *variants[name]] for name in (first, *options["fit"])}
        jobs = {name: [FIT, json.dumps({"words": own, "memory": memory})] for name, own in words.items()}
        figures["fit"] = {"memory_gib": options["memory_gib"], "sides": in_turns(jobs, 1, say)}
    return Finding(QUESTION, table(figures), figures, {"step.csv": as_csv(figures)})


def measured_peaks(say: Callable[[str], None]) -> JSON:
    """Of this device: name, datasheet, FLOP/s of matrix products per precision, and bytes/s of a copy."""
    device = wire.choose_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    dtypes |= {"fp16": torch.float16} if device.type == "cuda" else {}
    card = peaks.datasheet(name)
    found: JSON = {
        "name": name,
        "source": card.source if card else None,
        "datasheet": {key: peaks.peak(name, key) for key in ("fp32", "tf32", "fp16", "bf16")},
        "matrix_product": {key: peaks.matrix_product(device, dtype) for key, dtype in dtypes.items()},
        "copy": peaks.copying(device),
    }
    products = ", ".join(f"{key} {value / 1e12:.2f}" for key, value in found["matrix_product"].items())
    say(f"{name}: matrix products {products} TFLOP/s, copy {found['copy'] / 1e9:.0f} GB/s")
    return found


@dataclass
class Stepper:
    """One configuration, ready to step again and again on images that lie on the device."""

    config: JSON

    def __post_init__(self) -> None:
        train = self.config["train"]
        self.device = wire.choose_device(train["device"])
        resolved = precision.resolve(train["precision"], self.device)
        self.place = wire.open_place(self.device, resolved, project=Path("."), trackers=[])
        self.method = wire.make_method(self.config, build, settings.arm_specs(self.config))
        optimizer = wire.make_optimizer(self.method, self.config["optim"], self.device)
        self.model, self.optimizer = self.place.accelerator.prepare(self.method, optimizer)
        self.model.train()
        self.parameters = sum(p.numel() for p in self.method.parameters())
        self.views, self.meter = build(self.config["views"]), Meter(self.device)
        self.at = Progress(0, 0, 0, 10**9)

    def __call__(self, images: torch.Tensor) -> None:
        """The loop's own update on images uint8 [B, 3, S, S]."""
        index, train = torch.arange(len(images), device=images.device), self.config["train"]
        batch = Batch(images, index, label=torch.zeros_like(index))
        todo = Todo(epochs=1, batch_size=len(images), seed=0, clip=train["clip"], clip_each=train["clip_each"])
        update(self.model, self.optimizer, iter([batch]), self.views, self.at, self.place.accelerator, todo, self.meter)
        self.at = Progress(0, self.at.step + 1, self.at.samples + len(images), self.at.total_samples)
        self.method.after_step(self.at)
        self.meter.settle()

    def images(self, number: int) -> torch.Tensor:
        """Random ones, on the device."""
        side = self.config["arms"]["image_size"]
        return torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8, device=self.device)


def child(job: JSON) -> JSON:
    """Seconds of each step after the warm-up, with what they take."""
    config = compose_config("pretrain", job["words"])
    stepper = Stepper(config)
    images = stepper.images(config["train"]["batch_size"])
    begun = time.perf_counter()
    for _ in range(job["warmup"]):
        stepper(images)
    finish(stepper.device)
    warm = time.perf_counter() - begun
    with Energy(stepper.device) as energy:
        times = timed(lambda: stepper(images), stepper.device, job["steps"], job["seconds"])
    return {
        "times": times,
        "warmup": warm,
        "batch": len(images),
        "precision": stepper.place.precision.name,
        "joules": energy.joules,
        "peak_memory": peak_memory(stepper.device),
        "parameters": stepper.parameters,
        "flops_per_image": counted(config, len(images)).flops_per_image,
        "image_size": config["arms"]["image_size"],
        "models": [spec.model for spec in settings.arm_specs(config).values()],
    }


def timed(work: Callable[[], None], device: torch.device, steps: int, seconds: float) -> list[float]:
    """Seconds of each of `steps` calls, at least 3 and otherwise no longer than `seconds`; on CUDA by events."""
    begun, marks = time.perf_counter(), [_mark(device)]
    while len(marks) <= steps and (len(marks) <= 3 or time.perf_counter() - begun < seconds):
        work()
        marks.append(_mark(device))
    finish(device)
    return [a.elapsed_time(b) / 1000 if device.type == "cuda" else b - a for a, b in pairwise(marks)]


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def finish(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def counted(config: JSON, batch: int) -> Estimate:
    """FLOPs and memory of the whole step, on the meta device."""
    device = wire.choose_device(config["train"]["device"])
    width = 2 if precision.resolve(config["train"]["precision"], device).autocast_dtype else 4
    return wire.cost(config, build, settings.arm_specs(config), batch, width)


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
