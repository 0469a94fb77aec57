"""The sides of `bench name=step`: variants and combinations of them, composed and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from cass_scale import hardware
from cass_scale.cli import compose_config
from cass_scale.errors import ConfigError, Problems
from cass_scale.measure.steps_table import OVER
from cass_scale.types import JSON
from cass_scale.verbs import emulation, pretrain
from cass_scale.verbs.wire import Build, choose_device

Words = dict[str, list[str]]


@dataclass(frozen=True)
class Sides:
    """Configurations of pretrain: of every side `variant/batch`, and of variants whose largest batch is searched."""

    configs: dict[str, JSON]
    fit: dict[str, JSON]
    wrong: dict[str, str] = field(default_factory=dict)  # side -> why this device cannot run it


def compose(config: JSON, build: Build) -> Sides:
    """Every batch size with the first variant, every variant with the first batch size.

    Raises ConfigError for a name that is no variant, and where the first side cannot run; others are told as `wrong`.
    """
    options = config["bench"]
    timed, fit = chosen(options)
    first, *others = timed
    sizes = options["batch_sizes"]
    common = [f"arms={options['arms']}", f"method={options['method']}", *options["words"]]
    common += emulation.words(config["hardware"])

    def made(name: str, size: int) -> JSON:
        return compose_config("pretrain", [*common, f"train.batch_size={size}", *timed[name]])

    configs = {f"{first}/{size}": made(first, size) for size in sizes}
    plain, *_ = configs
    runnable(configs[plain], build)  # before the others: what is wrong in it is wrong in all
    if config["data"].get("path"):
        configs[f"{first}{OVER}/{sizes[0]}"] = configs[plain] | {"data": config["data"]}
    configs |= {f"{name}/{sizes[0]}": made(name, sizes[0]) for name in others}
    searched = {name: compose_config("pretrain", [*common, *words]) for name, words in fit.items()}
    wrong = {name: why for name in configs if name != plain if (why := lacking(configs[name], build))}
    return Sides(configs, searched, wrong)


def chosen(options: JSON) -> tuple[Words, Words]:
    """Overrides of the variants to time, in the order of `bench.only`, and of those to fit into a memory.

    Raises ConfigError for a name that is no variant and no combination of them, and when the device can run none.
    """
    variants, problems = options["variants"], Problems()
    names = options["only"] or list(variants)
    for key, asked in (("only", names), ("fit", options["fit"])):
        unknown = ", ".join(part for name in asked for part in parts(name, variants) if part not in variants)
        there = f"there are {', '.join(variants)}, and combinations as channels_last+recompute"
        problems.check(not unknown, f"bench.{key}: there is no variant {unknown}; {there}")
    problems.raise_if_any()
    skipped = set() if torch.cuda.is_available() else set(options["cuda_only"])
    timed = {name: words(name, variants) for name in names if not skipped & set(parts(name, variants))}
    if not timed:
        raise ConfigError(f"bench.only: {', '.join(names)} need CUDA (bench.cuda_only), and there is none here")
    return timed, {name: words(name, variants) for name in (next(iter(timed)), *options["fit"])}


def parts(name: str, variants: Mapping[str, Sequence[str]]) -> list[str]:
    """The variants that a name combines: itself, or those between its `+`."""
    return [name] if name in variants else name.split("+")


def words(name: str, variants: Mapping[str, Sequence[str]]) -> list[str]:
    """Overrides of a variant or of a combination."""
    return [word for part in parts(name, variants) for word in variants[part]]


def runnable(config: JSON, build: Build) -> None:
    """Raise ConfigError when a configuration is wrong, or asks for a precision that its device has not."""
    pretrain.check(config, build)
    device = choose_device(config["train"]["device"])
    hardware.resolve(hardware.read(config["hardware"]), config["train"]["precision"], device)


def lacking(config: JSON, build: Build) -> str:
    """Why a configuration cannot run here; '' when it can."""
    try:
        runnable(config, build)
    except ConfigError as error:
        return "; ".join(error.problems)
    return ""
