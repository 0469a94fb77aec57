"""A run folder claimed, begun, compared with what it holds, and closed with how the run ended."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import yaml

from cass_scale import dist, records
from cass_scale.data.manifest import Manifest
from cass_scale.encoders import ArmSpec
from cass_scale.errors import CassScaleError, Collapsed, ConfigError, DataError, Preempted, Problems
from cass_scale.locks import lock
from cass_scale.run import Run, differences
from cass_scale.types import JSON, Call
from cass_scale.verbs.wire import PACKAGES, Place, without

T = TypeVar("T")

# What may differ between a run and its resumption: nothing here changes a weight. The precision is compared as it
# was resolved, since `auto` means another one on another device.
FREE = (
    "run", "stream", "train.precision", "train.max_steps", "train.log_every", "train.save_every", "train.keep",
    "train.trackers", "train.count_flops", "train.backend", "train.ranks", "train.hang_minutes", "profile",
)  # fmt: skip
MANIFEST = "manifest.csv"


@contextmanager
def claim(folder: Path, config: JSON, manifest: Manifest, place: Place) -> Iterator[bool]:
    """Take the run folder for this process: True when it is new, False when an equal run continues in it.

    Raises ConfigError when it holds something else, listing every key that differs.
    """
    if not place.accelerator.is_main_process:
        yield False
        return
    if folder.is_dir() and not (folder / records.RUN).exists() and not all(map(_of_begin, folder.iterdir())):
        raise ConfigError(f"run.dir={folder} exists and holds no run; choose a new folder, or empty this one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder)
    except OSError as error:
        raise ConfigError(
            f"run.dir={folder} cannot be written: {error.strerror}; choose a folder you may write to"
        ) from error
    with held:
        fresh = not (folder / records.RUN).exists()
        if not fresh:
            compare(folder, config, manifest, place)
        yield fresh


def read_back(folder: Path) -> tuple[JSON, JSON]:
    """A run's record, and its configuration. Raises DataError when it is absent or damaged."""
    record, path = records.read(folder), folder / records.CONFIG
    if not path.is_file():
        raise DataError(f"no {records.CONFIG} in {folder}: name the folder that `cass-scale pretrain` wrote")
    config: JSON = yaml.safe_load(path.read_text())
    if config["data"].get("path"):
        config["data"]["path"] = record["data"]["path"]  # absolute: the run may have been started elsewhere
    return record, config


def refuse_unfinished(folder: Path, record: JSON, key: str = "run.dir", instead: str = "") -> None:
    """Raise ConfigError, naming the configuration's `key`, unless the run is finished; `instead`: what else works."""
    if record["status"] != "done":
        raise ConfigError(
            f"{key}={folder} is not finished (status {record['status']}): run its command again to finish it "
            f"({record['command']}){instead}"
        )


def finished(folder: Path, key: str = "run.dir") -> tuple[JSON, JSON]:
    """Record and configuration of a run that reached its end, as the configuration's `key` names it.

    Raises DataError where there is no run, ConfigError for any other.
    """
    record, config = read_back(folder)
    refuse_unfinished(folder, record, key)
    return record, config


def exported(folder: Path, record: JSON) -> dict[str, Path]:
    """The encoders that the run left, in the order of its arms. Raises DataError when there are none."""
    there = {path.stem: path for path in sorted((folder / "export").glob("*.safetensors"))}
    if not there:
        raise DataError(f"{folder / 'export'} holds no encoder: name the folder that `cass-scale pretrain` wrote")
    return {arm: there[arm] for arm in dict.fromkeys([*record.get("arms", {}), *there]) if arm in there}


def choose(there: Mapping[str, T], asked: str | list[str] | None, problems: Problems) -> dict[str, T]:
    """Those of `there` that were asked for; unknown names are noted."""
    wanted = [asked] if isinstance(asked, str) else asked or list(there)
    for name in wanted:
        problems.check(name in there, f"arm={name}: this run has {', '.join(there)}")
    return {name: there[name] for name in wanted if name in there}


def _of_begin(path: Path) -> bool:
    """Whether a process that was killed in `begin`, before it had a run.json, may have left this file."""
    written = (records.CONFIG, records.ENV, MANIFEST)
    temporary = tuple(f".{name}." for name in (*written, records.RUN))
    return path.name in (".lock", *written) or path.name.startswith(temporary)


