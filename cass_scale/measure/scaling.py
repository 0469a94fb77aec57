"""`cass-scale bench name=scaling`: ranks of this machine measured, the alpha-beta model held against them, and more
GPUs predicted with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from statistics import median

import torch

from cass_scale import machine
from cass_scale.cli import build as build_node
from cass_scale.cli import compose_config
from cass_scale.errors import CassScaleError, ConfigError
from cass_scale.estimate import Estimate, held
from cass_scale.evidence import Finding
from cass_scale.measure import peaks
from cass_scale.measure.alphabeta import Cluster, Fit, Work, blocking, exchange, fit, hidden_share, step, unhidden
from cass_scale.measure.memory_table import memory_rows
from cass_scale.measure.predict import GB, MIB, US, forecast, parameters
from cass_scale.measure.scaling_table import table
from cass_scale.measure.traffic import Sent, total
from cass_scale.measure.turns import failed, in_turns
from cass_scale.types import JSON
from cass_scale.verbs import settings, wire
from cass_scale.verbs.wire import Build

RANKS = "cass_scale.measure.ranks"
QUESTION = "Scaling: ranks of one machine, and what they predict of many"
MOST = 4  # ranks that are measured unasked


def run(config: JSON, build: Build, say: Callable[[str], None]) -> Finding:
    """Measure, fit, hold the model against the measurements, predict. Raises ConfigError before anything is started."""
    options = config["bench"]
    ranks = chosen_ranks(options)
    words = [f"arms={options['arms']}", f"method={options['method']}", *options["words"]]
    cost = counted([f"arms={options['predict']['arms']}", f"method={options['method']}"], options["predict"]["batch"])
    parameters(options["predict"], cost, {"gathers": 0, "gathered_per_image": 0})  # a card that is not known
    sides = in_turns(dict(launches(options, ranks, words)), options["turns"], say)
    if why := failed([result for results in sides.values() for result in results]):
        raise CassScaleError(f"bench name=scaling: {why}")
    own = counted(words, options["batch"])
    figures: JSON = {"ranks": ranks, "batch": options["batch"], "sides": sides, "device": device_name()}
    measured: JSON = {"gathers": 0, "gathered_per_image": 0}
    if len(ranks) > 1:
        fitted = fit_of(figures)
        train = compose_config("pretrain", words)["train"]
        bucket = train["bucket_mb"] * MIB * (0.5 if train["comm"] == "bf16" else 1.0)  # it is cut in float32
        figures |= {"fit": asdict(fitted), "model": validated(figures, fitted, bucket)}
        measured = of_this_machine(figures, own)
    found = parameters(options["predict"], cost, measured)
    figures["parameters"] = {key: asdict(one) for key, one in found.items()}
    figures["networks"] = options["predict"]["between"]
    figures["predicted"] = forecast(found, options["predict"]["between"])
    figures["memory"] = memory_rows(options["memory"], lambda words: counted(words, options["memory"]["batch"]))
    figures["memory"] |= {
        "counted": sides[f"{max(ranks)}x{options['batch']}"][0]["held"],
        "by_formula": held(own.trained, own.parameters - own.trained),
    }
    return Finding(QUESTION, table(figures), figures)


def chosen_ranks(options: JSON) -> list[int]:
    """Numbers of ranks to measure. Raises ConfigError for more than GPUs or cores, or none alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("bench name=scaling starts its ranks itself: run it without torchrun or accelerate launch")
    there = torch.cuda.device_count() or machine.cores()
    kind = "GPUs" if torch.cuda.device_count() else "cores"
    asked: list[int] = options["ranks"] or [n for n in (1, 2, MOST) if n <= there]
    if max(asked) > there or min(asked) != 1:
        raise ConfigError(f"bench.ranks={asked}: give 1 and others up to {there}, the {kind} of this machine")
    if any(options["batch"] % n or options["batch"] // n < 2 for n in asked):
        raise ConfigError(f"bench.batch={options['batch']}: give a number that leaves each of {asked} ranks 2 or more")
    return sorted(set(asked))


def launches(options: JSON, ranks: list[int], words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """`ranks x batch of each` and how to start it; both series, and one rank alone with every batch of theirs."""
    batch, cores = options["batch"], max(1, machine.cores() // max(ranks))
    points = {(n, size) for n in ranks for size in (batch, batch // n)} | {(1, batch // n) for n in ranks}
    for n, size in sorted(points):
        job: JSON = {"words": [*words, f"train.batch_size={n * size}"], "ranks": n, "cores": cores}
        job |= {key: options[key] for key in ("warmup", "steps", "repeats")}
        job["sizes"] = options["sizes"] if size == batch else []
        start = ["torch.distributed.run", "--standalone", f"--nproc_per_node={n}", "-m"] if n > 1 else []
        yield f"{n}x{size}", [*start, RANKS, json.dumps(job)]


def counted(words: list[str], batch: int) -> Estimate:
    """FLOPs, parameters and bytes of a step in bf16, on the meta device."""
    config = compose_config("pretrain", words)
    return wire.cost(config, build_node, settings.arm_specs(config), batch, 2)


def device_name() -> str:
    """Of the first device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else machine.cpu_name()


def of_side(figures: JSON, name: str, kind: str) -> list[float]:
    """Seconds of all steps of a side, over all turns: `exchanged` or `alone`."""
    return [seconds for result in figures["sides"][name] for seconds in result["steps"][kind]]


def sent_by(figures: JSON, name: str) -> list[Sent]:
    """The collectives of one step of a side."""
    return [Sent(*one) for one in figures["sides"][name][0]["sent"]]


def fit_of(figures: JSON) -> Fit:
    """Alpha and beta from the all-reduces of most ranks."""
    most = max(figures["ranks"])
    results = figures["sides"][f"{most}x{figures['batch']}"]
    sizes = results[0]["latencies"]
    return fit({int(size): [s for result in results for s in result["latencies"][size]] for size in sizes}, most)


def work_of(figures: JSON, ranks: int, batch: int, bucket: float, overlap: float) -> Work:
    """The step as counted on `ranks`, its computing as one rank alone measured it with that batch."""
    sent = sent_by(figures, f"{ranks}x{batch}")
    gathered = [one.bytes for one in sent if one.what == "all_gather"]
    return Work(
        compute=median(of_side(figures, f"1x{batch}", "exchanged")),
        gradients=total(sent, "all_reduce") - ranks * sum(gathered),  # a gathering's backward pass reduces all rows
        bucket=bucket,
        overlap=overlap,
        buffers=total(sent, "broadcast"),
        gathers=len(gathered),
        gathered=sum(gathered) / max(1, len(gathered)),
    )


def validated(figures: JSON, fitted: Fit, bucket: float) -> JSON:
    """Predicted beside measured, for every side of several ranks. The overlap is that of the first of them."""
    nodes = Cluster(max(figures["ranks"]), fitted.link, fitted.link)
    rows, overlap = dict[str, JSON](), None
    for name in sorted(figures["sides"], key=lambda name: -int(name.split("x")[1])):
        ranks, batch = map(int, name.split("x"))
        if ranks == 1:
            continue
        exchanged, alone = (of_side(figures, name, kind) for kind in ("exchanged", "alone"))
        excess = median(a - b for a, b in zip(exchanged, alone, strict=True))
        if overlap is None:
            overlap = hidden_share(work_of(figures, ranks, batch, bucket, 0.0), nodes, ranks, excess)
        work, measured = work_of(figures, ranks, batch, bucket, overlap), median(exchanged)
        seconds, waits = step(work, nodes, ranks), unhidden(work, nodes, ranks)
        rows[name] = {
            "exchange": exchange(work, nodes, ranks), "blocking": blocking(work, nodes, ranks), "unhidden": waits,
            "excess": excess, "predicted": seconds, "measured": measured, "error": seconds / measured - 1,
            "error_of_exchange": (median(alone) + waits) / measured - 1,
        }  # fmt: skip
    return {"overlap": overlap, "rows": rows}


def of_this_machine(figures: JSON, cost: Estimate) -> JSON:
    """What a prediction may take from here: what the objective gathers; speeds and links only of GPUs."""
    most, batch = max(figures["ranks"]), figures["batch"]
    gathered = [one.bytes for one in sent_by(figures, f"{most}x{batch}") if one.what == "all_gather"]
    found: JSON = {"gathers": len(gathered), "gathered_per_image": sum(gathered) / max(1, len(gathered)) / batch}
    peak = peaks.peak(figures["device"], figures["sides"][f"1x{batch}"][0]["precision"])
    if torch.cuda.is_available() and peak:
        seconds = median(of_side(figures, f"1x{batch}", "exchanged"))
        found |= {"card": figures["device"], "mfu": cost.flops_per_image * batch / seconds / peak}
    if torch.cuda.is_available():
        link = figures["fit"]["link"]
        found |= {"overlap": figures["model"]["overlap"]}
        found |= {"within.alpha_us": link["alpha"] / US, "within.beta_gbs": link["beta"] / GB}
    return found
