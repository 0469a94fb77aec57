"""`cass-scale evaluate`: scores of a run's encoders on held-back images; one record per protocol and weights."""

from __future__ import annotations

import shutil
import time
import warnings
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from cass_scale import dist, encoders, precision, records
from cass_scale.cli import compose_config
from cass_scale.console import Console
from cass_scale.data.layouts import shard_format
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
from cass_scale.ledger import Todo
from cass_scale.locks import lock
from cass_scale.meter import Meter
from cass_scale.run import Run
from cass_scale.types import JSON, Call, Stream, ViewSpec
from cass_scale.verbs import settings
from cass_scale.verbs.folder import MANIFEST
from cass_scale.verbs.wire import PACKAGES, Build, Place, arm_seeds, choose_device, open_place, open_stream, without

Rows = dict[str, Tensor]  # "train", "val", "test" -> manifest ids; "val" may be empty


def run(config: JSON, build: Build, call: Call) -> JSON:
    """Evaluate the run in `run.dir`; returns the record that it writes there."""
    started = time.perf_counter()
    folder, trained = read_run(config)
    device = choose_device(config["device"])
    resolved = precision.resolve(config["precision"], device)
    console = Console(quiet=call.quiet)
    other = other_data(config, trained, folder)
    manifest: Manifest = build(without(other or trained["data"], "noise"))
    rows, split = held_back(manifest)
    job = Job(config, trained, build, manifest, rows, console)
    counts = f"{len(rows['train'])} images to learn from, {len(rows['test'])} ({split}) held back"
    console.say(f"{job.protocol['name']} on {manifest.name}: {counts}")
    if call.dry_run:
        console.say("nothing was started (--dry-run)")
        return {"protocol": job.protocol, "n_train": len(rows["train"]), "n_test": len(rows["test"]), "split": split}
    place = open_place(device, resolved, project=folder, trackers=[])
    arms = load_arms(config, folder, trained)
    name = "-".join([job.protocol["name"], config["weights"], *([manifest.name] if other else [])])
    name += f"-{'-'.join(arms)}" if config["arm"] else ""  # some arms do not replace the scores of all
    (folder / "evaluate").mkdir(exist_ok=True)
    with lock(folder), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tuned = job.protocol["name"] == "finetune"
        found = by_finetuning(job, arms, place, folder / "evaluate" / name) if tuned else by_features(job, arms, place)
    record = describe(job, split, place, call) | {
        "arms": found,
        "warnings": sorted({str(w.message) for w in caught if issubclass(w.category, UserWarning)}),
        "seconds": time.perf_counter() - started,
        "finished": records.now(),
    }
    records.write_json(folder / "evaluate" / f"{name}.json", record)
    for arm, row in found.items():
        numbers = "  ".join(f"{key} {value:.3f}" for key, value in row.items() if isinstance(value, float))
        console.say(f"{arm:>8}  {numbers}")
    return record


@dataclass(frozen=True)
class Job:
    """What is evaluated: the verb's configuration, the run's own, and the labelled images."""

    config: JSON
    trained: JSON
    build: Build
    manifest: Manifest
    rows: Rows
    console: Console

    @property
    def protocol(self) -> JSON:
        """Settings of the protocol."""
        return dict(self.config["protocol"])

    @property
    def image_size(self) -> int:
        """Side of the images that the encoders take."""
        return int(self.trained["arms"]["image_size"])

    def stream(self, ids: Tensor, place: Place, *, batch: int, shuffle: bool = False, keep: bool = False) -> Stream:
        """Labelled batches of `ids`; decoded images are kept in memory where they are read more than once."""
        plan = Plan(
            ids, min(batch, len(ids)), seed=self.config["seed"], shuffle=shuffle, tail="drop" if shuffle else "keep"
        )
        node = stream_for(self.trained["stream"], self.config["data"]["path"])
        more = {"keep": keep, "with_labels": True}
        return open_stream(node, self.build, self.manifest, plan, self.image_size, place, **more)


def describe(job: Job, split: str, place: Place, call: Call) -> JSON:
    """The part of the record that is known before anything is computed."""
    manifest = job.manifest
    return {
        "schema": records.SCHEMA,
        "protocol": job.protocol["name"],
        "settings": job.protocol,
        "weights": job.config["weights"],
        "data": {"name": manifest.name, "fingerprint": manifest.fingerprint(), "synthetic": manifest.synthetic},
        "split": split,
        "n_train": len(job.rows["train"]),
        "n_test": len(job.rows["test"]),
        "classes": list(manifest.classes),
        "multilabel": manifest.multilabel,
        "seed": job.config["seed"],
        "precision": place.precision.name,
        "command": call.command,
        "git": records.git_state(),
        "versions": records.versions(PACKAGES),
        "device": place.record(),
    }


