"""Every backend through the real launchers on a CPU: the same mathematics, and checkpoints that travel between them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import timm
import torch
from safetensors.torch import load_file

from cass_scale import precision, records
from cass_scale.backends import WHOLE
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
STATIONS = ("four", "zero2", "three", "fsdp2", "zero3", "single")  # of one run, a step at each
pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(900)]
Run = Callable[[str], Path]


def jobs_of(name: str) -> dict[str, list[str]]:
    """The jobs of one launch."""
    kinds: dict[str, tuple[str, ...]] = {"cass": CASS, "dino": DINO}
    if name in ("ddp", "zero2", "zero3", "fsdp2"):
        again = ("train.recompute=true",) if name in ("zero3", "fsdp2") else ()  # changes nothing, gathers twice
        kinds["parts"] = (*CASS, "train.accumulate=3", *again)
    if name in ("zero2", "zero3", "fsdp2") and "bf16" in precision._works(torch.device("cpu"))[0]:
        kinds["bf16"] = ("method=cass_contrast", "train.precision=bf16")
    return {kind: [*words, f"train.max_steps={STEPS}"] for kind, words in kinds.items()}


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


def environment(extensions: Path) -> dict[str, str]:
    """`extensions`: where torch's JIT builds. A process was killed there while it built DeepSpeed's collective."""
    lock = extensions / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    ours = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    ours["TORCH_EXTENSIONS_DIR"] = str(extensions)
    return {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")} | ours


def launch_jobs(name: str, jobs: dict[str, list[str]], images: Path, place: Path, seconds: float = 300) -> None:
    """Raises AssertionError with what was said last by a launcher that fails, or whose ranks take too long."""
    place.mkdir(exist_ok=True)
    file = place / "jobs.json"
    file.write_text(json.dumps({job: [*words, *COMMON, f"data.path={images}"] for job, words in jobs.items()}))
    launcher = subprocess.Popen(
        [*command_of(name), str(ROOT / "tests" / "ranks.py"), str(file)], env=environment(place / "extensions"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        said, _ = launcher.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        launched = psutil.Process(launcher.pid)
        for process in [*launched.children(recursive=True), launched]:  # no rank outlives it
            with suppress(psutil.NoSuchProcess):
                process.kill()
        raise AssertionError(f"not done after {seconds:.0f} s: {launcher.communicate()[0][-4000:]}") from None
    assert launcher.returncode == 0, said[-4000:]


@pytest.fixture(scope="module")
def images(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for source in sorted((shared / "data" / "brain_mri" / "train").rglob("*.jpg"))[::20][:40]:
        shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="module")
def launched(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Launch by name, once: each backend's file by `accelerate launch`, other numbers of ranks by torchrun."""
    folder = tmp_path_factory.mktemp("backends")
    done: dict[str, AssertionError | None] = {}  # how each launch failed

    def launch(name: str) -> Path:
        place = folder / name
        if name not in done:
            jobs = {job: [*words, f"run.dir={place / job}"] for job, words in jobs_of(name).items()}
            done[name] = None
            try:
                launch_jobs(name, jobs, images, place)
            except AssertionError as error:
                done[name] = error
        if error := done[name]:
            raise AssertionError(f"launch {name}: {error}")
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
        whole, found = ranks_of(ddp, job)[0], ranks_of(other, job)
        assert len({(rank["digest"], rank["buffers"]) for rank in found}) == 1, "teacher and centre on all ranks too"
        assert bool(found[0]["digest"]) == (name in WHOLE)
        for rank in found:
            assert set(rank["dtypes"]) <= {"torch.float32", "torch.int64"}, "BatchNorm's statistics and moments too"
            assert rank["state"] < 0.6 * whole["state"], "nothing was shared out"
            assert (rank["weights"] < 0.6 * whole["weights"]) == (name in ("zero3", "fsdp2"))
        state, plain = (saved(run / job, STEPS)["optimizer"]["state"] for run in (other, ddp))
        assert {key: {k: x.shape for k, x in one.items()} for key, one in state.items()} == {
            key: {k: x.shape for k, x in one.items()} for key, one in plain.items()
        }, "the checkpoint is that of a plain optimizer"


