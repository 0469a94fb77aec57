"""Who looks at which images: the states of a run's arms, and the images drawn for them."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.errors import ConfigError, DataError
from cass_scale.insight.scene import Images, Side
from cass_scale.results import Run
from cass_scale.types import JSON
from cass_scale.verbs import settings
from cass_scale.verbs.evaluate import load_arms
from cass_scale.verbs.folder import finished
from cass_scale.verbs.job import stream_for
from cass_scale.verbs.task import asked_for
from cass_scale.verbs.wire import Build, Place, open_stream

THIS, INITIAL, RANDOM = "this run", "initial", "random"
LETTERS = 16  # of a name above a picture


def states(config: JSON, record: JSON, trained: JSON) -> tuple[list[Side], list[str]]:
    """This run, what it started from, random weights, and the other runs; and remarks on what is missing.

    Raises ConfigError for an unknown arm, or when another run shares none.
    """
    folder, arms, notes = Path(config["run"]["dir"]), config["arm"], []
    plain = all(spec.weights == "random" for spec in settings.arm_specs(trained).values())
    about = f"{folder}, method {record['method']}, as it ended"
    sides = [Side(THIS, about, load_arms({"weights": "run", "arm": arms}, folder, trained))]
    began = "random weights, which it started from" if plain else "the weights it started from"
    for name, said, weights in ((INITIAL, began, "initial"), *(() if plain else ((RANDOM, "untrained", "random"),))):
        try:
            sides.append(Side(name, said, load_arms({"weights": weights, "arm": arms}, folder, trained)))
        except ConfigError as why:
            notes.append(f"The {name} weights are left out: {'; '.join(why.problems)}")
    asked = config["against"] or []
    others = {Path(path): finished(Path(path), "against") for path in ([asked] if isinstance(asked, str) else asked)}
    names = _names({place: read["method"] for place, (read, _) in others.items()})
    sides += [_other(place, names[place], *others[place], list(sides[0].arms), notes) for place in others]
    return sides, notes


def _names(methods: dict[Path, str]) -> dict[Path, str]:
    """What other runs are called above pictures: by their folder, where that tells them apart, else by their method."""
    folders = {place: place.resolve().name for place in methods}
    taken = [THIS, INITIAL, RANDOM, *folders.values()]
    named: dict[Path, str] = {}
    for place, name in folders.items():
        short = name if taken.count(name) == 1 else methods[place]
        short = short if len(short) <= LETTERS else f"{short[: LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
        again = sum(known.partition(" #")[0] == short for known in named.values())
        named[place] = f"{short} #{again + 1}" if again else short
    return named


def _other(folder: Path, name: str, record: JSON, trained: JSON, arms: list[str], notes: list[str]) -> Side:
    """The arms of another run that have the names of this one's."""
    there = list(settings.arm_specs(trained))
    shared = [arm for arm in arms if arm in there]
    if not shared:
        raise ConfigError(
            f"against={folder} has the arms {', '.join(there)}, of which this run shows {', '.join(arms)}: none"
        )
    if missing := [arm for arm in arms if arm not in there]:
        notes.append(f"The run in {folder} has no arm {', '.join(missing)}.")
    if collapse := Run(folder, "", record).collapse:
        notes.append(f"The run in {folder} collapsed in pretraining ({', '.join(one['arm'] for one in collapse)}).")
    arms_there = load_arms({"weights": "run", "arm": shared}, folder, trained)
    models = ", ".join(f"{arm} {encoder.spec.model}" for arm, encoder in arms_there.items())
    return Side(name, f"the run in {folder}, method {record['method']}: {models}", arms_there)


def find_images(config: JSON, trained: JSON, build: Build) -> tuple[Manifest, Tensor]:
    """The set to look at, and the ids drawn from it: of the folder `images`, else those that the run held back."""
    path = config["images"]
    _, manifest = asked_for(path, trained, build, Path(config["run"]["dir"]))
    splits = ("test", "val", "train") if path is None else (None,)
    ids = next((some for split in splits if len(some := manifest.rows(split))), manifest.rows())
    if not len(ids):
        raise DataError(f"{manifest.name} holds no image that can be read")
    return manifest, drawn(manifest, ids, config["most"], config["seed"])


def drawn(manifest: Manifest, ids: Tensor, most: int, seed: int) -> Tensor:
    """At most `most` of `ids`, by chance, all (first) classes in turn, so that rare ones are seen too."""
    turns: Counter[str] = Counter()
    order = []
    for place, i in enumerate(np.random.default_rng(seed).permutation(ids.numpy()).tolist()):
        name = manifest.labels[i].split("|")[0]
        order.append((turns[name], place, i))
        turns[name] += 1
    return torch.tensor([i for *_, i in sorted(order)[:most]])


def read_images(
    config: JSON, trained: JSON, build: Build, manifest: Manifest, ids: Tensor, sides: list[Side], place: Place
) -> Images:
    """The images in every size that an encoder takes."""
    node = stream_for(trained["stream"], config["images"]) | {"workers": 0}
    sizes = {encoder.image_size for side in sides for encoder in side.arms.values()}
    pixels = {}
    for size in sorted(sizes):
        plan = Plan(ids, min(config["batch_size"], len(ids)), seed=0, shuffle=False, tail="keep")
        with closing(open_stream(node, build, manifest, plan, size, place, keep=False)) as stream:
            pixels[size] = torch.cat([batch.images.cpu() for batch in stream.epoch(0)])
    names = [manifest.labels[i].split("|") for i in ids.tolist()]
    labels = tuple(tuple(name for name in each if name in manifest.classes) for each in names)
    return Images(tuple(manifest.keys[i] for i in ids.tolist()), labels, pixels)