def read_run(config: JSON) -> tuple[Path, JSON]:
    """The run folder and its configuration, with every problem of the command at once."""
    problems = Problems()
    settings.check_values(config, settings.EVALUATE, problems)
    problems.check(config["run"]["dir"] is not None, "run.dir is missing: the folder that `cass-scale pretrain` wrote")
    one = dist.world() == 1
    problems.check(one, "evaluate runs in one process: start it without accelerate launch, torchrun or srun -n")
    problems.raise_if_any()
    folder = Path(config["run"]["dir"])
    record = records.read(folder)
    trained: JSON = yaml.safe_load((folder / records.CONFIG).read_text())
    if trained["data"].get("path"):
        trained["data"]["path"] = record["data"]["path"]  # absolute: the run may have been started elsewhere
    if config["weights"] == "run" and record["status"] != "done":
        raise ConfigError(
            f"run.dir={folder} is not finished (status {record['status']}): run its command again to finish it "
            f"({record['command']}), or take weights=initial or weights=random"
        )
    if len(record["collapse"]) and config["weights"] == "run":
        Console().warn(
            f"{folder} collapsed in training ({', '.join(c['arm'] for c in record['collapse'])}); scored all the same"
        )
    return folder, trained


def other_data(config: JSON, trained: JSON, folder: Path) -> JSON | None:
    """Configuration of another set to score on, cut and shown as the run's own was; None for that one itself."""
    path = config["data"]["path"]
    if not path:
        return None
    window = Manifest.read(folder / MANIFEST).window
    shown: JSON = {"path": path, "window": window.value if window else "auto"}
    if shard_format(path):
        return {"_target_": "cass_scale.data.shards.shards", **shown}
    cut = {key: trained["data"][key] for key in ("slices", "tiles") if key in trained["data"]}
    return {"_target_": "cass_scale.data.sources.folder", **shown, **cut}


def stream_for(trained: JSON, path: str | None) -> JSON:
    """The run's stream, or for another set the one that can read it."""
    if path is None:
        return trained
    if trained["_target_"].endswith(".DaliStream") and shard_format(path) != "ffcv":  # it reads files and tars
        return trained
    kinds = {None: "folder.FolderStream", "webdataset": "webdataset.WebDatasetStream", "ffcv": "ffcv.FFCVStream"}
    kind = shard_format(path)
    keys = ("workers",) if kind == "ffcv" else ("workers", "cache_bytes")
    return {key: trained[key] for key in keys if key in trained} | {"_target_": f"cass_scale.data.{kinds[kind]}"}


def held_back(manifest: Manifest) -> tuple[Rows, str]:
    """Labelled ids by part, and the name of the part that is scored: test, or val where there is no test.

    Raises DataError when the set has no labels or no held-back images.
    """
    name = manifest.name
    if not manifest.classes:
        raise DataError(f"{name} has no labels to score with: add labels.csv (columns path,label), or class folders")
    labelled = manifest.labelled()
    part = {split: (ids := manifest.rows(split))[labelled[ids]] for split in ("train", "val", "test")}
    split = "test" if len(part["test"]) else "val"
    for needed, lack in ((split, "images to hold back"), ("train", "training images")):
        if not len(part[needed]):
            raise DataError(f"{name} has no labelled {lack}: give labels.csv a column split (train, val, test)")
    if split == "test":
        return part, split
    return {"train": part["train"], "val": part["train"][:0], "test": part["val"]}, split


def load_arms(config: JSON, folder: Path, trained: JSON) -> dict[str, Encoder]:
    """Encoders by arm: as the run left them, as it found them, or random. Raises ConfigError for an unknown arm."""
    problems = Problems()
    trained = trained | {"transformer_args": {}}  # these are of pretraining: scores compare across methods without
    specs = settings.arm_specs(trained)
    if config["weights"] == "initial":
        settings.check_arms(trained, problems)
    asked = config["arm"] or list(specs)
    wanted = [asked] if isinstance(asked, str) else list(asked)
    beside = sorted(path.stem for path in (folder / "export").glob("*.safetensors"))  # e.g. DINO's student
    known = list(dict.fromkeys([*specs, *(beside if config["weights"] == "run" else [])]))
    for name in wanted:
        problems.check(name in known, f"arm={name}: this run has {', '.join(known)}")
    problems.raise_if_any()
    if config["weights"] == "run":
        return {name: encoders.load_export(folder / "export" / f"{name}.safetensors") for name in wanted}

    def spec(name: str) -> ArmSpec:
        return replace(specs[name], weights="random") if config["weights"] == "random" else specs[name]

    seeds = arm_seeds(trained)  # as pretraining drew them
    return {name: encoders.build(spec(name), trained["arms"]["image_size"], seeds[name])[0] for name in wanted}