@pytest.mark.long
@pytest.mark.parametrize("name", ["zero2", "zero3", "fsdp2"])
def test_shards_accumulate_micro_batches_as_ddp_does(launched: Run, name: str) -> None:
    """Which is as one batch: tests/test_accumulation.py. Where weights are gathered, with activations recomputed."""
    assert curve(launched("ddp") / "parts") == pytest.approx(curve(launched(name) / "parts"), rel=1e-4)
    assert apart(launched("ddp") / "parts", launched(name) / "parts") < 1e-3


@pytest.mark.long
@pytest.mark.parametrize("name", ["zero2", "zero3", "fsdp2"])
def test_bf16_leaves_weights_statistics_and_moments_in_float32(launched: Run, name: str) -> None:
    if not (launched(name) / "bf16").exists():
        pytest.skip("this CPU has no bfloat16 in hardware")
    assert records.read(launched(name) / "bf16")["precision"] == "bf16"
    dtypes = {kind for rank in ranks_of(launched(name), "bf16") for kind in rank["dtypes"]}
    assert dtypes == {"torch.float32", "torch.int64"}
    assert {x.dtype for x in saved(launched(name) / "bf16", STEPS)["model"].values()} == {torch.float32, torch.int64}


@pytest.mark.timeout(1800)  # as long as its launches may take
def test_one_run_travels_over_backends_and_numbers_of_ranks(images: Path, tmp_path: Path) -> None:
    """DDP on 4 ranks, ZeRO 2, DDP on 3, FSDP2, ZeRO 3; it ends where the one process of its end would have been."""
    run, stay, steps = tmp_path / "travel", tmp_path / "stay", len(STATIONS)
    for step, name in enumerate(STATIONS, start=1):
        jobs = {"travel": [*TRAVEL, f"train.max_steps={step}", f"run.dir={run}"]}
        if name == "single":
            jobs["stay"] = [*TRAVEL, f"train.max_steps={steps}", f"run.dir={stay}"]
        launch_jobs(name, jobs, images, tmp_path / name)
        whole_exports(run, "cnn", "vit")
    assert [row["step"] for row in records.read_metrics(run / records.METRICS)] == [*range(steps + 1)]
    assert curve(stay, "lr") == curve(run, "lr")
    assert curve(stay) == pytest.approx(curve(run), rel=1e-3)
    assert apart(stay, run, step=steps) < 5e-2
    record = records.read(run)
    assert [entry.get("world_size") for entry in record["resumed"]] == [2, 3, 2, 2, 1]
    ways = [record["backend"], *(entry.get("backend") for entry in record["resumed"])]
    assert ways == ["ddp", "zero2", None, "fsdp2", "zero3", None], "an entry holds what is not as it was at first"


def whole_exports(run: Path, *arms: str) -> None:
    """One whole file per arm, which timm loads."""
    assert sorted(file.stem for file in (run / "export").iterdir()) == sorted(arms)
    for arm in arms:
        file = run / "export" / f"{arm}.safetensors"
        encoder, tensors = load_export(file), load_file(file)
        args = dict(encoder.spec.args) | ({"img_size": 32} if "vit" in arm else {})
        body = timm.create_model(encoder.spec.model, num_classes=0, **args)
        assert len(tensors) == len(body.state_dict())
        body.load_state_dict(tensors, strict=True)


@pytest.mark.long
@pytest.mark.parametrize("name", ["single", "ddp", *SHARDING])
def test_every_backend_exports_one_whole_file_per_arm_that_timm_loads(launched: Run, name: str) -> None:
    whole_exports(launched(name) / "cass", "cnn", "vit")
    whole_exports(launched(name) / "dino", "vit", "vit_student")


def test_ranks_that_accelerate_does_not_start_are_missed(tmp_path: Path) -> None:
    """`accelerate launch --cpu` runs one process, whatever num_processes says."""
    command = [*command_of("ddp")[:3], "--cpu", *command_of("ddp")[3:], "-m", "cass_scale", "pretrain"]
    done = subprocess.run(
        [*command, f"run.dir={tmp_path / 'run'}", "train.device=cpu"],
        env=environment(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert "which `accelerate launch` does not start on a CPU" in done.stderr
    assert "asked for, but this is one process, which would train alone" in done.stderr
