"""`cass-scale bench name=step`: one training step as the loop does it, over batch sizes and what makes it faster."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise, repeat
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cass_scale import hardware, rng
from cass_scale.backends.engine import Engine
from cass_scale.cli import build
from cass_scale.console import Console
from cass_scale.data.manifest import Manifest
from cass_scale.data.pixels import fits
from cass_scale.data.plan import Plan
from cass_scale.evidence import Finding
from cass_scale.machine import cpu_name
from cass_scale.measure import costs, peaks, variants
from cass_scale.measure.costs import counted
from cass_scale.measure.energy import Energy
from cass_scale.measure.steps_table import OVER, as_csv, predictions, table
from cass_scale.measure.turns import end_of, in_turns
from cass_scale.meter import Meter, peak_memory
from cass_scale.train import update
from cass_scale.types import JSON, Batch, Progress, Stream
from cass_scale.verbs import emulation, exchange, settings, wire
from cass_scale.verbs.pretrain import make_todo
from cass_scale.verbs.wire import Build, without

FIT = "cass_scale.measure.fit"
QUESTION = "Step: one training step over batch sizes and what makes it faster"
SPANS = ("data", "views", "step", "after")  # of the meter; after: the method's own work after a step, a teacher's mean


def run(config: JSON, build: Build, say: Callable[[str], None]) -> Finding:
    """Every batch size with the first variant, every variant with the first batch size; in turns."""
    options, limits = config["bench"], hardware.read(config["hardware"])
    until = end_of(options["limit"])
    sides = variants.compose(config, build)
    jobs = {
        name: side(one, options, **({"images": options["images"]} if OVER in name else {}))
        for name, one in sides.configs.items()
        if name not in sides.wrong
    }
    peak, timed = measured_peaks(say), in_turns(jobs, options["turns"], say, until=until)
    wrong = {name: [{"error": why}] for name, why in sides.wrong.items()}
    figures = {"peaks": peak, "sides": {name: (timed | wrong)[name] for name in sides.configs}}
    if options["memory_gib"]:
        gib = min(options["memory_gib"], limits.memory / 2**30) if limits else options["memory_gib"]
        fits = {name: [FIT, json.dumps({"config": one, "memory": int(gib * 2**30)})] for name, one in sides.fit.items()}
        figures["fit"] = {"memory_gib": gib, "sides": in_turns(fits, 1, say, until=until)}
    if limits:
        rows, plain = predictions(limits, figures), next(iter(sides.configs.values()))
        figures["predicted"] = {"card": limits.card, "differs": emulation.differs(plain), "rows": rows}
    return Finding(QUESTION, table(figures), figures, {"step.csv": as_csv(figures)})


def dry_run(config: JSON, build: Build, console: Console) -> JSON:
    """Check everything that `run` checks, and show what each side would take; starts nothing."""
    sides = variants.compose(config, build)
    return costs.show(sides.configs, sides.wrong, config["bench"], console)


def side(config: JSON, options: JSON, **more: Any) -> list[str]:
    """What follows `python -m` to time steps of `config`; `images` of its own data where that is given."""
    return [__name__, json.dumps({"config": config, **{k: options[k] for k in ("steps", "warmup", "seconds")}, **more})]


def measured_peaks(say: Callable[[str], None]) -> JSON:
    """Of this device: name, datasheet, FLOP/s of matrix products per precision, and bytes/s of a copy."""
    device = wire.choose_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    card = peaks.datasheet(name)
    found: JSON = {
        "name": name,
        "source": card.source if card else None,
        "datasheet": {key: peaks.peak(name, key) for key in ("fp32", "tf32", "fp16", "bf16")},
        "matrix_product": peaks.matrix_products(device),
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
        limits, handlers = hardware.read(self.config["hardware"]), [exchange.gradients(train)]
        resolved = hardware.resolve(limits, train["precision"], self.device)
        self.place = wire.open_place(
            self.device, resolved, project=Path("."), trackers=[], handlers=handlers, limits=limits
        )
        self.method = wire.make_method(self.config, build, settings.arm_specs(self.config))
        optimizer = wire.make_optimizer(self.method, self.config["optim"], self.device)
        self.engine = Engine(self.method, optimizer, self.place.accelerator)
        self.method.train()
        self.parameters = sum(p.numel() for p in self.method.parameters())
        self.views, self.meter = build(self.config["views"]), Meter(self.device)
        self.todo, self.at = make_todo(self.config), Progress(0, 0, 0, 10**9)

    def __call__(self, batches: Iterator[Batch]) -> None:
        """The loop's own update on the next of `batches`."""
        update(self.engine, batches, self.views, self.at, self.todo, self.meter)
        self.at = Progress(0, self.at.step + 1, self.at.samples + self.todo.batch_size, self.at.total_samples)
        with self.meter("after"):
            self.engine.after_step(self.at)
        self.meter.settle()

    def images(self, number: int) -> Iterator[Batch]:
        """One batch of random uint8 [number, 3, S, S] that lies on the device, again and again."""
        side = self.config["arms"]["image_size"]
        images = torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8, device=self.device)
        index = torch.arange(number, device=self.device)
        return repeat(Batch(images, index, label=torch.zeros_like(index)))

    def stream(self, number: int | None) -> Stream:
        """The configured stream over `number` of the training images, opened as pretraining would over all of them.

        Where all would stay decoded in memory these do; else these are read anew in every epoch.
        """
        config, batch = self.config, self.todo.batch_size
        manifest: Manifest = build(without(config["data"], "noise"))
        rows = wire.training_rows(manifest, self.method.needs)
        some = rows[rng.permutation(config["seed"], 0, len(rows), rng.SUBSET)[:number]]
        plan = Plan(some, batch, seed=config["seed"], accumulate=self.todo.accumulate)
        size, cache = config["arms"]["image_size"], config["stream"].get("cache_bytes", 0)
        dtype = torch.uint16 if manifest.depth > 8 else torch.uint8
        keep, labels = fits(len(rows), size, cache, 1, dtype), "label" in self.method.needs
        node = config["stream"]
        return wire.open_stream(node, build, manifest, plan, size, self.place, keep=keep, with_labels=labels)


