"""One rank of `bench name=scaling`, started by torchrun: steps with and without exchange, traffic, collectives."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed as td
from torch.profiler import ProfilerActivity, profile

from cass_scale import dist
from cass_scale.cli import compose_config
from cass_scale.errors import ConfigError
from cass_scale.measure.step import Stepper, finish
from cass_scale.measure.traffic import Span, Traffic, hidden
from cass_scale.types import JSON, Batch

CALLS = 2**22  # bytes of which one measurement of small messages is made: calls back to back


def child(job: JSON) -> JSON:
    """What the first rank tells: seconds of every step (of the slowest rank), what it sent, latencies by size."""
    if (there := dist.world()) != job["ranks"]:
        raise ConfigError(f"{job['ranks']} ranks were asked for and {there} came: torchrun starts them")
    pin(job["cores"])
    config = compose_config("pretrain", job["words"])
    stepper = Stepper(config)
    if stepper.place.world != job["ranks"]:
        raise ConfigError(f"{job['ranks']} ranks were asked for and work as {stepper.place.world}")
    images = stepper.images(config["train"]["batch_size"] // job["ranks"] // config["train"]["accumulate"])
    for _ in range(job["warmup"]):
        stepper(images)
    with Traffic() as traffic:
        stepper(images)
    return {
        "steps": paced(stepper, images, job["steps"]),
        "sent": traffic.sent,
        "operations": traffic.operations,
        "hidden": overlap(stepper, images) if stepper.device.type == "cuda" and job["ranks"] > 1 else None,
        "latencies": latencies(stepper.device, job["sizes"], job["repeats"]) if job["ranks"] > 1 else {},
        "held": held(stepper),
        "precision": stepper.place.precision.name,
    }


def pin(cores: int) -> None:
    """On a CPU every rank gets `cores` cores of its own, so that one rank has no more of them than one of many."""
    if torch.cuda.is_available() or not hasattr(os, "sched_setaffinity"):
        return
    first = int(os.environ.get("LOCAL_RANK", "0")) * cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[first : first + cores])
    torch.set_num_threads(cores)


def paced(stepper: Stepper, images: Iterator[Batch], steps: int) -> dict[str, list[float]]:
    """Seconds of steps with the exchange of gradients and, in turns, without where there is one; all ranks begin each
    together."""
    found: dict[str, list[float]] = {"exchanged": [], "alone": []}
    for _ in range(steps):
        found["exchanged"].append(_together(stepper, images))
        if dist.active():
            with alone(stepper):
                found["alone"].append(_together(stepper, images))
    return {name: slowest(times) for name, times in found.items()}


@contextmanager
def alone(stepper: Stepper) -> Iterator[None]:
    """Inside it steps exchange no gradients; what the objective gathers they do."""
    engine = stepper.engine
    wrapped, engine.model = engine.model, engine.method
    try:
        yield
    finally:
        engine.model = wrapped


def _together(stepper: Stepper, images: Iterator[Batch]) -> float:
    dist.any_rank(False, stepper.device)
    begun = time.perf_counter()
    stepper(images)
    finish(stepper.device)
    return time.perf_counter() - begun


def latencies(device: torch.device, sizes: Sequence[int], repeats: int) -> dict[str, list[float]]:
    """Seconds of an all-reduce of so many bytes of float32, `repeats` times; the first measurement does not count."""
    found = {}
    for size in sizes:
        x, calls, times = torch.zeros(size // 4, device=device), max(1, min(20, CALLS // size)), list[float]()
        for _ in range(repeats + 1):
            dist.any_rank(False, device)
            begun = time.perf_counter()
            for _ in range(calls):
                td.all_reduce(x)
            finish(device)
            times.append((time.perf_counter() - begun) / calls)
        found[str(size)] = slowest(times[1:])
    return found


def slowest(times: list[float]) -> list[float]:
    """Of every measurement the time of the rank that took longest."""
    return [max(those) for those in zip(*dist.of_all_ranks(times), strict=True)]


def overlap(stepper: Stepper, images: Iterator[Batch]) -> float:
    """Share of the time of NCCL's kernels in one step during which other kernels compute."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        stepper(images)
        finish(stepper.device)
    kernels: list[Any] = [event for event in seen.events() or () if event.device_type.name == "CUDA"]
    spans: dict[bool, list[Span]] = {True: [], False: []}
    for kernel in kernels:
        spans["nccl" in kernel.name].append((kernel.time_range.start, kernel.time_range.end))
    return hidden(spans[True], spans[False])


def held(stepper: Stepper) -> dict[str, int]:
    """Bytes of weights, gradients and the optimizer's moments that this rank holds, counted tensor by tensor.

    The optimizer clears gradients after a step: theirs are counted as the parameters that have one.
    """
    parameters = list(stepper.method.parameters())
    moments = [
        x for state in stepper.engine.optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)
    ]
    return {
        "weights": sum(p.nbytes for p in parameters),
        "gradients": sum(p.nbytes for p in parameters if p.requires_grad),
        "moments": sum(x.nbytes for x in moments if x.ndim),
    }


def main(job: JSON) -> None:
    """Print what the first rank found, or what went wrong on any."""
    try:
        told = child(job)
    except Exception as error:  # torchrun's own report would bury it
        print(json.dumps({"error": f"rank {dist.rank()}: {type(error).__name__}: {error}"}), flush=True)
        raise
    if dist.rank() == 0:
        print(json.dumps(told), flush=True)
    if td.is_initialized():
        td.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
