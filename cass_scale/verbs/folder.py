"""A run folder claimed, begun, compared with what it holds, and closed with how the run ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from cass_scale import records
from cass_scale.data.manifest import Manifest
from cass_scale.encoders import ArmSpec
from cass_scale.errors import CassScaleError, Collapsed, ConfigError, Preempted
from cass_scale.run import Run, differences, lock
from cass_scale.types import JSON, Call
from cass_scale.verbs.wire import PACKAGES, Place, without

# What may differ between a run and its resumption: nothing here changes a weight.
FREE = ("run", "stream", "train.max_steps", "train.log_every", "train.save_every", "train.keep", "train.trackers")


@contextmanager
def claim(folder: Path, config: JSON, manifest: Manifest, place: Place) -> Iterator[bool]:
    """Take the run folder for this process: True when it is new, False when an equal run continues in it.

    Raises ConfigError when it holds something else, listing every key that differs.
    """
    if not place.accelerator.is_main_process:
        yield False
        return
    fresh = not (folder / records.RUN).exists()
    if fresh and folder.is_dir() and any(p.name != ".lock" for p in folder.iterdir()):
        raise ConfigError(f"run.dir={folder} exists and holds no run; choose a new folder, or empty this one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder)
    except OSError as error:
        raise ConfigError(
            f"run.dir={folder} cannot be written: {error.strerror}; choose a folder you may write to"
        ) from error
    with held:
        if not fresh:
            compare(folder, config, manifest)
        yield fresh


def compare(folder: Path, config: JSON, manifest: Manifest) -> None:
    """Raise ConfigError when the run in `folder` was made from another configuration or other data."""
    old = yaml.safe_load((folder / records.CONFIG).read_text())
    changed = [line for line in differences(old, config) if not line.split(":")[0].startswith(FREE)]
    was = records.read(folder)["data"]["fingerprint"]
    if was != manifest.fingerprint():
        changed.append(f"the images or labels themselves: fingerprint {was} -> {manifest.fingerprint()}")
    if changed:
        lines = "; ".join(changed)
        raise ConfigError(
            f"run.dir={folder} holds another run ({lines}): give the same settings to continue it, or another run.dir"
        )


def begin(
    folder: Path,
    config: JSON,
    manifest: Manifest,
    specs: dict[str, ArmSpec],
    steps_per_epoch: int,
    place: Place,
    call: Call,
) -> None:
    """Write what is known before the first step: config.yaml, env.json, manifest.csv, and run.json last."""
    records.atomic_write_text(folder / records.CONFIG, yaml.safe_dump(config, sort_keys=False))
    records.write_json(folder / records.ENV, records.env())
    manifest.write(folder / "manifest.csv")
    steps = config["train"]["epochs"] * steps_per_epoch
    records.create(
        folder,
        {
            "verb": "pretrain",
            "command": call.command,
            "method": config["method"]["name"],
            "objective": config["objective"]["_target_"].rpartition(".")[2],
            "arms": {name: {"model": spec.model, "weights": spec.weights} for name, spec in specs.items()},
            "data": data_record(manifest, config),
            "seed": config["seed"],
            "world_size": place.world,
            "precision": place.precision.name,
            "batch_size": config["train"]["batch_size"],
            "epochs": config["train"]["epochs"],
            "steps": 0,
            "total_steps": min(steps, config["train"]["max_steps"] or steps),
            "image_size": config["arms"]["image_size"],
            "git": records.git_state(),
            "config_hash": records.config_hash(without(config, "run")),
            "versions": records.versions(PACKAGES),
            "device": place.record(),
            "images_seen": 0,
            "metrics": {},
        },
    )


def data_record(manifest: Manifest, config: JSON) -> JSON:
    """What a record says about its data."""
    return {
        "name": manifest.name,
        "path": str(manifest.root),
        "images": len(manifest),
        "classes": list(manifest.classes),
        "multilabel": manifest.multilabel,
        "bad": [{"key": bad.key, "why": bad.why} for bad in manifest.bad],
        "synthetic": manifest.synthetic,
        "noise": config["data"]["noise"],
        "fingerprint": manifest.fingerprint(),
    }


@contextmanager
def outcome(run: Run) -> Iterator[None]:
    """Put how the run ended into its record, whatever happens."""
    run.update(status="running", finished=None, error=None)
    try:
        yield
    except BaseException as error:
        ended = {Preempted: "preempted", Collapsed: "stopped"}
        status = next((word for kind, word in ended.items() if isinstance(error, kind)), "failed")
        text = str(error) if isinstance(error, CassScaleError) else f"{type(error).__name__}: {error}"
        run.update(status=status, finished=records.now(), error=text)
        raise
