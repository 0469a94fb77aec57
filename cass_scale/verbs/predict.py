"""`cass-scale predict`: images in, a CSV out, by the heads that an evaluation left; or the encoders' features."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cass_scale import encoders, precision
from cass_scale.console import Console
from cass_scale.data.folder import FolderStream
from cass_scale.data.layouts import Listing, walk
from cass_scale.data.manifest import Manifest
from cass_scale.data.parts import Cut
from cass_scale.data.plan import Plan
from cass_scale.data.sources import Found, gather
from cass_scale.encoders import Encoder
from cass_scale.errors import EXIT_DATA, EXIT_OK, ConfigError, DataError, Problems
from cass_scale.evaluation import heads
from cass_scale.evaluation.features import embed
from cass_scale.evaluation.heads import Kept
from cass_scale.evaluation.metrics import Array, Floats
from cass_scale.records import atomic_write_bytes
from cass_scale.types import JSON, Call
from cass_scale.verbs import rules, settings
from cass_scale.verbs.folder import MANIFEST, choose, exported, finished
from cass_scale.verbs.wire import Place, choose_device, open_place, workers

NEEDED = {
    "run.dir": "the folder that `cass-scale pretrain` wrote",
    "images": "a folder of images, or one image",
    "out": "the file to write, say out=predictions.csv",
}
THRESHOLD = 0.5  # of a label, where an image may have several


@dataclass(frozen=True)
class Team:
    """Who answers: encoders by arm, and the head of each, unless features alone are wanted."""

    encoders: dict[str, Encoder]
    heads: dict[str, Kept]
    name: str

    @property
    def kept(self) -> Kept:
        """Any of the heads: all have the same classes."""
        return next(iter(self.heads.values()))

    def probability(self, features: dict[str, Array]) -> Floats:
        """The mean of the arms' answers, [B, C]."""
        return np.asarray(np.mean([kept.head(features[arm]) for arm, kept in self.heads.items()], axis=0))


def run(config: JSON, build: Callable[..., Any], call: Call) -> JSON:
    """Answer every image that can be read; `exit_code` is 3 when too many cannot."""
    folder, out = check(config)
    record, trained = finished(folder)
    device = choose_device(config["device"])
    resolved = precision.resolve(config["precision"], device)
    console = Console(quiet=call.quiet)
    team = find_team(config, folder, record)
    if record["collapse"]:
        console.warn(f"{folder} collapsed in training: its answers may be worth nothing; see its scores")
    manifest = find_images(Path(config["images"]), folder, trained, build, console)
    console.say(f"{len(manifest)} images in {manifest.root}, answered by {team.name}")
    found: JSON = {"out": str(out), "images": len(manifest), "bad": [vars(bad) for bad in manifest.bad]}
    if call.dry_run:
        console.say(f"nothing was started (--dry-run); {out} would be written")
        return found
    place = open_place(device, resolved, project=folder, trackers=[])
    batches = work(manifest, team, place, config, console)
    if config["features"]:
        data = archive(manifest, list(batches))
    else:
        probability = np.concatenate([team.probability(features) for features in batches])
        said = words(team.kept, probability)
        counts = ", ".join(f"{n} {word or 'none'}" for word, n in Counter(said).most_common())
        console.say(f"found: {counts}")
        data = table(manifest, team, said, probability)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(out, data)
    console.say(f"written: {out}")
    return found | {"by": team.name, "exit_code": judge(manifest, config["data"]["max_bad"], console)}


def check(config: JSON) -> tuple[Path, Path]:
    """The run's folder and the file to write; every problem of the values at once."""
    problems = Problems()
    settings.check_given(config, NEEDED, problems)
    settings.check_values(config, rules.PREDICT, problems)
    problems.raise_if_any()
    out = Path(config["out"]).expanduser().absolute()
    kind = ".npz" if config["features"] else ".csv"
    what = f"out={config['out']}: features={str(config['features']).lower()} writes a file *{kind}"
    problems.check(out.suffix.lower() == kind, what)
    problems.check(
        settings.writable(out.parent) and not out.is_dir(), f"out={out} cannot be written; name another file"
    )
    problems.check(Path(config["images"]).exists(), f"images={config['images']} is not there")
    problems.raise_if_any()
    return Path(config["run"]["dir"]), out


def find_team(config: JSON, folder: Path, record: JSON) -> Team:
    """Who was asked for. Raises ConfigError when the run has no such arm or evaluation, or several."""
    problems = Problems()
    if config["features"] and config["evaluation"] is None:
        paths = choose(exported(folder, record), config["arm"], problems)
        problems.raise_if_any()
        return Team({arm: encoders.load_export(path) for arm, path in paths.items()}, {}, ", ".join(paths))
    name, arms = find_evaluation(folder, config["evaluation"])
    chosen = choose(dict.fromkeys(arms), config["arm"], problems)
    problems.raise_if_any()
    loaded = {arm: heads.load(folder, name, arm) for arm in chosen}
    team = Team(
        {arm: encoder for arm, (encoder, _) in loaded.items()},
        {} if config["features"] else {arm: kept for arm, (_, kept) in loaded.items()},
        f"{', '.join(chosen)} of {name}",
    )
    if len({(kept.classes, kept.multilabel) for _, kept in loaded.values()}) > 1:
        raise DataError(f"the arms of {folder / 'evaluate' / name} know different classes: evaluate the run again")
    return team


