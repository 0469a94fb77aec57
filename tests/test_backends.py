"""Every backend through the real launchers on a CPU: the same mathematics, and checkpoints that travel between them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from cass_scale import precision, records
from cass_scale.encoders import load_export

ROOT = Path(__file__).parents[1]
SHARDING = ("zero1", "zero2", "zero3", "fsdp2")
COMMON = (
    "arms.image_size=32", "arms.global_size=32", "arms.local_size=16", "arms.vit.args.drop_path_rate=0", "seed=3",
    "train.batch_size=12", "train.log_every=1", "train.device=cpu", "stream.workers=0", "monitor.images=8",
    "train.keep=9",
    "monitor.every=3", "train.count_flops=false", "train.batch_norm=sync", "train.save_every=1",
)  # fmt: skip
SGD = ("optim.name=sgd", "optim.lr=0.01", "train.clip=1.0")
CASS = ("method=cass_contrast", "train.precision=fp32", *SGD)
DINO = (
    "method=dino_small", "arm=vit", "method.head.hidden=64", "method.head.prototypes=64", "train.precision=fp32",
)  # fmt: skip
TRAVEL = ("method=cass_contrast", "train.precision=fp32")  # Adam: its state travels too
STEPS = 3
BEFORE = {"zero2": "four", "three": "zero2", "zero3": "three"}  # the stations of one travelling run, backwards
pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(900)]
Run = Callable[[str], Path]


def jobs_of(name: str, images: Path, folder: Path) -> dict[str, list[str]]:
    """The jobs of one launch; the folder `travel` goes through several of them."""
    common = [*COMMON, f"data.path={images}"]
    kinds: dict[str, tuple[str, ...]] = {"cass": CASS, "dino": DINO}
    found = {kind: [*words, f"train.max_steps={STEPS}"] for kind, words in kinds.items() if name != "three"}
    if name in ("ddp", "zero2", "fsdp2"):
        found["parts"] = [*CASS, f"train.max_steps={STEPS}", "train.accumulate=3"]
    if name == "single":
        found = found | {"stay": [*TRAVEL, "train.max_steps=4"]}
    stops = {"four": 1, "zero2": 2, "three": 3, "zero3": 4}
    if name in ("zero2", "zero3", "fsdp2") and "bf16" in precision._works(torch.device("cpu"))[0]:
        found["bf16"] = ["method=cass_contrast", "train.precision=bf16", "train.max_steps=1"]
    found = {job: [*words, f"run.dir={folder / name / job}", *common] for job, words in found.items()}
    if name in stops:
        found["travel"] = [*TRAVEL, f"train.max_steps={stops[name]}", f"run.dir={folder / 'travel'}", *common]
    return found


def command_of(name: str) -> list[str]:
    if name in ("four", "three"):
        ranks = {"four": 4, "three": 3}[name]
        return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    file = ROOT / "launch" / "accelerate" / f"{name}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*launch, "--config_file", str(file), "--main_process_port", str(port)]


def environment() -> dict[str, str]:
    ours = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")} | ours


@pytest.fixture(scope="module")
def launched(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Launch by name, once: each backend's file by `accelerate launch`, other numbers of ranks by torchrun."""
    folder = tmp_path_factory.mktemp("backends")
    images, done = folder / "images", set()
    for source in sorted((shared / "data" / "brain_mri" / "train").rglob("*.jpg"))[::20][:40]:
        images.mkdir(exist_ok=True)
        shutil.copy(source, images)

    def launch(name: str) -> Path:
        place = folder / name
        if name in BEFORE:
            launch(BEFORE[name])
        if name not in done:
            place.mkdir()
            jobs = place / "jobs.json"
            jobs.write_text(json.dumps(jobs_of(name, images, folder)))
            command = [*command_of(name), str(ROOT / "tests" / "ranks.py"), str(jobs)]
            ended = subprocess.run(
                command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=800, check=False
            )
            assert ended.returncode == 0, f"{name}: {ended.stderr[-4000:]}"
            done.add(name)
        return place

    return launch


