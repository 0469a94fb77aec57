"""Efficiency on 8 to 1,024 GPUs by the alpha-beta model, where it falls under 90 %, and what would mend that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cass_scale.errors import ConfigError
from cass_scale.estimate import Estimate
from cass_scale.measure import peaks
from cass_scale.measure.alphabeta import Cluster, Link, Work, efficiency, falls_under, step
from cass_scale.types import JSON

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
ENOUGH = 0.9
ASSUMED: JSON = {"card": "NVIDIA A100-SXM4-80GB", "mfu": 0.35, "overlap": 0.8, "alpha_us": 3.4, "beta_gbs": 235.0}
US, MS, GB, MIB = 1e-6, 1e-3, 1e9, 2**20


@dataclass(frozen=True)
class Parameter:
    """A number of the model, and where it comes from."""

    value: Any
    origin: str  # given | measured | assumed | counted | computed


def parameters(options: JSON, cost: Estimate, measured: Mapping[str, Any]) -> dict[str, Parameter]:
    """All of the model, by their keys below `bench.predict`: as given, else as measured, else as assumed.

    Raises ConfigError for a card of which no bf16 peak is known.
    """
    flat = {key: value for key, value in options.items() if key not in ("within", "between")}
    flat |= {f"within.{key}": value for key, value in options["within"].items()}
    found = {key: _one(key, value, measured) for key, value in flat.items()}
    if found["step_ms"].value is None:
        card = found["card"].value
        if (peak := peaks.peak(card, "bf16")) is None:
            raise ConfigError(
                f"bench.predict.card={card}: no bf16 peak is known of it; give bench.predict.step_ms, or another card"
            )
        seconds = cost.flops_per_image * options["batch"] / (peak * found["mfu"].value)
        found["step_ms"] = Parameter(seconds / MS, "computed")
    counted = {"trained": cost.trained, "buffers": cost.buffer_bytes}
    counted |= {key: measured[key] for key in ("gathers", "gathered_per_image")}
    return found | {key: Parameter(value, "counted") for key, value in counted.items()}


def _one(key: str, value: Any, measured: Mapping[str, Any]) -> Parameter:
    if value is not None:
        return Parameter(value, "given")
    if measured.get(key) is not None:
        return Parameter(measured[key], "measured")
    short = key.rpartition(".")[2]
    return Parameter(ASSUMED[short], "assumed") if short in ASSUMED else Parameter(None, "computed")


def work(found: Mapping[str, Parameter], batch: float) -> Work:
    """The step of one GPU with `batch` images; computing grows linearly with them."""
    value = {key: one.value for key, one in found.items()}
    width = 2 if value["comm"] == "bf16" else 4
    return Work(
        compute=value["step_ms"] * MS * batch / value["batch"],
        gradients=width * value["trained"],
        bucket=value["bucket_mb"] * MIB * width / 4,
        overlap=value["overlap"],
        buffers=value["buffers"],
        gathers=value["gathers"],
        gathered=value["gathered_per_image"] * batch,
        accumulate=value["accumulate"],
    )


def cluster(found: Mapping[str, Parameter], between: Mapping[str, float]) -> Cluster:
    """Nodes of the predicted kind on one network."""
    within = {key: found[f"within.{key}"].value for key in ("alpha_us", "beta_gbs")}
    return Cluster(found["gpus_per_node"].value, link(within), link(between))


def link(keys: Mapping[str, float]) -> Link:
    """Microseconds and GB/s as seconds and bytes per second."""
    return Link(keys["alpha_us"] * US, keys["beta_gbs"] * GB)


LEVERS: dict[str, Callable[[Work], Work]] = {  # what to change -> the step that comes of it
    "train.comm=bf16": lambda w: replace(w, gradients=w.gradients / 2, bucket=w.bucket / 2),
    "twice the batch per GPU": lambda w: replace(w, compute=2 * w.compute, gathered=2 * w.gathered),
    "four times train.accumulate": lambda w: replace(w, accumulate=4 * w.accumulate),
    "four times train.bucket_mb": lambda w: replace(w, bucket=w.bucket * 4),
}


def forecast(found: Mapping[str, Parameter], networks: Mapping[str, Mapping[str, float]]) -> dict[str, JSON]:
    """Per network: efficiency by size at a fixed batch per GPU (and with nothing hidden), images/s at a fixed global
    batch against one GPU, where the first falls under ENOUGH, and what each lever makes of that."""
    ours, comm, told = work(found, found["batch"].value), found["comm"].value, {}
    for name, keys in networks.items():
        nodes = cluster(found, keys)
        low = falls_under(ENOUGH, ours, nodes, SIZES)
        changed = {lever: change(ours) for lever, change in LEVERS.items() if lever != f"train.comm={comm}"}
        told[name] = {
            "weak": {n: efficiency(ours, nodes, n) for n in SIZES},
            "weak_unhidden": {n: efficiency(replace(ours, overlap=0.0), nodes, n) for n in SIZES},
            "strong": {n: share for n in SIZES if (share := strong(found, nodes, n)) is not None},
            "under": low,
            "there": efficiency(ours, nodes, low) if low else None,
            "levers": {
                lever: {"there": efficiency(w, nodes, low), "under": falls_under(ENOUGH, w, nodes, SIZES)}
                for lever, w in changed.items()
                if low
            },
        }
    return told


def strong(found: Mapping[str, Parameter], nodes: Cluster, ranks: int) -> float | None:
    """Efficiency with the global batch spread over `ranks`; None where fewer than two images are left for one."""
    batch = found["global_batch"].value / ranks / found["accumulate"].value
    if batch < 2:
        return None
    one = work(found, batch)
    return one.accumulate * one.compute / step(one, nodes, ranks)
