"""What every value of a configuration may be: a rule per key, a table of rules per verb."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cass_scale.backends import BACKENDS
from cass_scale.data.window import read_window
from cass_scale.errors import ConfigError
from cass_scale.norms import KINDS
from cass_scale.results import METRICS

Rule = tuple[Callable[[Any], bool], str]  # whether a value is good, and what is needed


def whole(low: int) -> Rule:
    """Whole numbers from `low` on."""
    return (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low,
        f"a whole number of at least {low}",
    )


def number(low: float, high: float = float("inf")) -> Rule:
    """Finite numbers, both ends included."""
    text = f"a number from {low:g} to {high:g}" if high < float("inf") else f"a number of at least {low:g}"
    return (lambda v: is_number(v) and low <= v <= high, text)


def is_number(value: Any) -> bool:
    """A finite int or float; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def choice(*choices: str) -> Rule:
    """One of some values."""
    return (lambda v: v in choices, "one of " + ", ".join(choices))


def or_null(rule: Rule) -> Rule:
    """The rule, or null."""
    return (lambda v: v is None or rule[0](v), f"{rule[1]}, or null")


def auto_or(rule: Rule) -> Rule:
    """The rule, or auto."""
    return (lambda v: v == "auto" or rule[0](v), f"auto, or {rule[1]}")


def list_of(rule: Rule) -> Rule:
    """A list of what the rule allows, maybe empty."""
    return (lambda v: isinstance(v, list) and all(map(rule[0], v)), f"a list, each {rule[1]}")


def some_of(rule: Rule) -> Rule:
    """The same, and not empty."""
    return (lambda v: bool(v) and list_of(rule)[0](v), f"a list of one or more, each {rule[1]},")


def is_window(value: Any) -> bool:
    """Whether `data.window` may be this."""
    with suppress(ConfigError):
        read_window(value)
        return True
    return False


def names() -> Rule:
    """A text, or some."""
    return (lambda v: TEXT[0](v) or some_of(TEXT)[0](v), "a name, or a list of names")


BOOL: Rule = (lambda v: isinstance(v, bool), "true or false")
TEXT: Rule = (lambda v: isinstance(v, str) and v != "", "a name")
POSITIVE: Rule = (lambda v: is_number(v) and v > 0, "a number above 0")
DEVICE, PRECISION = choice("auto", "cpu", "cuda"), choice("auto", "fp32", "tf32", "fp16", "bf16")
TRACKERS = ("tensorboard", "wandb", "mlflow")

