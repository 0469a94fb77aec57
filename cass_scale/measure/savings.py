"""`cass-scale bench name=savings`: CASS beside DINO on the same stream, in turns; measured, counted and published."""

from __future__ import annotations

from collections.abc import Callable

from cass_scale.cli import OF_SHARDS, compose_config
from cass_scale.data.layouts import shard_format
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.errors import ConfigError, Problems
from cass_scale.evidence import Finding
from cass_scale.measure import reach
from cass_scale.measure.savings_page import page
from cass_scale.measure.savings_table import Sides, tables
from cass_scale.measure.step import counted, side
from cass_scale.measure.turns import in_turns
from cass_scale.types import JSON
from cass_scale.verbs import emulation, pretrain, settings, wire
from cass_scale.verbs.task import held_back
from cass_scale.verbs.wire import Build

QUESTION = "Savings: CASS beside DINO on the same images, measured, counted and published"


def run(config: JSON, build: Build, say: Callable[[str], None]) -> Finding:
    """Time a step of every side in turns, and with `bench.target` train each to that score; returns the finding."""
    options = config["bench"]
    sides = compose(config, build)
    manifest: Manifest = build(wire.without(config["data"], "noise"))
    Plan(manifest.rows("train")[: options["images"]], options["batch"], seed=0)  # raises where images are too few
    if options["target"] is not None:
        held_back(manifest)  # raises without labels
    flops = {name: counted(one, options["batch"]).flops_per_image for name, one in sides.configs.items()}
    more = {"images": options["images"], "stay": options["stay"]}
    words = {name: side(one, options, flops=flops[name], **more) for name, one in sides.configs.items()}
    figures: JSON = {
        "data": {"name": manifest.name, "images": len(manifest.rows("train")), "synthetic": manifest.synthetic},
        "sides": in_turns(words, options["turns"], say, stay=options["stay"]),
    }
    if options["target"] is not None:
        figures["target"] = reach.run(sides.configs, manifest, options, say)
    text = tables(figures, sides, options)
    return Finding(QUESTION, text, figures, page(QUESTION, figures, sides, options, say))


def compose(config: JSON, build: Build) -> Sides:
    """The configuration of every side. Raises ConfigError with the problems of all, before anything is read."""
    options, data = config["bench"], config["data"]
    problems = Problems()
    problems.check(data.get("path") is not None, "data.path is missing: the images that the sides are timed on")
    settings.refuse_noise(config, problems)
    both = ", ".join(set(options["methods"]) & set(options["recipes"]))
    problems.check(not both, f"bench.recipes: {both} is among bench.methods, which train all arms in one run")
    problems.raise_if_any()
    limits = emulation.words(config["hardware"])
    common = [f"arms={options['arms']}", f"train.batch_size={options['batch']}", *limits]
    if (kind := shard_format(data["path"])) and not any(word.startswith("stream=") for word in options["words"]):
        common.append(f"stream={OF_SHARDS[kind][0]}")
    arms = settings.arm_names(compose_config("pretrain", common))
    sides = Sides(tuple(options["methods"]), tuple(options["recipes"]), tuple(arms), {})
    wrong: dict[str, str] = {}  # problem -> the first side that has it
    for name in sides.names():
        method, _, arm = name.partition("/")
        words = [*common, *options["words"], f"method={method}", *([f"arm={arm}"] if arm else [])]
        try:
            sides.configs[name] = compose_config("pretrain", words) | {"data": data}
            pretrain.check(sides.configs[name], build)
        except ConfigError as error:
            wrong = dict.fromkeys(error.problems, name) | wrong
    if wrong:
        raise ConfigError(*(f"{problem} (side {name})" for problem, name in wrong.items()))
    return sides
