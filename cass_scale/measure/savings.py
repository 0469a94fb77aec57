"""`cass-scale bench name=savings`: CASS beside DINO on the same stream, in turns; measured, counted and published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cass_scale.cli import OF_SHARDS, compose_config
from cass_scale.console import Console
from cass_scale.data.layouts import shard_format
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.encoders import is_transformer
from cass_scale.errors import ConfigError, Problems
from cass_scale.evidence import Finding
from cass_scale.measure import costs, reach
from cass_scale.measure.costs import counted
from cass_scale.measure.savings_page import page
from cass_scale.measure.savings_table import Sides, tables
from cass_scale.measure.step import side
from cass_scale.measure.turns import end_of, in_turns
from cass_scale.types import JSON
from cass_scale.verbs import emulation, pretrain, settings, wire
from cass_scale.verbs.task import held_back
from cass_scale.verbs.wire import Build

QUESTION = "Savings: CASS beside DINO on the same images, measured, counted and published"


def run(config: JSON, build: Build, say: Callable[[str], None]) -> Finding:
    """Time a step of every side in turns, and with `bench.target` train each to that score; returns the finding."""
    options = config["bench"]
    until = end_of(options["limit"])
    sides, manifest = prepare(config, build)
    flops = {name: counted(one, options["batch"]).flops_per_image for name, one in sides.configs.items()}
    more = {"images": options["images"], "stay": options["stay"]}
    words = {name: side(one, options, flops=flops[name], **more) for name, one in sides.configs.items()}
    figures: JSON = {
        "data": {"name": manifest.name, "images": len(manifest.rows("train")), "synthetic": manifest.synthetic},
        "sides": in_turns(words, options["turns"], say, stay=options["stay"], until=until),
    }
    if options["target"] is not None:
        figures["target"] = reach.run(sides.configs, manifest, options, say)
    text = tables(figures, sides, options)
    return Finding(QUESTION, text, figures, page(QUESTION, figures, sides, options, say))


def dry_run(config: JSON, build: Build, console: Console) -> JSON:
    """Check everything that `run` checks, and show what each side would take; starts nothing."""
    return costs.show(prepare(config, build)[0].configs, {}, config["bench"], console)


def prepare(config: JSON, build: Build) -> tuple[Sides, Manifest]:
    """The sides, checked, and the images. Raises ConfigError, and DataError where images or labels are too few."""
    options = config["bench"]
    sides = compose(config, build)
    manifest: Manifest = build(wire.without(config["data"], "noise"))
    Plan(manifest.rows("train")[: options["images"]], options["batch"], seed=0)  # raises where images are too few
    if options["target"] is not None:
        held_back(manifest)  # raises without labels
    return with_labels(sides, manifest), manifest


def with_labels(sides: Sides, manifest: Manifest) -> Sides:
    """The sides with one logit per class in those that learn from labels; without these where there are none."""
    if not manifest.labelled()[manifest.rows("train")].any():
        configs = {name: one for name, one in sides.configs.items() if name not in sides.labelled}
        return replace(sides, labelled=(), configs=configs)
    for name in sides.labelled:
        for arm in sides.arms:
            sides.configs[name]["arms"][arm]["outputs"] = len(manifest.classes)
    return sides


def compose(config: JSON, build: Build) -> Sides:
    """The configuration of every side. Raises ConfigError with the problems of all, before anything is read."""
    options, data = config["bench"], config["data"]
    problems = Problems()
    problems.check(data.get("path") is not None, "data.path is missing: the images that the sides are timed on")
    settings.refuse_noise(config, problems)
    whole = {*options["methods"], *options["labelled"]}
    both = ", ".join(whole & set(options["recipes"]))
    problems.check(
        not both, f"bench.recipes: {both} is among bench.methods or labelled, which train all arms in one run"
    )
    problems.raise_if_any()
    limits = emulation.words(config["hardware"])
    common = [f"arms={options['arms']}", f"train.batch_size={options['batch']}", *limits]
    if (kind := shard_format(data["path"])) and not any(word.startswith("stream=") for word in options["words"]):
        common.append(f"stream={OF_SHARDS[kind][0]}")
    arms = settings.arm_names(compose_config("pretrain", common))
    sides = Sides(tuple(options["methods"]), tuple(options["recipes"]), tuple(arms), {}, tuple(options["labelled"]))
    wrong: dict[str, str] = {}  # problem -> the first side that has it
    for name in sides.names():
        try:
            sides.configs[name] = composed(name, [*common, *options["words"]], options["convnets"]) | {"data": data}
            pretrain.check(sides.configs[name], build)
        except ConfigError as error:
            wrong = dict.fromkeys(error.problems, name) | wrong
    if wrong:
        raise ConfigError(*(f"{problem} (side {name})" for problem, name in wrong.items()))
    return sides


def composed(name: str, words: Sequence[str], convnets: Mapping[str, str]) -> JSON:
    """The configuration of a side `method` or `recipe/arm`; arms that are CNNs by what `convnets` names."""
    method, _, arm = name.partition("/")
    chosen = [f"arm={arm}"] if arm else []
    config = compose_config("pretrain", [*words, f"method={method}", *chosen])
    if method in convnets and arm and not is_transformer(str(config["arms"][arm]["model"])):
        return compose_config("pretrain", [*words, f"method={convnets[method]}", *chosen])
    return config