def compare(folder: Path, config: JSON, manifest: Manifest, place: Place) -> None:
    """Raise ConfigError when the run in `folder` was made from another configuration or other data."""
    old, record = yaml.safe_load((folder / records.CONFIG).read_text()), records.read(folder)
    changed = [line for line in differences(old, config) if not free(line.split(":")[0])]
    if record["precision"] != place.precision.name:
        changed.append(f"train.precision: {record['precision']} -> {place.precision.name} on this device")
    was = record["data"]["fingerprint"]
    if was != manifest.fingerprint():
        changed.append(f"the images or labels themselves: fingerprint {was} -> {manifest.fingerprint()}")
    if changed:
        lines = "; ".join(changed)
        raise ConfigError(
            f"run.dir={folder} holds another run ({lines}): give the same settings to continue it, or another run.dir"
        )


def free(key: str) -> bool:
    """Whether a key may differ between a run and its resumption."""
    return any(key == name or key.startswith(f"{name}.") for name in FREE)


def check_shared(folder: Path, manifest: Manifest, patience: float = 30.0) -> None:
    """Raise ConfigError on all ranks unless every host sees this run folder and the same data.

    A folder that another host has just made may take `patience` seconds to appear on a network file system.
    """
    until = time.monotonic() + patience
    while not (folder / records.RUN).exists() and time.monotonic() < until:
        time.sleep(0.5)
    started = records.read(folder)["started"] if (folder / records.RUN).exists() else None
    seen = dist.of_all_ranks((started, manifest.fingerprint(), platform.node()))
    (mine, data, _), others = seen[0], seen[1:]
    if apart := sorted({host for there, _, host in others if there != mine}):
        raise ConfigError(
            f"run.dir={folder} is another folder on {', '.join(apart)}: choose one on a file system that all hosts "
            "share, since every rank resumes from it"
        )
    if apart := sorted({host for _, there, host in others if there != data}):
        raise ConfigError(f"data.path holds other images or labels on {', '.join(apart)} than on the first host")


def proceed(folder: Path, config: JSON, steps_per_epoch: int, place: Place, call: Call) -> None:
    """Bring the record of a run that continues up to date: its goal, and under `resumed` what is not as it was."""
    record = records.read(folder)
    new = {key: value for key, value in circumstances(place).items() if record.get(key) != value}
    resumed = [*record.get("resumed", []), {"time": records.now(), **new}] if new else record.get("resumed", [])
    steps = total_steps(config, steps_per_epoch)
    records.update(folder, command=call.command, total_steps=steps, resumed=resumed)
    records.atomic_write_text(folder / records.CONFIG, yaml.safe_dump(config, sort_keys=False))


def circumstances(place: Place) -> JSON:
    """What a run was made with beside its configuration, and may change when it is resumed elsewhere."""
    return {
        "world_size": place.world,
        "backend": place.told.backend,
        "git": records.git_state(),
        "versions": records.versions(PACKAGES),
        "device": place.record(),
        "hardware": place.hardware,
    }


def total_steps(config: JSON, steps_per_epoch: int) -> int:
    """Optimizer steps at which the run ends."""
    steps = int(config["train"]["epochs"] * steps_per_epoch)
    return min(steps, config["train"]["max_steps"] or steps)


def begin(
    folder: Path,
    config: JSON,
    manifest: Manifest,
    specs: dict[str, ArmSpec],
    steps_per_epoch: int,
    place: Place,
    call: Call,
    flops_per_image: float | None,
) -> None:
    """Write what is known before the first step: config.yaml, env.json, manifest.csv, and run.json last."""
    records.atomic_write_text(folder / records.CONFIG, yaml.safe_dump(config, sort_keys=False))
    records.write_json(folder / records.ENV, records.env())
    manifest.write(folder / MANIFEST)
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
            "precision": place.precision.name,
            "batch_size": config["train"]["batch_size"],
            "epochs": config["train"]["epochs"],
            "steps": 0,
            "total_steps": total_steps(config, steps_per_epoch),
            "image_size": config["arms"]["image_size"],
            "config_hash": records.config_hash(without(config, "run")),
            "images_seen": 0,
            "flops_per_image": flops_per_image,
            "metrics": {},
        }
        | circumstances(place),
    )


def data_record(manifest: Manifest, config: JSON) -> JSON:
    """What a record says about its data."""
    return {
        "name": manifest.name,
        "path": manifest.url or str(Path(config["data"].get("path") or manifest.root).expanduser().absolute()),
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
        run.console.note(text if isinstance(error, CassScaleError) else traceback.format_exc())
        run.update(status=status, finished=records.now(), error=text)
        raise
