"""`cass-scale evaluate`: scores of a run's encoders on held-back images; one record per protocol and weights."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from cass_scale import encoders, precision, records
from cass_scale.console import Console
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.data.splits import assign
from cass_scale.encoders import ArmSpec, Encoder
from cass_scale.errors import ConfigError, DataError, Problems
from cass_scale.evaluation.features import Features, extract
from cass_scale.evaluation.finetune import finetune
from cass_scale.evaluation.knn import knn
from cass_scale.evaluation.linear import linear
from cass_scale.evaluation.metrics import scores
from cass_scale.meter import Meter
from cass_scale.run import Run, lock
from cass_scale.train import Todo
from cass_scale.types import JSON, Call, Stream, ViewSpec
from cass_scale.verbs import settings
from cass_scale.verbs.wire import PACKAGES, Build, Place, choose_device, open_place, open_stream, without

Rows = dict[str, Tensor]  # "train", "val", "test" -> manifest ids; "val" may be empty


def run(config: JSON, build: Build, call: Call) -> JSON:
    """Evaluate the run in `run.dir`; returns the record that it writes there."""
    started = time.perf_counter()
    folder, trained = read_run(config)
    device = choose_device(config["device"])
    resolved = precision.resolve(config["precision"], device)
    console = Console(quiet=call.quiet)
    source = trained["data"] if config["data"]["path"] is None else other_data(config["data"]["path"])
    manifest: Manifest = build(without(source, "noise"))
    rows, split = held_back(manifest, config["seed"])
    protocol = config["protocol"]
    name = f"{protocol['name']}-{config['weights']}" + (f"-{manifest.name}" if config["data"]["path"] else "")
    plan = f"{protocol['name']} on {len(rows['test'])} {split} images of {manifest.name}, {len(rows['train'])} for training"
    console.say(plan + (" (--dry-run: nothing was started)" if call.dry_run else ""))
    if call.dry_run:
        return {"protocol": protocol, "n_train": len(rows["train"]), "n_test": len(rows["test"]), "split": split}
    place = open_place(device, resolved, project=folder, trackers=[])
    arms = load_arms(config, folder, trained)
    (folder / "evaluate").mkdir(exist_ok=True)
    with lock(folder), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if protocol["name"] == "finetune":
            found = by_finetuning(config, build, trained, arms, manifest, rows, place, folder / "evaluate" / name, console)
        else:
            found = by_features(config, build, trained, arms, manifest, rows, place)
    record = {
        "schema": records.SCHEMA,
        "protocol": protocol["name"],
        "settings": protocol,
        "weights": config["weights"],
        "data": {"name": manifest.name, "fingerprint": manifest.fingerprint(), "synthetic": manifest.synthetic},
        "split": split,
        "n_train": len(rows["train"]),
        "n_test": len(rows["test"]),
        "classes": list(manifest.classes),
        "multilabel": manifest.multilabel,
        "arms": found,
        "warnings": sorted({str(w.message) for w in caught if issubclass(w.category, UserWarning)}),
        "seconds": time.perf_counter() - started,
        "seed": config["seed"],
        "precision": resolved.name,
        "command": call.command,
        "git": records.git_state(),
        "versions": records.versions(PACKAGES),
        "device": place.record(),
        "finished": records.now(),
    }
    records.write_json(folder / "evaluate" / f"{name}.json", record)
    show(console, record)
    return record


def read_run(config: JSON) -> tuple[Path, JSON]:
    """The run folder and its configuration, with every problem of the command at once."""
    problems = Problems()
    settings.check_values(config, settings.EVALUATE, problems)
    problems.check(config["run"]["dir"] is not None, "run.dir is missing: the folder that `cass-scale pretrain` wrote")
    problems.raise_if_any()
    folder = Path(config["run"]["dir"])
    record = records.read(folder)
    trained: JSON = yaml.safe_load((folder / records.CONFIG).read_text())
    if config["weights"] == "run" and record["status"] != "done":
        raise ConfigError(
            f"run.dir={folder} is not finished (status {record['status']}): run its command again to finish it "
            f"({record['command']}), or take weights=initial or weights=random"
        )
    if len(record["collapse"]) and config["weights"] == "run":
        Console().warn(f"{folder} collapsed during training ({', '.join(c['arm'] for c in record['collapse'])}); scored all the same")
    return folder, trained


def other_data(path: str) -> JSON:
    """Configuration of another set to score on."""
    return {"_target_": "cass_scale.data.sources.folder", "path": path}


def held_back(manifest: Manifest, seed: int) -> tuple[Rows, str]:
    """Labelled ids by part, and the name of the part that is scored: test, or val where there is no test.

    Raises DataError when the set has no labels or no held-back images.
    """
    if not manifest.classes:
        raise DataError(f"{manifest.name} has no labels to score with: add labels.csv (columns path,label), or class folders")
    labels = manifest.label_tensor()
    labelled = labels >= 0 if labels.ndim == 1 else torch.tensor([bool(text) for text in manifest.labels])
    part = {split: (ids := manifest.rows(split))[labelled[ids]] for split in ("train", "val", "test")}
    split = "test" if len(part["test"]) else "val"
    if not len(part[split]) or not len(part["train"]):
        raise DataError(f"{manifest.name} has no labelled {'images to hold back' if len(part['train']) else 'training images'}: give labels.csv a column split (train, val, test)")
    if split == "test":
        return part, split
    return {"train": part["train"], "val": part["train"][:0], "test": part["val"]}, split


def load_arms(config: JSON, folder: Path, trained: JSON) -> dict[str, Encoder]:
    """Encoders by arm: as the run left them, as it found them, or random. Raises ConfigError for an unknown arm."""
    problems = Problems()
    specs = settings.arm_specs(trained, problems)
    wanted = config["arms"] or list(specs)
    for name in wanted:
        problems.check(name in specs, f"arms={name}: this run has {', '.join(specs)}")
    problems.raise_if_any()
    if config["weights"] == "run":
        return {name: encoders.load_export(folder / "export" / f"{name}.safetensors") for name in wanted}

    def spec(name: str) -> ArmSpec:
        return replace(specs[name], weights="random") if config["weights"] == "random" else specs[name]

    seeds = {name: trained["seed"] + i for i, name in enumerate(specs)}  # as pretraining drew them
    return {name: encoders.build(spec(name), trained["arms"]["image_size"], seeds[name])[0] for name in wanted}


def by_features(config: JSON, build: Build, trained: JSON, arms: dict[str, Encoder], manifest: Manifest, rows: Rows, place: Place) -> JSON:
    """kNN or linear probe on frozen features; scores per arm."""
    size, classes, multilabel = trained["arms"]["image_size"], manifest.classes, manifest.multilabel
    for encoder in arms.values():
        encoder.to(place.device)

    def features(ids: Tensor) -> Features | None:
        if not len(ids):
            return None
        plan = Plan(ids, min(config["batch_size"], len(ids)), seed=0, shuffle=False, tail="keep")
        stream = open_stream({**trained["stream"], "cache_bytes": 0}, build, manifest, plan, size, place, with_labels=True)
        return extract(arms, stream, place.accelerator.autocast)

    train, val, test = features(rows["train"]), features(rows["val"]), features(rows["test"])
    assert train is not None and test is not None
    found = {}
    for name in arms:
        extra: JSON = {}
        if config["protocol"]["name"] == "knn":
            keys = config["protocol"]
            probability = knn(
                train.by_arm[name], train.labels, test.by_arm[name],
                classes=len(classes), multilabel=multilabel, k=keys["k"], temperature=keys["temperature"],
            )  # fmt: skip
        else:
            probability, strength = linear(
                train.by_arm[name], train.labels, test.by_arm[name],
                val_x=val.by_arm[name] if val else None, val_y=val.labels if val else None,
                classes=len(classes), multilabel=multilabel, groups=train.groups, seed=config["seed"],
            )  # fmt: skip
            extra = {"c": strength}
        found[name] = scores(test.labels, probability, classes=classes, multilabel=multilabel) | extra
    return found


def by_finetuning(
    config: JSON, build: Build, trained: JSON, arms: dict[str, Encoder], manifest: Manifest, rows: Rows, place: Place, folder: Path, console: Console
) -> JSON:
    """End-to-end fine-tuning, one run folder per arm inside the evaluation's; scores per arm."""
    protocol, size = config["protocol"], trained["arms"]["image_size"]
    if not len(rows["val"]):
        rows = rows | carve(manifest, rows["train"], config["seed"])
    views: ViewSpec = build(trained["views"])
    labels, found = manifest.label_tensor(), {}

    def stream(part: str, shuffle: bool) -> Stream:
        batch = min(protocol["batch_size"] if shuffle else config["batch_size"], len(rows[part]))
        plan = Plan(rows[part], batch, seed=config["seed"], shuffle=shuffle, tail="drop" if shuffle else "keep")
        return open_stream(trained["stream"], build, manifest, plan, size, place, with_labels=True)

    streams = {part: stream(part, part == "train") for part in ("train", "val", "test")}
    steps = streams["train"].steps_per_epoch
    todo = Todo(
        epochs=protocol["epochs"], batch_size=min(protocol["batch_size"], len(rows["train"])), seed=config["seed"],
        log_every=steps, observe_every=steps, save_every=steps, best="val/macro_f1",
    )  # fmt: skip
    chosen = labels[rows["train"]]
    counts = chosen.sum(0) if manifest.multilabel else torch.bincount(chosen, minlength=len(manifest.classes))
    for name, encoder in arms.items():
        here = folder / name
        here.mkdir(parents=True, exist_ok=True)
        if not (here / records.RUN).exists():
            records.create(here, {"verb": "finetune", "arm": name, "settings": protocol})
        run = Run(here, Meter(place.device, place.world), console)
        probability = finetune(
            name, encoder, streams, manifest.classes, counts, replace(views, per_arm="shared"), place.accelerator, todo, run,
            lr=protocol["lr"], weighting=protocol["weighting"],
        )  # fmt: skip
        run.update(status="done", finished=records.now())
        found[name] = scores(truth(labels, rows["test"]), probability, classes=manifest.classes, multilabel=manifest.multilabel)
    return found


def truth(labels: Tensor, ids: Tensor) -> NDArray[np.generic]:
    """Labels of `ids` as the metrics take them."""
    return labels[ids].numpy()


def carve(manifest: Manifest, ids: Tensor, seed: int) -> Rows:
    """A tenth of the training images for validation, stratified, never splitting a group."""
    picked = ids.tolist()
    parts = assign([manifest.labels[i] for i in picked], [manifest.groups[i] for i in picked], (0.9, 0.1, 0.0), seed)
    chosen = np.array(parts)
    return {"train": ids[torch.from_numpy(chosen == "train")], "val": ids[torch.from_numpy(chosen == "val")]}


def show(console: Console, record: JSON) -> None:
    """The scores as lines."""
    for name, row in record["arms"].items():
        numbers = "  ".join(f"{key} {value:.3f}" for key, value in row.items() if isinstance(value, float))
        console.say(f"{name:>8}  {numbers}")