def saved(run: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints" / f"step_{step:08d}.pt", weights_only=True)
    return found


def curve(run: Path, key: str = "loss") -> list[float]:
    return [row[key] for row in records.read_metrics(run / records.METRICS) if key in row]


def apart(run: Path, other: Path, step: int = STEPS, since: int = 1) -> float:
    """Distance between two runs' weights and buffers, over how far the first has come since step `since`."""
    begun, a, b = (flat(saved(*place)["model"]) for place in ((run, since), (run, step), (other, step)))
    return float((a - b).norm() / (a - begun).norm())


def flat(model: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([x.double().flatten() for x in model.values()])


def ranks_of(place: Path, job: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(place.glob(f"{job}.?.json"))]


@pytest.mark.long
@pytest.mark.parametrize("name", ["ddp", "four"])
def test_more_ranks_with_the_same_global_batch_train_the_same(launched: Run, name: str) -> None:
    """Order of samples, learning rates, losses and weights; SGD to 1e-3 of the way gone, AdamW to 5e-2."""
    one, many = launched("single"), launched(name)
    for job, near in (("cass", 1e-3), ("dino", 5e-2)):
        assert curve(one / job, "lr") == curve(many / job, "lr")
        assert curve(one / job) == pytest.approx(curve(many / job), rel=1e-4)
        assert apart(one / job, many / job) < near, job
        found = ranks_of(many, job)
        assert len(found) == found[0]["world"] == {"ddp": 2, "four": 4}[name]
        assert len({(rank["digest"], rank["buffers"]) for rank in found}) == 1, "teacher and centre on all ranks too"
        assert found[0]["digest"]


@pytest.mark.long
@pytest.mark.parametrize("name", SHARDING)
def test_what_is_shared_out_trains_as_ddp_does(launched: Run, name: str) -> None:
    ddp, other = launched("ddp"), launched(name)
    for job, near in (("cass", 1e-3), ("dino", 5e-2)):
        assert curve(ddp / job) == pytest.approx(curve(other / job), rel=1e-4)
        assert apart(ddp / job, other / job) < near, job
        whole = ranks_of(ddp, job)[0]
        for rank in ranks_of(other, job):
            assert rank["state"] < 0.6 * whole["state"], "nothing was shared out"
            assert (rank["weights"] < 0.6 * whole["weights"]) == (name in ("zero3", "fsdp2"))
        state, plain = (saved(run / job, STEPS)["optimizer"]["state"] for run in (other, ddp))
        assert {key: {k: x.shape for k, x in one.items()} for key, one in state.items()} == {
            key: {k: x.shape for k, x in one.items()} for key, one in plain.items()
        }, "the checkpoint is that of a plain optimizer"


@pytest.mark.parametrize("name", ["zero2", "fsdp2"])
def test_shards_accumulate_micro_batches_as_ddp_does(launched: Run, name: str) -> None:
    """Which is as one batch: tests/test_accumulation.py."""
    assert curve(launched("ddp") / "parts") == pytest.approx(curve(launched(name) / "parts"), rel=1e-4)
    assert apart(launched("ddp") / "parts", launched(name) / "parts") < 1e-3


@pytest.mark.parametrize("name", ["zero2", "zero3", "fsdp2"])
def test_bf16_leaves_weights_statistics_and_moments_in_float32(launched: Run, name: str) -> None:
    if not (launched(name) / "bf16").exists():
        pytest.skip("this CPU has no bfloat16 in hardware")
    assert records.read(launched(name) / "bf16")["precision"] == "bf16"
    dtypes = {kind for rank in ranks_of(launched(name), "bf16") for kind in rank["dtypes"]}
    assert dtypes == {"torch.float32", "torch.int64"}
    assert {x.dtype for x in saved(launched(name) / "bf16", 1)["model"].values()} == {torch.float32, torch.int64}


def test_one_run_travels_over_backends_and_numbers_of_ranks(launched: Run) -> None:
    """DDP on 4 ranks, ZeRO 2 on 2, DDP on 3, ZeRO 3 on 2; it ends where one process would have ended."""
    stay = launched("single") / "stay"
    run = launched("zero3").parent / "travel"
    assert [row["step"] for row in records.read_metrics(run / records.METRICS)] == [0, 1, 2, 3, 4]
    assert curve(stay, "lr") == curve(run, "lr")
    assert curve(stay) == pytest.approx(curve(run), rel=1e-3)
    assert apart(stay, run, step=4) < 5e-2
    record = records.read(run)
    assert [entry.get("world_size") for entry in record["resumed"]] == [2, 3, 2]
    ways = [record["backend"], *(entry.get("backend") for entry in record["resumed"])]
    assert ways == ["ddp", "zero2", None, "zero3"], "an entry holds what is not as it was at first"


@pytest.mark.parametrize("name", ["single", "ddp", *SHARDING])
def test_every_backend_exports_one_whole_file_per_arm_that_timm_loads(launched: Run, name: str) -> None:
    for job, arms in (("cass", ("cnn", "vit")), ("dino", ("vit", "vit_student"))):
        folder = launched(name) / job / "export"
        assert sorted(file.stem for file in folder.iterdir()) == sorted(arms)
        for arm in arms:
            file = folder / f"{arm}.safetensors"
            encoder, tensors = load_export(file), load_file(file)
            args = dict(encoder.spec.args) | ({"img_size": 32} if "vit" in arm else {})
            body = timm.create_model(encoder.spec.model, num_classes=0, **args)
            assert len(tensors) == len(body.state_dict())
            body.load_state_dict(tensors, strict=True)


def test_ranks_that_accelerate_does_not_start_are_missed(launched: Run, tmp_path: Path) -> None:
    """`accelerate launch --cpu` runs one process, whatever num_processes says."""
    command = [*command_of("ddp")[:3], "--cpu", *command_of("ddp")[3:], "-m", "cass_scale", "pretrain"]
    done = subprocess.run(
        [*command, f"run.dir={tmp_path / 'run'}", "train.device=cpu"],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert "which `accelerate launch` does not start on a CPU" in done.stderr
    assert "asked for, but this is one process, which would train alone" in done.stderr
