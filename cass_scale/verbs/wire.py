"""Parts of a run made from plain configuration values: what pretraining and fine-tuning share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, KwargsHandler, broadcast_object_list
from torch import Tensor

from cass_scale import dist, encoders, hardware, hardware_page, machine, norms, optim, precision
from cass_scale.data.manifest import Manifest
from cass_scale.data.noise import NoiseStream
from cass_scale.data.plan import Plan
from cass_scale.encoders import ArmSpec
from cass_scale.errors import ConfigError, DataError
from cass_scale.estimate import Estimate, estimate
from cass_scale.hardware import Limits
from cass_scale.methods.base import Method
from cass_scale.run import Run
from cass_scale.schedule import Rates, cosine, make_schedule
from cass_scale.types import JSON, Progress, Stream
from cass_scale.verbs import settings, spread

Build = Callable[..., Any]
DEEP = ("folder", "webdataset")  # streams that keep 16 bit
SEED_STRIDE = 1_000_003  # a prime no study's list of seeds will span
PACKAGES = (
    "cass-scale", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "scikit-learn",
    "nvidia-dali-cuda130", "ffcv",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a run computes, and how."""

    device: torch.device
    precision: precision.Resolved
    accelerator: Accelerator
    told: spread.Told
    limits: Limits | None = None
    hardware: JSON | None = None  # how the limits are held, for records

    @property
    def rank(self) -> int:
        """This process's rank."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return int(self.accelerator.num_processes)

    @property
    def main(self) -> bool:
        """Whether this rank writes for all."""
        return bool(self.accelerator.is_main_process)

    def agreed(self, value: str) -> str:
        """The main rank's value, on every rank."""
        values = [value]
        broadcast_object_list(values)
        return values[0]

    @property
    def notes(self) -> list[str]:
        """Lines for the console: what is emulated."""
        return [hardware_page.shown(self.hardware)] if self.hardware else []

    def record(self) -> JSON:
        """For run.json."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else machine.cpu_name()
        return {
            "kind": self.device.type,
            "name": name,
            "count": self.world,
            "cores": machine.cores(),
        }


def without(node: JSON, *names: str) -> JSON:
    """A copy of `node` without some keys."""
    return {key: value for key, value in node.items() if key not in names}


def choose_device(asked: str) -> torch.device:
    """The device of this rank. Raises ConfigError when CUDA is asked for and absent."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no CUDA device; use device=cpu, or run `cass-scale doctor`")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def open_place(
    device: torch.device,
    resolved: precision.Resolved,
    *,
    project: Path,
    trackers: list[str],
    handlers: Sequence[KwargsHandler] = (),
    limits: Limits | None = None,
    backend: str = "ddp",
    ranks: int | None = None,
) -> Place:
    """Accelerate set up for the device and precision that were resolved. Under limits the process stays, from here on.

    Raises ConfigError where its own configuration contradicts them, and when there are fewer ranks than asked for.
    """
    told, env = spread.choose(backend, os.environ), dict(os.environ)
    spread.check_precision(resolved, told.backend, env)
    precision.apply(resolved)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it may track the run, not the user
    AcceleratorState._reset_state(reset_partial_state=False)  # a second run in one process may differ in precision
    with spread.ours_alone():
        accelerator = Accelerator(
            mixed_precision=resolved.name if resolved.autocast_dtype else "no",
            cpu=device.type == "cpu",
            log_with=trackers or None,
            project_dir=str(project),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[*handlers, InitProcessGroupKwargs(init_method=dist.init_method())],
        )
    spread.check_ranks(accelerator.num_processes, told.backend, ranks, env)
    held = hardware.hold(limits, resolved, accelerator.device) if limits else None
    return Place(accelerator.device, resolved, accelerator, told, limits, held)


def workers(asked: int | str, limits: Limits | None = None) -> int:
    """Processes that decode beside this rank; auto leaves one core of its share to the rank itself, at most 8.

    Under limits auto is the number of their cores.
    """
    if isinstance(asked, int):
        return asked
    if limits:
        return limits.cores
    cores = machine.cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(0, min(8, cores - 1))


@contextmanager
def tracking(place: Place, run: Run, about: JSON) -> Iterator[None]:
    """Send every metrics row also to the trackers that `place` was opened with; `about` is shown as their settings."""
    place.accelerator.init_trackers("cass_scale", config=about, init_kwargs=beside(run.folder, place))

    def track(row: JSON, step: int) -> None:
        place.accelerator.log({key: value for key, value in row.items() if value is not None}, step=step)

    run.track = track
    try:
        yield
    finally:
        for tracker in place.accelerator.trackers:
            tracker.finish()  # else the next run of this process would write into the same one


def beside(folder: Path, place: Place) -> JSON:
    """What keeps the files of trackers in the run's folder, where their own variables name no other place."""
    asked = {str(name) for name in place.accelerator.log_with}
    if "mlflow" in asked and place.main and not os.environ.get("MLFLOW_TRACKING_URI"):
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{folder.absolute() / 'mlflow.db'}")
    return {"wandb": {"dir": os.environ.get("WANDB_DIR", str(folder))}} if "wandb" in asked else {}


def open_stream(
    stream: JSON,
    build: Build,
    manifest: Manifest,
    plan: Plan,
    size: int,
    place: Place,
    *,
    keep: bool = True,
    **extra: Any,
) -> Stream:
    """A stream of the configured kind over a plan; `keep` decoded images in memory where that kind can.

    Raises ConfigError when it would cut 16 bit to 8.
    """
    kind = stream["_target_"].split(".")[-2]
    if manifest.depth > 8 and kind not in DEEP:
        raise ConfigError(
            f"stream={kind} has 8 bit per channel, the images of {manifest.name} have 16; use stream="
            f"{' or stream='.join(DEEP)}"
        )
    node = stream | {"workers": workers(stream["workers"], place.limits)}
    if not keep and "cache_bytes" in node:
        node["cache_bytes"] = 0
    made: Stream = build(node, manifest=manifest, plan=plan, size=size, device=place.device, **extra)
    return made


