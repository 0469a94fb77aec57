"""What launchers say, what the configuration says, and every contradiction between them, named before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cass_scale import pretrain
from cass_scale.errors import ConfigError, MissingExtra
from cass_scale.precision import Resolved
from cass_scale.verbs import spread

ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
BF16 = Resolved("bf16", torch.bfloat16, False, False, "")
FP16 = Resolved("fp16", torch.float16, True, False, "")


@pytest.mark.parametrize(
    ("asked", "env", "backend"),
    [
        ("auto", {}, "ddp"),
        ("auto", ZERO, "zero3"),
        ("auto", ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "ddp"),
        ("auto", FSDP, "fsdp2"),
        ("zero3", ZERO, "zero3"),
        ("zero1", {}, "zero1"),
    ],
)
def test_the_launcher_chooses_unless_the_configuration_does(asked: str, env: dict[str, str], backend: str) -> None:
    assert spread.choose(asked, env).backend == backend


def test_launcher_and_configuration_may_not_differ() -> None:
    with pytest.raises(ConfigError, match=r"train.backend=zero1 contradicts the launcher, which asks for zero3"):
        spread.choose("zero1", ZERO)
    with pytest.raises(ConfigError, match=r"fsdp_version: 1 is not supported; use launch/accelerate/fsdp2.yaml"):
        spread.told({"ACCELERATE_USE_FSDP": "true"})


def test_deepspeed_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "missing", lambda packages: packages)
    with pytest.raises(MissingExtra, match=r"train.backend=zero2"):
        spread.choose("zero2", {})


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (ZERO | {"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, "ACCELERATE_GRADIENT_CLIPPING=1.0 .* use train.clip"),
        (ZERO | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "OFFLOAD_PARAM_DEVICE=cpu is not what decides"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, "FSDP_OFFLOAD_PARAMS=true is not what decides here; use a smaller"),
        (FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}, "use train.backend=zero2, which keeps weights whole"),
        (ZERO | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "ACCUMULATION_STEPS=4 .* use train.accumulate"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, "ACCUMULATION_STEPS=2 .* use train.accumulate"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "ACCELERATE_DYNAMO_BACKEND=INDUCTOR .* use train.compile"),
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use train.recompute"),
    ],
)
def test_settings_of_the_launcher_that_our_keys_decide_are_refused(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spread.told(env)


def test_what_accelerate_always_sets_is_no_contradiction() -> None:
    always = {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}
    assert spread.told(FSDP | always | {"FSDP_RESHARD_AFTER_FORWARD": "true"}).backend == "fsdp2"


def test_a_run_that_torchrun_may_restart_needs_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not spread.restarts("runs/mine", {"TORCHELASTIC_MAX_RESTARTS": "3"})
    assert not spread.restarts(None, {"TORCHELASTIC_MAX_RESTARTS": "0"})
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ConfigError, match=r"run.dir=null with torchrun --max-restarts=3: .* give run.dir=FOLDER"):
        pretrain("data=phantom", "train.device=cpu")


def test_a_deepspeed_file_tunes_zero_and_decides_nothing_else(tmp_path: Path) -> None:
    def read(content: dict[str, Any]) -> spread.Told:
        file = tmp_path / "ds.json"
        file.write_text(json.dumps(content))
        return spread.told(ZERO | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)})

    tuned = {"stage": 2, "reduce_bucket_size": 5, "overlap_comm": "auto"}
    found = read({"zero_optimization": tuned, "bf16": {"enabled": "auto"}, "gradient_clipping": "auto"})
    assert found == spread.Told("zero2", {"reduce_bucket_size": 5})
    with pytest.raises(ConfigError, match=r"ds.json: bf16, train_batch_size: only zero_optimization is taken"):
        read({"bf16": {"enabled": True}, "train_batch_size": 8})
    with pytest.raises(ConfigError, match=r"offload_optimizer: only zero_optimization"):
        read({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})
    with pytest.raises(ConfigError, match=r"deepspeed_config_file=gone.json"):
        spread.read_tuning("gone.json")


@pytest.mark.parametrize(
    ("world", "backend", "asked", "env", "message"),
    [
        (
            1,
            "ddp",
            None,
            {"WORLD_SIZE": "4"},
            "WORLD_SIZE=4 asked for, but this is one process, which would train alone",
        ),
        (1, "ddp", None, {"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2 asked for"),
        (1, "ddp", 8, {}, "train.ranks=8 asked for"),
        (2, "ddp", 8, {"WORLD_SIZE": "2"}, "train.ranks=8 asked for, but there are 2 processes"),
        (1, "ddp", None, {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "x"}, "num_processes above 1"),
        (
            1,
            "zero2",
            None,
            {"WORLD_SIZE": "1"},
            "train.backend=zero2, which spreads one run over several ranks asked for",
        ),
    ],
)
def test_asked_for_many_and_got_few(
    world: int, backend: str, asked: int | None, env: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        spread.check_ranks(world, backend, asked, env)


def test_as_many_as_were_asked_for() -> None:
    spread.check_ranks(2, "zero1", 2, {"WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "4"})
    spread.check_ranks(1, "ddp", 1, {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "a cluster sets it for all"})


def test_one_precision() -> None:
    spread.check_precision(BF16, "zero3", {"ACCELERATE_MIXED_PRECISION": "bf16"})
    with pytest.raises(ConfigError, match=r"mixed_precision=fp16 contradicts train.precision, which is bf16 here"):
        spread.check_precision(BF16, "ddp", {"ACCELERATE_MIXED_PRECISION": "fp16"})
    with pytest.raises(ConfigError, match=r"train.precision=fp16 with train.backend=fsdp2: its loss scaling"):
        spread.check_precision(FP16, "fsdp2", {})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train.backend=zero1", "method=cass_official"), "train.backend=zero1: train.clear_gradients=false"),
        (("train.backend=zero2", "arms.cnn.optimizer=sgd"), "train.backend=zero2: arms.*optimizer differ"),
        (("train.backend=zero3", "method=cass_paper"), "train.backend=zero3: swa.enabled=true needs all weights"),
        (("train.backend=fsdp2", "train.compile=default"), "train.backend=fsdp2: train.compile cannot"),
        (("train.backend=fsdp2", "method.side_by_side=true"), "method.side_by_side=true would compute before"),
        (("train.batch_norm=global_frozen",), r"global_frozen: random weights \(cnn, vit\) have no statistics"),
        (("train.ranks=2", "train.device=cpu"), "train.ranks=2 asked for, but this is one process"),
        (("train.batch_norm=all",), "train.batch_norm=all: one of local, sync, global_frozen is needed"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain(*words, f"run.dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