DATA: dict[str, Rule] = {
    "data.path": TEXT,
    "data.name": or_null(TEXT),
    "data.noise": BOOL,
    "data.images": whole(14),
    "data.scale": number(0.05, 4),
    "data.max_bad": number(0, 1),
    "data.labels": choice("auto", "none", "folders", "csv"),
    "data.counts": choice("check", "note"),
    "data.layout.uncertain": choice("zeros", "ones", "ignore"),
    "data.layout.size": (lambda v: v in (28, 64, 128, 224), "28, 64, 128 or 224"),
    "data.window": (is_window, "auto, two values as [100,3000] or two percentiles as [1%,99%]"),
    "data.groups": choice("auto", "dicom"),
    "data.slices.axis": choice("x", "y", "z"),
    "data.slices.stride": whole(1),
    "data.tiles.size": whole(16),
    "data.tiles.level": whole(0),
    "data.tiles.mpp": or_null(POSITIVE),
    "data.tiles.tissue": number(0, 1),
    "data.tiles.tiff": BOOL,
}
PRETRAIN: dict[str, Rule] = {
    "seed": whole(0),
    "arm": or_null(TEXT),
    "run.dir": or_null(TEXT),
    "train.batch_size": whole(2),
    "train.epochs": whole(1),
    "train.max_steps": or_null(whole(1)),
    "train.accumulate": whole(1),
    "train.tail": choice("drop", "carry"),
    "train.clip": or_null(POSITIVE),
    "train.clip_each": BOOL,
    "train.count_flops": BOOL,
    "train.clear_gradients": BOOL,
    "train.device": DEVICE,
    "train.precision": PRECISION,
    "train.backend": choice("auto", *BACKENDS),
    "train.ranks": or_null(whole(1)),
    "train.batch_norm": choice(*KINDS),
    "train.channels_last": BOOL,
    "train.recompute": BOOL,
    "train.compile": or_null(choice("default", "reduce-overhead", "max-autotune")),
    "train.bucket_mb": whole(1),
    "train.comm": choice("fp32", "bf16"),
    "optim.fused": BOOL,
    "train.log_every": whole(1),
    "train.save_every": whole(1),
    "train.keep": whole(1),
    "train.hang_minutes": POSITIVE,
    "profile.steps": (lambda v: v is None or isinstance(v, int | str), "a range of steps as in 10-12, or null"),
    "train.on_collapse": choice("warn", "stop"),
    "train.trackers": (
        lambda v: isinstance(v, list) and set(v) <= set(TRACKERS),
        f"a list of {', '.join(TRACKERS)}",
    ),
    "monitor.every": auto_or(whole(1)),
    "monitor.images": whole(4),
    "optim.name": choice("adam", "adamw", "sgd"),
    "optim.lr": number(0),
    "optim.lr_batch": or_null(whole(1)),
    "optim.weight_decay": number(0),
    "optim.weight_decay_end": or_null(number(0)),
    "optim.momentum": number(0, 1),
    "schedule.kind": choice("constant", "cosine", "cosine16"),
    "schedule.warmup": number(0, 1),
    "schedule.floor": number(0),
    "swa.enabled": BOOL,
    "swa.start": number(0, 1),
    "swa.every": whole(1),
    "normalise": choice("weights", "imagenet"),
    **DATA,
    "stream.workers": auto_or(whole(0)),
    "stream.cache_bytes": whole(0),
    "stream.remote_cache_bytes": whole(0),
    "arms.image_size": whole(16),
    "arms.global_size": whole(16),
    "arms.local_size": whole(16),
    "views.crops": (lambda v: isinstance(v, list), "a list of crops"),
    "views.per_arm": choice("shared", "own"),
    "method.projection": whole(0),
    "method.projection_hidden": whole(1),
    "method.noise_rule": BOOL,
    "method.frozen": BOOL,
    "method.head.prototypes": whole(2),
    "method.head.hidden": whole(1),
    "method.head.bottleneck": whole(1),
    "method.head.batchnorm": BOOL,
    "method.sees": choice("all", "locals"),
    "method.freeze": whole(0),
    "method.ema": number(0, 1),
    "method.ema_end": number(0, 1),
    "method.temperature": POSITIVE,
    "method.temperature_start": POSITIVE,
    "method.warmup": number(0, 1),
    "method.centre": number(0, 1),
    "method.side_by_side": BOOL,
    "objective.temperature": POSITIVE,
    "objective.student_temperature": POSITIVE,
    "objective.gamma": number(0),
    "objective.epsilon": POSITIVE,
    "objective.iterations": whole(1),
    "objective.offdiagonal": number(0),
    "objective.invariance": number(0),
    "objective.variance": number(0),
    "objective.covariance": number(0),
}
EVALUATE: dict[str, Rule] = {
    "run.dir": or_null(TEXT),
    "data.path": or_null(TEXT),
    "data.learn": choice("auto", "run", "path"),
    "weights": choice("run", "initial", "random"),
    "labels": some_of((lambda v: is_number(v) and 0 < v <= 1, "a share above 0 and up to 1")),
    "subset": or_null(some_of((lambda v: v in ("S", "M", "F") or whole(1)[0](v), "S, M, F or a number of images"))),
    "folds": or_null(whole(2)),
    "seeds": whole(1),
    "arm": or_null(names()),
    "by": or_null(names()),
    "threshold": number(0, 1),
    "positive": or_null((lambda v: isinstance(v, str | int), "the name of a class")),
    "replicates": (lambda v: v == 0 or whole(100)[0](v), "0, or a whole number of at least 100"),
    "leaks": choice("refuse", "warn"),
    "seed": whole(0),
    "batch_size": whole(1),
    "device": DEVICE,
    "precision": PRECISION,
    "protocol.k": whole(1),
    "protocol.temperature": POSITIVE,
    "protocol.epochs": whole(1),
    "protocol.min_epochs": whole(0),
    "protocol.patience": or_null(whole(1)),
    "protocol.batch_size": whole(2),
    "protocol.optimizer": choice("adam", "adamw", "sgd"),
    "protocol.lr": number(0),
    "protocol.weight_decay": number(0),
    "protocol.momentum": number(0, 1),
    "protocol.schedule": choice("cosine", "plateau"),
    "protocol.loss": choice("focal", "cross_entropy"),
    "protocol.weighting": choice("none", "inverse", "official"),
    "protocol.frozen": BOOL,
    "protocol.grid.lr": some_of(POSITIVE),
    "protocol.grid.weight_decay": some_of(number(0)),
}
EXPLAIN: dict[str, Rule] = {
    "run.dir": or_null(TEXT),
    "images": or_null(TEXT),
    "against": or_null(names()),
    "out": or_null(TEXT),
    "parts": some_of(choice("attention", "convolutions", "gradcam", "cka", "embedding")),
    "maps": some_of(choice("tsne", "umap")),
    "arm": or_null(names()),
    "most": whole(1),
    "per_class": whole(1),
    "examples": whole(1),
    "seed": whole(0),
    "batch_size": whole(8),
    "device": DEVICE,
}
EXPORT: dict[str, Rule] = {
    "to": choice("timm", "onnx", "hub"),
    "arm": or_null(names()),
    "out": or_null(TEXT),
    "runs": or_null(TEXT),
    "licence": or_null(TEXT),
    "repo": or_null(TEXT),
    "private": BOOL,
}
PREDICT: dict[str, Rule] = {
    "evaluation": or_null(TEXT),
    "arm": or_null(names()),
    "features": BOOL,
    "data.max_bad": number(0, 1),
    "batch_size": whole(1),
    "workers": auto_or(whole(0)),
    "device": DEVICE,
    "precision": PRECISION,
}
COMPARE: dict[str, Rule] = {
    "A": or_null(TEXT),
    "B": or_null(TEXT),
    "metrics": or_null(some_of(TEXT)),
    "replicates": whole(100),
    "flips": whole(100),
    "seed": whole(0),
}
VERIFY: dict[str, Rule] = {
    **DATA,
    "few": whole(1),
    "seed": whole(0),
}
SHARD: dict[str, Rule] = {
    "format": choice("webdataset", "ffcv"),
    "mode": choice("auto", "raw", "jpg", "mixed"),
    "jpg_share": number(0, 1),
    "size": or_null(whole(16)),
    "resize": choice("auto", "short", "square"),
    "quality": or_null(
        (lambda v: isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= 100, "a whole number from 1 to 100")
    ),
    "samples_per_shard": whole(1),
    "workers": auto_or(whole(1)),
    **DATA,
}
STUDY: dict[str, Rule] = {
    "preset": choice("paper", "quick"),
    "target": choice(*METRICS),
    "jobs": or_null(whole(1)),
    "keep_checkpoints": BOOL,
    "out": or_null(TEXT),
}