def find_evaluation(folder: Path, asked: str | None) -> tuple[str, list[str]]:
    """The evaluation that answers, and its arms."""
    there = heads.kept(folder)
    if not there:
        raise ConfigError(
            f"run.dir={folder} has learnt no classes yet: first run `cass-scale evaluate run.dir={folder} "
            "protocol=linear`, or protocol=finetune"
        )
    if asked is None and len(there) > 1:
        raise ConfigError(f"evaluation is missing: this run has {', '.join(there)}; name the one that is to answer")
    name = asked or next(iter(there))
    if name not in there:
        raise ConfigError(f"evaluation={name}: this run has {', '.join(there)}")
    return name, there[name]


def find_images(place: Path, run: Path, trained: JSON, build: Callable[..., Any], console: Console) -> Manifest:
    """All images of a folder, whatever else lies there, or one image; unreadable ones are listed, not refused.

    Volumes and slides are cut, and 16 bits shown, as the run's own were.
    """
    place = place.expanduser().absolute()
    keys = [place.name] if place.is_file() else list(walk(place, "images"))
    nothing = [""] * len(keys)
    root = place.parent if place.is_file() else place
    window = Manifest.read(run / MANIFEST).window
    cuts = {name: build(trained["data"][name]) for name in ("slices", "tiles") if name in trained["data"]}
    cut = Cut(**cuts, window=window.fixed if window else None)
    found = gather(Found(root, {}, Listing(keys, nothing, nothing, nothing, [])), max_bad=1.0, cut=cut)
    if window and found.depth == 8:
        console.warn(f"images of 8 bit among those in {root}: they are not shown under the run's window {window.value}")
        return found
    return replace(found, window=window)


def work(manifest: Manifest, team: Team, place: Place, config: JSON, console: Console) -> Iterator[dict[str, Array]]:
    """Features by arm of one batch after the other, in the order of the manifest."""
    for encoder in team.encoders.values():
        encoder.to(place.device)
    plan = Plan(manifest.rows(), min(config["batch_size"], len(manifest)), seed=0, shuffle=False, tail="keep")
    size = max(encoder.image_size for encoder in team.encoders.values())
    hands = workers(config["workers"])
    stream = FolderStream(manifest, plan, size=size, workers=hands, device=place.device, cache_bytes=0)
    done = 0
    with closing(stream), console.bar(len(manifest), 0, unit="image"):
        for batch, features in embed(team.encoders, stream, place.accelerator.autocast):
            done += len(batch.images)
            console.step(done)
            yield dict(features)


def words(kept: Kept, probability: Floats) -> list[str]:
    """The likeliest class of every image, or all labels above THRESHOLD, joined with `|` as in a labels.csv."""
    if kept.multilabel:
        return ["|".join(c for c, p in zip(kept.classes, row, strict=True) if p > THRESHOLD) for row in probability]
    return [kept.classes[i] for i in probability.argmax(axis=1)]


def table(manifest: Manifest, team: Team, said: list[str], probability: Floats) -> bytes:
    """The CSV: a row per image, by path; the unreadable ones have a reason in place of an answer."""
    arm = "ensemble" if len(team.heads) > 1 else next(iter(team.heads))
    rows = [
        [key, word, arm, *(f"{p:.6g}" for p in row), ""]
        for key, word, row in zip(manifest.keys, said, probability, strict=True)
    ]
    rows += [[bad.key, "", "", *[""] * len(team.kept.classes), bad.why] for bad in manifest.bad]
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["path", "predicted", "arm", *(f"p_{name}" for name in team.kept.classes), "error"])
    out.writerows(sorted(rows))
    return text.getvalue().encode("utf-8", "surrogateescape")  # a file's name need not be UTF-8


def archive(manifest: Manifest, batches: list[dict[str, Array]]) -> bytes:
    """The .npz: `path` [N], `features/<arm>` [N, dim], and `bad` and `why` of the unreadable ones."""
    arrays: dict[str, Any] = {f"features/{arm}": np.concatenate([one[arm] for one in batches]) for arm in batches[0]}
    texts = {"path": manifest.keys, "bad": [b.key for b in manifest.bad], "why": [b.why for b in manifest.bad]}
    data = io.BytesIO()
    np.savez(data, **arrays | {name: np.array(column, dtype=np.str_) for name, column in texts.items()})
    return data.getvalue()


def judge(manifest: Manifest, max_bad: float, console: Console) -> int:
    """The exit code; unreadable images are said to be there either way."""
    bad, files = len(manifest.bad), len(manifest) + len(manifest.bad)
    if bad:
        console.warn(f"{bad} of {files} images cannot be read: {manifest.bad[0].key} ({manifest.bad[0].why}) ...")
    return EXIT_DATA if bad > max_bad * files else EXIT_OK
