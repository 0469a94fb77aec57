"""How a run is spread over ranks: what the launcher says, what the configuration says, and where they contradict."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cass_scale.backends import WHOLE
from cass_scale.backends.engine import Engine
from cass_scale.errors import ConfigError, MissingExtra
from cass_scale.methods.base import Method
from cass_scale.precision import Resolved
from cass_scale.types import JSON
from cass_scale.verbs.settings import missing

# Variables that `accelerate launch` sets from its file (accelerate 1.15, utils/launch.py).
DEEPSPEED, FSDP, MIXED = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION"
STAGE, STAGE_FILE = "ACCELERATE_DEEPSPEED_ZERO_STAGE", "ACCELERATE_DEEPSPEED_CONFIG_FILE"
ASIDE = {  # what our own keys decide: variable -> (values that say nothing, what to use instead)
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "train.accumulate"),
    "ACCELERATE_DYNAMO_BACKEND": (("no",), "train.compile"),
    "ACCELERATE_GRADIENT_CLIPPING": (("none",), "train.clip"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": (("none",), "a smaller train.batch_size or more ranks"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": (("none",), "a smaller train.batch_size or more ranks"),
    "FSDP_OFFLOAD_PARAMS": (("false",), "a smaller train.batch_size or more ranks"),
    "FSDP_ACTIVATION_CHECKPOINTING": (("false",), "train.recompute"),
    "FSDP_RESHARD_AFTER_FORWARD": (("true", "full_shard"), "train.backend=zero2, which keeps weights whole"),
}


@dataclass(frozen=True)
class Told:
    """What the launcher asks for: a backend, or None; and how DeepSpeed shall be tuned."""

    backend: str | None
    tuned: JSON = field(default_factory=dict)


def told(env: Mapping[str, str]) -> Told:
    """Read the launcher's variables. Raises ConfigError for what is not supported, with what to use instead."""
    refuse_aside(env)
    if env.get(DEEPSPEED) == "true":
        tuned = read_tuning(env[STAGE_FILE]) if STAGE_FILE in env else {}
        stage = int(tuned.pop("stage", env.get(STAGE, "2")))
        return Told(f"zero{stage}" if stage else "ddp", tuned)
    if env.get(FSDP) == "true":
        if env.get("FSDP_VERSION") != "2":
            raise ConfigError("fsdp_version: 1 is not supported; use launch/accelerate/fsdp2.yaml")
        return Told("fsdp2")
    return Told(None)


def refuse_aside(env: Mapping[str, str]) -> None:
    """Raise ConfigError for a launcher's setting that would be ignored, or meddle with what our keys decide."""
    wrong = [
        f"the launcher's {name}={env[name]} is not what decides here; use {instead}"
        for name, (silent, instead) in ASIDE.items()
        if env.get(name, silent[0]).lower() not in silent
    ]
    if wrong:
        raise ConfigError(*wrong)


def read_tuning(path: str) -> JSON:
    """`zero_optimization` of a DeepSpeed file. Raises ConfigError when the file decides what our keys decide."""
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"deepspeed_config_file={path}: {error}") from error
    tuned: JSON = dict(found.pop("zero_optimization", {}))
    tuned = {key: value for key, value in tuned.items() if value != "auto"}
    wrong = [key for key, value in found.items() if _says(value)] + [key for key in tuned if "offload" in key]
    if wrong:
        raise ConfigError(
            f"deepspeed_config_file={path}: {', '.join(wrong)}: only zero_optimization is taken from it, without "
            "offloading; precision, clipping, batch and optimizer are those of train.* and optim.*; take these keys out"
        )
    return tuned


def _says(value: Any) -> bool:
    """Whether a value of a DeepSpeed file decides anything."""
    return (
        value.get("enabled", True) not in (False, "auto") if isinstance(value, dict) else value not in (False, "auto")
    )


def choose(asked: str, env: Mapping[str, str]) -> Told:
    """The backend: the configuration's, or where that says auto the launcher's, or DDP. Raises ConfigError."""
    found = told(env)
    if asked != "auto" and found.backend not in (None, asked):
        raise ConfigError(f"train.backend={asked} contradicts the launcher, which asks for {found.backend}; drop one")
    chosen = Told(asked if asked != "auto" else found.backend or "ddp", found.tuned)
    if chosen.backend not in ("ddp", "fsdp2") and missing(["deepspeed"]):
        raise MissingExtra("deepspeed", "deepspeed", f"train.backend={chosen.backend}")
    return chosen


