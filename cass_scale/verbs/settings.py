"""Checks of configuration values, all of them before any device or file is touched."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cass_scale import encoders
from cass_scale.data.window import read_window
from cass_scale.encoders import IMAGENET_MEAN, IMAGENET_STD, ArmSpec
from cass_scale.errors import ConfigError, Problems
from cass_scale.results import METRICS
from cass_scale.types import JSON, ViewSpec
from cass_scale.views import problems as view_problems

Rule = tuple[Callable[[Any], bool], str]


def _whole(low: int) -> Rule:
    return (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low,
        f"a whole number of at least {low}",
    )


def _number(low: float, high: float = float("inf")) -> Rule:
    text = f"a number from {low:g} to {high:g}" if high < float("inf") else f"a number of at least {low:g}"
    return (lambda v: _is_number(v) and low <= v <= high, text)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _choice(*choices: str) -> Rule:
    return (lambda v: v in choices, "one of " + ", ".join(choices))


def _or_null(rule: Rule) -> Rule:
    return (lambda v: v is None or rule[0](v), f"{rule[1]}, or null")


def _auto_or(rule: Rule) -> Rule:
    return (lambda v: v == "auto" or rule[0](v), f"auto, or {rule[1]}")


def _list_of(rule: Rule) -> Rule:
    return (lambda v: isinstance(v, list) and all(map(rule[0], v)), f"a list, each {rule[1]}")


def _is_window(value: Any) -> bool:
    with suppress(ConfigError):
        read_window(value)
        return True
    return False


BOOL: Rule = (lambda v: isinstance(v, bool), "true or false")
TEXT: Rule = (lambda v: isinstance(v, str) and v != "", "a name")
POSITIVE: Rule = (lambda v: _is_number(v) and v > 0, "a number above 0")
DEVICE, PRECISION = _choice("auto", "cpu", "cuda"), _choice("auto", "fp32", "tf32", "fp16", "bf16")
TRACKERS = ("tensorboard", "wandb", "mlflow")

DATA: dict[str, Rule] = {
    "data.path": TEXT,
    "data.name": _or_null(TEXT),
    "data.noise": BOOL,
    "data.images": _whole(14),
    "data.scale": _number(0.05, 4),
    "data.max_bad": _number(0, 1),
    "data.labels": _choice("auto", "none", "folders", "csv"),
    "data.counts": _choice("check", "note"),
    "data.layout.uncertain": _choice("zeros", "ones", "ignore"),
    "data.layout.size": (lambda v: v in (28, 64, 128, 224), "28, 64, 128 or 224"),
    "data.window": (_is_window, "auto, two values as [100,3000] or two percentiles as [1%,99%]"),
    "data.groups": _choice("auto", "dicom"),
    "data.slices.axis": _choice("x", "y", "z"),
    "data.slices.stride": _whole(1),
    "data.tiles.size": _whole(16),
    "data.tiles.level": _whole(0),
    "data.tiles.mpp": _or_null(POSITIVE),
    "data.tiles.tissue": _number(0, 1),
    "data.tiles.tiff": BOOL,
}
PRETRAIN: dict[str, Rule] = {
    "seed": _whole(0),
    "arm": _or_null(TEXT),
    "run.dir": _or_null(TEXT),
    "train.batch_size": _whole(2),
    "train.epochs": _whole(1),
    "train.max_steps": _or_null(_whole(1)),
    "train.accumulate": _whole(1),
    "train.tail": _choice("drop", "carry"),
    "train.clip": _or_null(POSITIVE),
    "train.clip_each": BOOL,
    "train.count_flops": BOOL,
    "train.clear_gradients": BOOL,
    "train.device": DEVICE,
    "train.precision": PRECISION,
    "train.channels_last": BOOL,
    "train.recompute": BOOL,
    "train.compile": _or_null(_choice("default", "reduce-overhead", "max-autotune")),
    "optim.fused": BOOL,
    "train.log_every": _whole(1),
    "train.save_every": _whole(1),
    "train.keep": _whole(1),
    "train.hang_minutes": POSITIVE,
    "profile.steps": (lambda v: v is None or isinstance(v, int | str), "a range of steps as in 10-12, or null"),
    "train.on_collapse": _choice("warn", "stop"),
    "train.trackers": (
        lambda v: isinstance(v, list) and set(v) <= set(TRACKERS),
        f"a list of {', '.join(TRACKERS)}",
    ),
    "monitor.every": _auto_or(_whole(1)),
    "monitor.images": _whole(4),
    "optim.name": _choice("adam", "adamw", "sgd"),
    "optim.lr": _number(0),
    "optim.lr_batch": _or_null(_whole(1)),
    "optim.weight_decay": _number(0),
    "optim.weight_decay_end": _or_null(_number(0)),
    "optim.momentum": _number(0, 1),
    "schedule.kind": _choice("constant", "cosine", "cosine16"),
    "schedule.warmup": _number(0, 1),
    "schedule.floor": _number(0),
    "swa.enabled": BOOL,
    "swa.start": _number(0, 1),
    "swa.every": _whole(1),
    "normalise": _choice("weights", "imagenet"),
    **DATA,
    "stream.workers": _auto_or(_whole(0)),
    "stream.cache_bytes": _whole(0),
    "stream.remote_cache_bytes": _whole(0),
    "arms.image_size": _whole(16),
    "arms.global_size": _whole(16),
    "arms.local_size": _whole(16),
    "views.crops": (lambda v: isinstance(v, list), "a list of crops"),
    "views.per_arm": _choice("shared", "own"),
    "method.projection": _whole(0),
    "method.projection_hidden": _whole(1),
    "method.noise_rule": BOOL,
    "method.frozen": BOOL,
    "method.head.prototypes": _whole(2),
    "method.head.hidden": _whole(1),
    "method.head.bottleneck": _whole(1),
    "method.head.batchnorm": BOOL,
    "method.sees": _choice("all", "locals"),
    "method.freeze": _whole(0),
    "method.ema": _number(0, 1),
    "method.ema_end": _number(0, 1),
    "method.temperature": POSITIVE,
    "method.temperature_start": POSITIVE,
    "method.warmup": _number(0, 1),
    "method.centre": _number(0, 1),
    "method.side_by_side": BOOL,
    "objective.temperature": POSITIVE,
    "objective.student_temperature": POSITIVE,
    "objective.gamma": _number(0),
    "objective.epsilon": POSITIVE,
    "objective.iterations": _whole(1),
    "objective.offdiagonal": _number(0),
    "objective.invariance": _number(0),
    "objective.variance": _number(0),
    "objective.covariance": _number(0),
}
EVALUATE: dict[str, Rule] = {
    "run.dir": _or_null(TEXT),
    "data.path": _or_null(TEXT),
    "weights": _choice("run", "initial", "random"),
    "seed": _whole(0),
    "batch_size": _whole(1),
    "device": DEVICE,
    "precision": PRECISION,
    "protocol.k": _whole(1),
    "protocol.temperature": POSITIVE,
    "protocol.epochs": _whole(1),
    "protocol.batch_size": _whole(2),
    "protocol.lr": _number(0),
    "protocol.weighting": _choice("none", "inverse", "official"),
}
VERIFY: dict[str, Rule] = {
    **DATA,
    "few": _whole(1),
    "seed": _whole(0),
}
SHARD: dict[str, Rule] = {
    "format": _choice("webdataset", "ffcv"),
    "mode": _choice("auto", "raw", "jpg", "mixed"),
    "jpg_share": _number(0, 1),
    "size": _or_null(_whole(16)),
    "resize": _choice("auto", "short", "square"),
    "quality": _or_null(
        (lambda v: isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= 100, "a whole number from 1 to 100")
    ),
    "samples_per_shard": _whole(1),
    "workers": _auto_or(_whole(1)),
    **DATA,
}
_RECORD: Rule = (TEXT[0], "the folder of a record")
BENCH: dict[str, dict[str, Rule]] = {
    "loaders": {
        "bench.images": _whole(1),
        "bench.size": _whole(16),
        "bench.batch": _whole(1),
        "bench.workers": _list_of(_whole(0)),
        "bench.epochs": _whole(1),
        "bench.turns": _whole(1),
    },
    "step": {
        "bench.batch_sizes": _list_of(_whole(2)),
        "bench.words": _list_of(TEXT),
        "bench.variants": (lambda v: isinstance(v, dict) and bool(v), "names with lists of overrides"),
        "bench.warmup": _whole(1),
        "bench.steps": _whole(3),
        "bench.seconds": POSITIVE,
        "bench.turns": _whole(1),
        "bench.memory_gib": _or_null(POSITIVE),
        "bench.fit": _list_of(TEXT),
        "bench.cuda_only": _list_of(TEXT),
    },
    "compare": {"bench.a": _RECORD, "bench.b": _RECORD},
}
STUDY: dict[str, Rule] = {
    "preset": _choice("paper", "quick"),
    "target": _choice(*METRICS),
    "jobs": _or_null(_whole(1)),
    "out": _or_null(TEXT),
}


def check_values(config: JSON, rules: dict[str, Rule], problems: Problems) -> None:
    """Hold every value that has a rule against it."""
    for key, (good, wanted) in rules.items():
        found, value = _find(config, key)
        if found:
            problems.check(good(value), f"{key}={value}: {wanted} is needed")


def refuse_noise(config: JSON, problems: Problems) -> None:
    """For verbs that read images as they are."""
    problems.check(not config["data"]["noise"], "data.noise=true is a control of pretraining; leave it out here")


def _find(config: JSON, key: str) -> tuple[bool, Any]:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False, None
        node = node[part]
    return True, node


def arm_names(config: JSON) -> list[str]:
    """All arms of the chosen preset."""
    return [name for name, node in config["arms"].items() if isinstance(node, dict)]


def arm_specs(config: JSON) -> dict[str, ArmSpec]:
    """The arms that are trained: all, or the one that `arm` names; `normalise=imagenet` normalises them equally."""
    names, chosen, specs = arm_names(config), config.get("arm"), {}
    for name in [chosen] if chosen in names else names:
        node = config["arms"][name]
        values: JSON = {k: tuple(v) if isinstance(v, list) else v for k, v in node.items()}
        spec = ArmSpec(**values)
        if config["normalise"] == "imagenet":
            spec = replace(spec, mean=spec.mean or IMAGENET_MEAN, std=spec.std or IMAGENET_STD)
        if isinstance(spec.args, dict) and encoders.is_transformer(str(spec.model)):
            spec = replace(spec, args={**config.get("transformer_args", {}), **spec.args})
        specs[name] = spec
    return specs


def check_arms(config: JSON, problems: Problems) -> dict[str, ArmSpec]:
    """The trained arms; notes what is wrong with them, without building them."""
    names, specs, image_size = arm_names(config), arm_specs(config), config["arms"]["image_size"]
    known = config.get("arm") in (None, *names)
    problems.check(known, f"arm={config.get('arm')}: arms has {', '.join(names)}")
    for name, spec in specs.items():
        wrong = _wrong_types(name, spec)
        problems.found += wrong
        if not wrong and isinstance(image_size, int):
            problems.found += encoders.check(name, spec, image_size, encoders.weights_dir())
        known = spec.optimizer in (None, "adam", "adamw", "sgd")
        problems.check(known, f"arms.{name}.optimizer={spec.optimizer}: adam, adamw or sgd is needed")
    return specs


def check_views(views: ViewSpec, specs: dict[str, ArmSpec], image_size: int, problems: Problems) -> None:
    """Note what is wrong with the views, also for these arms."""
    problems.found += view_problems(views)
    for number, crop in enumerate(views.crops):
        for spec in specs.values():
            problems.found += encoders.check_size(spec, f"views.crops[{number}].size", crop.size, image_size)


def _wrong_types(name: str, spec: ArmSpec) -> list[str]:
    three: Rule = (lambda v: isinstance(v, tuple) and len(v) == 3 and all(map(_is_number, v)), "a list of 3 numbers")
    args: Rule = (lambda v: isinstance(v, dict), "a section, as in arms.ARM.args.drop_path_rate=0.1,")
    rules: dict[str, Rule] = {
        "model": TEXT, "weights": TEXT, "outputs": _whole(1),
        "mean": _or_null(three), "std": _or_null(three), "args": args,
    }  # fmt: skip
    problems = Problems()
    check_values({"arms": {name: vars(spec)}}, {f"arms.{name}.{key}": rule for key, rule in rules.items()}, problems)
    return problems.found


def writable(folder: Path) -> bool:
    """Whether a folder exists or could be made here."""
    here = folder
    while not here.exists():
        here = here.parent
    return here.is_dir() and os.access(here, os.W_OK)


def missing(packages: Iterable[str]) -> list[str]:
    """Those of `packages` that cannot be imported, found without importing them."""
    return [name for name in packages if find_spec(name) is None]
