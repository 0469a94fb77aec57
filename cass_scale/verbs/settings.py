"""Checks of configuration values, all of them before any device or file is touched."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cass_scale import encoders
from cass_scale.encoders import IMAGENET_MEAN, IMAGENET_STD, ArmSpec
from cass_scale.errors import Problems
from cass_scale.types import JSON, ViewSpec
from cass_scale.verbs.rules import TEXT, Rule, is_number, or_null, whole
from cass_scale.views import problems as view_problems


def check_values(config: JSON, rules: dict[str, Rule], problems: Problems) -> None:
    """Hold every value that has a rule against it."""
    for key, (good, wanted) in rules.items():
        found, value = _find(config, key)
        if found:
            problems.check(good(value), f"{key}={value}: {wanted} is needed")


def check_given(config: JSON, wanted: dict[str, str], problems: Problems) -> None:
    """Note every key of `wanted` that has no text, with what it is for."""
    for key, what in wanted.items():
        problems.check(TEXT[0](_find(config, key)[1]), f"{key} is missing: {what}")


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


def check_amounts(config: JSON, problems: Problems) -> None:
    """Note what contradicts itself in how much is learnt from, and how often."""
    if config["subset"] is not None:
        alone = config["labels"] == [1.0]
        problems.check(alone, f"subset={config['subset']} contradicts labels={config['labels']}: give one of the two")
    if config["folds"] is not None:
        one = config["seeds"] == 1
        problems.check(one, f"folds={config['folds']} contradicts seeds={config['seeds']}: each fold is one training")


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
    three: Rule = (lambda v: isinstance(v, tuple) and len(v) == 3 and all(map(is_number, v)), "a list of 3 numbers")
    args: Rule = (lambda v: isinstance(v, dict), "a section, as in arms.ARM.args.drop_path_rate=0.1,")
    rules: dict[str, Rule] = {
        "model": TEXT, "weights": TEXT, "outputs": whole(1),
        "mean": or_null(three), "std": or_null(three), "args": args,
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