def check_ranks(world: int, backend: str | None, asked: int | None, env: Mapping[str, str]) -> None:
    """Raise ConfigError when there are fewer processes than were asked for, by anybody."""
    counts = {name: int(env.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")}
    if env.get("WORLD_SIZE"):
        counts.pop("SLURM_STEP_NUM_TASKS")  # one task per node, which started the ranks
    wrong = [f"{name}={count}" for name, count in counts.items() if count > world]
    if asked != world and MIXED in env and "MASTER_ADDR" in env and "WORLD_SIZE" not in env:
        wrong.append(
            "num_processes above 1, which `accelerate launch` does not start on a CPU (train.ranks=1 if one is meant),"
        )
    if asked is not None and asked != world:
        wrong.append(f"train.ranks={asked}")
    if not wrong and world == 1 and backend != "ddp":
        wrong.append(f"train.backend={backend}, which spreads one run over several ranks")
    if wrong:
        ranks = "this is one process, which would train alone" if world == 1 else f"there are {world} processes"
        raise ConfigError(
            f"{' and '.join(wrong)} asked for, but {ranks}: start the ranks with `torchrun --nproc_per_node N -m "
            "cass_scale pretrain ...`, also on CPUs, or with `accelerate launch` without --cpu"
        )


def restarts(folder: str | None, env: Mapping[str, str]) -> list[str]:
    """What is wrong where torchrun may restart a run whose folder nobody has named: it would begin another one."""
    most = env.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if folder is not None or most == "0":
        return []
    return [
        f"run.dir=null with torchrun --max-restarts={most}: a name made of the time is another one after every "
        "restart, and the run would begin again; give run.dir=FOLDER"
    ]


def check_precision(resolved: Resolved, backend: str | None, env: Mapping[str, str]) -> None:
    """Raise ConfigError when the launcher asks for another precision, or the backend cannot have this one."""
    asked = env.get(MIXED, "no")
    if asked not in ("no", resolved.name):
        raise ConfigError(
            f"the launcher's mixed_precision={asked} contradicts train.precision, which is {resolved.name} here; "
            f"leave it at no, as launch/accelerate/*.yaml have it, and set train.precision={asked}"
        )
    if resolved.use_scaler and backend != "ddp":
        raise ConfigError(
            f"train.precision=fp16 with train.backend={backend}: its loss scaling is not shared between shards; "
            "use bf16 or fp32, or train.backend=ddp"
        )


def problems(config: JSON, backend: str | None) -> list[str]:
    """What of the configuration the backend cannot do, each with its reason."""
    if backend == "ddp":
        return []
    train, zero = config["train"], f"train.backend={backend}"
    found = []
    if not train["clear_gradients"]:
        found.append(
            f"{zero}: train.clear_gradients=false (method=cass_official) needs gradients that stay whole; use ddp"
        )
    if train["comm"] != "fp32":
        found.append(f"{zero}: train.comm={train['comm']} is DDP's; use ddp, or leave it at fp32")
    kinds = {arm.get("optimizer") for arm in config["arms"].values() if isinstance(arm, dict)}
    if backend != "fsdp2" and len({kind or config["optim"]["name"] for kind in kinds}) > 1:
        found.append(f"{zero}: arms.*.optimizer differ, and DeepSpeed steps one algorithm; use ddp or fsdp2")
    if backend in WHOLE:
        return found
    if config["swa"]["enabled"]:
        found.append(f"{zero}: swa.enabled=true needs all weights on every rank; use ddp, zero1 or zero2")
    if train["compile"]:
        found.append(f"{zero}: train.compile cannot look through the gathering of weights; use ddp, zero1 or zero2")
    if config["method"].get("side_by_side"):
        found.append(f"{zero}: method.side_by_side=true would compute before the weights are gathered; set it to false")
    return found


def start(told: Told, method: Method, optimizer: torch.optim.Optimizer, accelerator: Any) -> Engine:
    """The engine of a backend around method and optimizer, which it may take apart."""
    backend = told.backend or "ddp"
    if backend == "fsdp2":
        from cass_scale.backends.fsdp import Sharded

        return Sharded(method, optimizer, accelerator)
    if backend != "ddp":
        from cass_scale.backends.zero import Zero

        return Zero(method, optimizer, accelerator, stage=int(backend[-1]), tuned=told.tuned)
    return Engine(method, optimizer, accelerator)


@contextmanager
def ours_alone() -> Iterator[None]:
    """Inside it Accelerate sees no backend but DDP and no precision: those are the engine's."""
    hidden = {name: os.environ.pop(name) for name in (DEEPSPEED, FSDP, MIXED) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