def check_stream(stream: JSON) -> None:
    """Raise MissingExtra when the stream's module needs a package that is not there."""
    module = import_module(stream["_target_"].rpartition(".")[0])
    getattr(module, "require", lambda: None)()


def check_needs(config: JSON, method: Method, stream: Stream) -> None:
    """Raise ConfigError when the method needs a field of batches that the stream has not."""
    if lacking := ", ".join(sorted(method.needs - stream.provides)):
        kind, there = config["stream"]["_target_"].rpartition(".")[2], ", ".join(sorted(stream.provides))
        raise ConfigError(
            f"method={config['method']['name']} needs {lacking} of every image, and {kind} has {there} of these data; "
            "a group comes from the column group_id or patient_id of labels.csv"
        )


def probe_images(config: JSON, build: Build, manifest: Manifest, ids: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """Fixed images, uint8 or uint16 [P, 3, S, S], and their ids: the same at every look, in every run of this seed."""
    few = Plan(ids, len(ids), seed=config["seed"], shuffle=False, tail="keep")
    node, size = config["stream"] | {"workers": 0}, config["arms"]["image_size"]
    with closing(noisy(config, open_stream(node, build, manifest, few, size, place, keep=False))) as stream:
        batch = next(iter(stream.epoch(0)))
    return batch.images, batch.index


def noisy(config: JSON, stream: Stream) -> Stream:
    """The stream, or with `data.noise` the same stream with its images replaced by Gaussian noise."""
    return NoiseStream(stream, config["seed"]) if config["data"]["noise"] else stream


def arm_seeds(config: JSON) -> dict[str, int]:
    """A seed for the random weights of each arm: equal architectures differ, also between neighbouring seeds.

    An arm that is trained alone starts from the weights that it has beside the others.
    """
    return {name: config["seed"] + i * SEED_STRIDE for i, name in enumerate(settings.arm_names(config))}


def method_class(config: JSON, build: Build) -> type[Method]:
    """The class of the configured method: what it needs is known before one is made."""
    kind: type[Method] = build({"_target_": config["method"]["_target_"], "_partial_": True}).func
    return kind


def make_method(config: JSON, build: Build, specs: dict[str, ArmSpec], *, load: bool = True) -> Method:
    """Encoders from their specifications, then the method around them. Same seed, same random weights."""
    size, seed, seeds = config["arms"]["image_size"], config["seed"], arm_seeds(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + len(seeds) * SEED_STRIDE)  # heads are initialised by the method
        arms = {name: encoders.build(spec, size, seeds[name], load=load) for name, spec in specs.items()}
        method: Method = build(without(config["method"], "name"), arms, build(config["objective"]), seed=seed)
    if load:
        norms.convert(method, config["train"]["batch_norm"])
        for encoder in method.encoders().values():
            speed_up(encoder, config["train"])
    return method


def cost(
    config: JSON, build: Build, specs: dict[str, ArmSpec], micro_batch: int, activation_bytes: int = 4
) -> Estimate:
    """FLOPs and memory of the configured step. Raises ConfigError for a body that computes only with real numbers."""
    try:
        with torch.device("meta"):
            method = make_method(config, build, specs, load=False)
        return estimate(method, build(config["views"]), micro_batch, activation_bytes)
    except (NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"train.count_flops=true: a step of these arms cannot be counted without computing it ({error}); "
            "set train.count_flops=false"
        ) from error


def speed_up(encoder: encoders.Encoder, keys: JSON) -> None:
    """What the configuration allows for speed and memory; results stay the same but for rounding."""
    if keys["channels_last"]:
        encoder.use_channels_last()
    if keys["recompute"]:
        encoder.use_recompute()
    if keys["compile"]:
        encoder.use_compile(keys["compile"])


def training_rows(manifest: Manifest, needs: frozenset[str]) -> Tensor:
    """Rows of the training split, which alone is seen; the labelled ones for a method that needs labels.

    Raises DataError where labels are needed and there are none.
    """
    rows = manifest.rows("train")
    if "label" not in needs:
        return rows
    rows = rows[manifest.labelled()[rows]]
    if not len(rows):
        raise DataError(
            f"{manifest.name} has no labelled training images, which this method learns from: add labels.csv (columns "
            "path,label), or class folders"
        )
    return rows


def make_rates(config: JSON) -> Callable[[Progress], Rates]:
    """Learning rate, for the batch size that it is given for, and weight decay along half a cosine."""
    optim_keys, batch_size = config["optim"], config["train"]["batch_size"]
    lr = optim_keys["lr"] * batch_size / (optim_keys["lr_batch"] or batch_size)
    first, last = optim_keys["weight_decay"], optim_keys["weight_decay_end"]
    rate = make_schedule(batch_size=batch_size, **config["schedule"])

    def rates(at: Progress) -> Rates:
        return Rates(rate(at, lr), first if last is None else cosine(at.fraction, start=first, end=last))

    return rates


def make_optimizer(method: Method, keys: JSON, device: torch.device) -> torch.optim.Optimizer:
    """One optimizer over the method's groups; with `fused` in one kernel where the device has them."""
    return optim.build(
        method.param_groups(),
        name=keys["name"],
        lr=keys["lr"],
        weight_decay=keys["weight_decay"],
        momentum=keys["momentum"],
        fused=keys["fused"] and device.type in ("cuda", "cpu"),
    )