def by_features(job: Job, arms: dict[str, Encoder], place: Place) -> JSON:
    """kNN or linear probe on frozen features; scores per arm."""
    classes, multilabel, protocol = job.manifest.classes, job.manifest.multilabel, job.protocol
    for encoder in arms.values():
        encoder.to(place.device)

    def features(part: str) -> Features:
        with closing(job.stream(job.rows[part], place, batch=job.config["batch_size"])) as stream:
            return extract(arms, stream, place.accelerator.autocast)

    train, test = features("train"), features("test")
    val = features("val") if protocol["name"] == "linear" and len(job.rows["val"]) else None
    found = {}
    for name in arms:
        known, asked = (train.by_arm[name], train.labels), test.by_arm[name]
        extra: JSON = {}
        if protocol["name"] == "knn":
            keys = {"k": protocol["k"], "temperature": protocol["temperature"]}
            probability = knn(*known, asked, classes=len(classes), multilabel=multilabel, **keys)
        else:
            held = {"val_x": val.by_arm[name], "val_y": val.labels} if val else {"groups": train.groups}
            probability, extra["c"] = linear(
                *known, asked, classes=len(classes), multilabel=multilabel, seed=job.config["seed"], **held
            )
        found[name] = scores(test.labels, probability, classes=classes, multilabel=multilabel) | extra
    return found


def by_finetuning(job: Job, arms: dict[str, Encoder], place: Place, folder: Path) -> JSON:
    """End-to-end fine-tuning, one run folder per arm inside the evaluation's; scores per arm."""
    protocol, manifest, rows = job.protocol, job.manifest, job.rows
    if not len(rows["val"]):
        rows = rows | carve(manifest, rows["train"], job.config["seed"])
    batch, labels, found = protocol["batch_size"], manifest.label_tensor(), {}
    size = f"arms.image_size={job.image_size}"
    views: ViewSpec = job.build(compose_config("pretrain", [f"views={protocol['views']}", size])["views"])
    streams = {"train": job.stream(rows["train"], place, batch=batch, shuffle=True, keep=True)}
    streams |= {
        part: job.stream(rows[part], place, batch=job.config["batch_size"], keep=True) for part in ("val", "test")
    }
    steps = streams["train"].steps_per_epoch
    size = min(batch, len(rows["train"]))
    todo = Todo(
        epochs=protocol["epochs"], batch_size=size, seed=job.config["seed"],
        log_every=steps, observe_every=steps, save_every=steps, best="val/macro_f1",
    )  # fmt: skip
    chosen = labels[rows["train"]]
    counts = chosen.sum(0) if manifest.multilabel else torch.bincount(chosen, minlength=len(manifest.classes))
    for name, encoder in arms.items():
        here = folder / name
        begin_or_continue(here, {
            "verb": "finetune", "arm": name, "settings": protocol, "seed": job.config["seed"],
            "precision": place.precision.name, "data": manifest.fingerprint(), "encoder": encoders.digest(encoder),
        })  # fmt: skip
        run = Run(here, Meter(place.device, place.world), job.console)
        probability = finetune(
            name, encoder, streams, manifest.classes, counts, views, place.accelerator, todo, run,
            lr=protocol["lr"], weighting=protocol["weighting"],
        )  # fmt: skip
        run.update(status="done", finished=records.now())
        place.accelerator.free_memory()  # it holds on to every model that it has prepared
        truth = labels[rows["test"]].numpy()
        found[name] = scores(truth, probability, classes=manifest.classes, multilabel=manifest.multilabel)
    for stream in streams.values():
        stream.close()
    return found


def begin_or_continue(folder: Path, about: JSON) -> None:
    """Keep what a killed fine-tuning of exactly this left, to go on from there; anything else was another one's."""
    old = records.read(folder) if (folder / records.RUN).exists() else {}
    if old | about != old:
        shutil.rmtree(folder, ignore_errors=True)
        records.create(folder, about)


def carve(manifest: Manifest, ids: Tensor, seed: int) -> Rows:
    """A tenth of the training images for validation, stratified, never splitting a group."""
    picked = ids.tolist()
    parts = assign([manifest.labels[i] for i in picked], [manifest.groups[i] for i in picked], (0.9, 0.1, 0.0), seed)
    chosen = np.array(parts)
    return {part: ids[torch.from_numpy(chosen == part)] for part in ("train", "val")}