@contextmanager
def ready(job: JSON) -> Iterator[Callable[[], JSON]]:
    """What times one turn of a side: on random images, or with `images` on so many of its data."""
    config = job["config"]
    stepper = Stepper(config)
    if "images" not in job:
        some = config["train"]["batch_size"] // config["train"]["accumulate"]
        yield partial(measured, stepper, stepper.images(some), job)
        return
    with closing(stepper.stream(job["images"])) as stream:
        for _ in stream.epoch(0):  # read once: later epochs are what pretraining spends its time in
            pass
        yield partial(measured, stepper, (batch for epoch in count(1) for batch in stream.epoch(epoch)), job)


def child(job: JSON) -> JSON:
    """One turn: seconds of each step after the warm-up, with what they take."""
    with ready(job) as turn:
        return turn()


def measured(stepper: Stepper, batches: Iterator[Batch], job: JSON) -> JSON:
    """The warm-up, then the steps that count."""
    config, meter = stepper.config, stepper.meter
    waited = meter.wait("data", batches)
    begun = time.perf_counter()
    for _ in range(job["warmup"]):
        stepper(waited)
    finish(stepper.device)
    warm = time.perf_counter() - begun
    meter.settle()
    before = dict(meter.spans)
    with Energy(stepper.device) as energy:
        times = timed(lambda: stepper(waited), stepper.device, job["steps"], job["seconds"])
    meter.settle()
    return {
        "times": times,
        "warmup": warm,
        "spans": {name: meter.spans.get(name, 0.0) - before.get(name, 0.0) for name in SPANS},
        "batch": stepper.todo.batch_size,
        "precision": stepper.place.precision.name,
        "joules": energy.joules,
        "peak_memory": peak_memory(stepper.device),
        "optimizer": optimizer_alone(stepper),
        "parameters": stepper.parameters,
        "flops_per_image": job.get("flops") or counted(config, stepper.todo.batch_size).flops_per_image,
        "image_size": config["arms"]["image_size"],
        "models": [spec.model for spec in settings.arm_specs(config).values()],
    }


def optimizer_alone(stepper: Stepper) -> float:
    """Seconds of one optimizer step over all trained parameters, whose FLOPs nobody counts: median of five."""
    for parameter in stepper.method.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    found = median(timed(stepper.engine.optimizer.step, stepper.device, steps=5, seconds=60.0))
    stepper.engine.optimizer.zero_grad(set_to_none=True)
    return found


def timed(work: Callable[[], object], device: torch.device, steps: int, seconds: float) -> list[float]:
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


if __name__ == "__main__":
    with ready(json.loads(sys.argv[1])) as one_turn:
        if json.loads(sys.argv[1]).get("stay"):
            for _ in sys.stdin:
                print(json.dumps(one_turn()), flush=True)
                torch.cuda.empty_cache()  # others need it now; without CUDA nothing happens
        else:
            print(json.dumps(one_turn()))
