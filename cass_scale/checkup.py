"""What this machine has, what it lacks, and the line that mends it. Opens no network connection."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from packaging.requirements import Requirement

from cass_scale.errors import SYSTEM_PACKAGES
from cass_scale.machine import cores as cores_by_affinity

if TYPE_CHECKING:
    import torch

GIB = 2**30
EXTRAS = (
    "webdataset", "ffcv", "dali", "deepspeed", "medical", "wsi", "sets", "onnx", "report", "energy", "trackers",
    "cloud",
)  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {"resnet10t": {}, "vit_tiny_patch16_224": {"img_size": 96}}
MEND = {"torch_build": "pip install --upgrade torch torchvision   (the two of one release)"}
MARKS = {True: "ok", None: "--", False: "NO"}


@dataclass(frozen=True)
class Check:
    """One finding. `ok` None: optional, or slower than it could be; False: the main job cannot run."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def doctor(seconds: float, out: Callable[[str], None]) -> int:
    """Hand each finding to `out` as it is made, then the verdict: 0 when the main job can run, else 1.

    `out` takes plain text (rich would read [extra] as markup). `seconds` is about the longest that the
    throughput self-test may take; 0 leaves it out.
    """
    failed = []
    for check in checks(seconds):
        out(f"{MARKS[check.ok]}  {check.name:<18} {check.detail}")
        if check.remedy:
            out(f"{'':<23}-> {check.remedy}")
        failed += [check.name] if check.ok is False else []
    if failed:
        out(f"\nThe main job cannot run here until this is mended: {', '.join(failed)}.")
        return 1
    out("\nThe main job can run here. Lines marked -- are optional.")
    return 0


def checks(seconds: float) -> Iterator[Check]:
    """Every check, the cheap ones first."""
    yield Check("python", True, f"{platform.python_version()}, {sys.executable}")
    requires = _requires()
    yield packages(requires)
    for check in (torch_build, device, precision, cores, memory, shared_memory, work_folder, weights, launch):
        yield _guarded(check.__name__, check)
    yield from extras(requires)
    if seconds > 0:
        for network in NETWORKS:
            yield _guarded("speed", partial(step_speed, network, seconds / 3))
        yield _guarded("speed", partial(decode_speed, min(3.0, seconds / 3)))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # a broken package may raise anything, and the other checks still have a say
        what = (str(error).strip() or "no message").splitlines()[0]
        return Check(name.replace("_", " "), False, f"{type(error).__name__}: {what}", MEND.get(name, ""))


def _requires() -> list[str]:
    try:
        return importlib.metadata.requires("cass-scale") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def packages(requires: Sequence[str]) -> Check:
    """Packages without which nothing runs, against the versions that the installed metadata ask for."""
    if not requires:
        return Check("packages", None, "not checked: cass-scale is not installed here", "pip install -e .")
    core = [r for r in map(Requirement, requires) if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = {f"'{r.name}{r.specifier}'": problem for r in core if (problem := _problem(r))}
    if wrong:
        return Check("packages", False, ", ".join(wrong.values()), f"pip install {' '.join(wrong)}")
    return Check("packages", True, f"all {len(core)} of the core are here")


def _problem(requirement: Requirement) -> str:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    good = requirement.specifier.contains(version, prereleases=True)
    return "" if good else f"{requirement.name} is {version}, needed is {requirement.specifier}"


def extras(requires: Sequence[str]) -> Iterator[Check]:
    """One finding per extra: its versions, or the lines that install it."""
    if not requires:
        return
    parsed = [r for r in map(Requirement, requires) if r.marker and not r.marker.evaluate({"extra": ""})]
    for extra in EXTRAS:
        wanted = [r for r in parsed if r.marker and r.marker.evaluate({"extra": extra})]
        system = f"apt-get install {SYSTEM_PACKAGES[extra]} && " if extra in SYSTEM_PACKAGES else ""
        if not wanted:
            yield Check(extra, None, f"is not made for {platform.system()}")
        elif wrong := [problem for r in wanted if (problem := _problem(r))]:
            yield Check(extra, None, ", ".join(wrong), f"{system}pip install 'cass-scale[{extra}]'")
        elif extra == "ffcv" and (error := import_error("ffcv")):
            again = "pip install --force-reinstall --no-deps --no-cache-dir ffcv"
            yield Check(extra, None, f"is installed, but its import fails: {error}", system + again)
        else:
            names = [f"{r.name} {importlib.metadata.version(r.name)}" for r in wanted]
            yield Check(extra, True, ", ".join(names))


def import_error(module: str) -> str:
    """Last line of the error of importing `module` in a process of its own, "" when it works."""
    code = [sys.executable, "-c", f"import {module}"]
    try:
        done = subprocess.run(code, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return "no answer within 120 s"
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]


def torch_build() -> Check:
    """Torch and torchvision, and whether their compiled parts fit together."""
    import torch
    import torchvision

    torch.ops.torchvision.nms  # noqa: B018 - raises where torchvision was built for another torch
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    return Check("torch", True, f"{torch.__version__}, torchvision {torchvision.__version__}, {built}")


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device() -> Check:
    """What a run would use."""
    import torch

    if _device().type == "cuda":
        numbers = range(torch.cuda.device_count())
        free = [torch.cuda.mem_get_info(i)[0] / GIB for i in numbers]
        names = [f"{torch.cuda.get_device_name(i)} ({free[i]:.1f} GiB free)" for i in numbers]
        return Check("device", True, ", ".join(names))
    if any(Path("/dev").glob("nvidia[0-9]")):
        remedy = f"compare the driver in nvidia-smi with CUDA {torch.version.cuda or 'none'} of this torch"
        return Check("device", None, "CPU; an NVIDIA GPU is there, but this torch cannot use it", remedy)
    return Check("device", True, "CPU; no CUDA device")


def precision() -> Check:
    """What precision=auto takes on this device, with why."""
    from cass_scale.precision import resolve

    return Check("precision", True, resolve("auto", _device()).why)


def cores() -> Check:
    """Cores that this process may use (affinity and the container's quota) against torch's threads."""
    import torch

    usable, threads = usable_cores(), torch.get_num_threads()
    remedy = f"export OMP_NUM_THREADS={usable}" if threads > usable else ""
    detail = f"{usable} usable of {os.cpu_count()}, torch computes with {threads}, load {os.getloadavg()[0]:.1f}"
    return Check("cores", None if remedy else True, detail, remedy)


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores by affinity, at most what the cgroup's quota (`max` or microseconds, then the period) allows."""
    affine = cores_by_affinity()
    limit = quota.read_text().split() if quota.is_file() else ["max"]
    return affine if limit[0] == "max" else max(1, min(affine, int(limit[0]) // int(limit[1])))


def memory() -> Check:
    """Main memory; 1 GiB is what the tiny arms need."""
    import psutil

    now = psutil.virtual_memory()
    ok = now.available >= GIB
    detail = f"{now.available / GIB:.1f} of {now.total / GIB:.1f} GiB free"
    return Check("memory", ok, detail, "" if ok else "free at least 1 GiB")


def shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Shared memory, through which loader processes and NCCL pass batches; containers have 64 MiB."""
    if not folder.is_dir():
        return Check("shared memory", True, f"no {folder} on this system")
    size = shutil.disk_usage(folder).total / GIB
    remedy = "" if size >= 1 else "start the container with --shm-size=8g (or --ipc=host)"
    return Check("shared memory", None if remedy else True, f"{folder} {size:.2f} GiB", remedy)


def work_folder() -> Check:
    """Where run folders go: writable, with room for checkpoints (1.3 GB each for the paper's arms)."""
    path = Path.cwd()
    free, error = room(path)
    if error:
        return Check("working folder", False, f"{path} cannot be written: {error}", "give run.dir=FOLDER elsewhere")
    ok = None if free < 5 * GIB else True
    remedy = "" if ok else "the paper's arms need 5 GiB; give run.dir=FOLDER on a larger disk"
    return Check("working folder", ok, f"{path}, {free / GIB:.1f} GiB free", remedy)


def weights() -> Check:
    """Where weights are looked for by file name; nothing is looked up in a network."""
    from cass_scale.encoders import weights_dir

    path = weights_dir()
    free, error = room(path)
    if error:
        remedy = "export CASS_SCALE_CACHE=FOLDER that can be written"
        return Check("weights folder", None, f"{path} cannot be written: {error}", remedy)
    files = len(list(path.glob("*.safetensors"))) if path.is_dir() else 0
    return Check("weights folder", True, f"{path}, {files} weight files, {free / GIB:.1f} GiB free")


def room(path: Path) -> tuple[int, str]:
    """Free bytes at `path` or its nearest existing parent, and why no file can be written ("" if it can)."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return shutil.disk_usage(there).free, ""
    except OSError as error:
        return 0, error.strerror or str(error)


def launch() -> Check:
    """What `accelerate launch` would read where no configuration is named."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{cache}/huggingface")
    path = Path(home).expanduser() / "accelerate" / "default_config.yaml"
    if not path.is_file():
        return Check("launch", True, "no configuration of accelerate: one process, or launch/accelerate/*.yaml")
    config = yaml.safe_load(path.read_text()) or {}
    kind, number = str(config.get("distributed_type", "NO")), int(config.get("num_processes", 1))
    detail = f"{path}: {kind}, {number} process{'' if number == 1 else 'es'}"
    on_cpu = bool(config.get("use_cpu")) or kind == "MULTI_CPU"
    if on_cpu and number > 1 and kind != "DEEPSPEED":  # accelerate 1.15: world size 1, and no word of it
        return Check("launch", None, f"{detail}; accelerate starts only one on a CPU", "use torchrun on a CPU")
    return Check("launch", True, detail)


def step_speed(network: str, seconds: float) -> Check:
    """A small network's training step as a run would compute it."""
    from cass_scale import selftest
    from cass_scale.precision import resolve

    place = _device()
    resolved, batch = resolve("auto", place), 64 if place.type == "cuda" else 8
    speed, loss = selftest.step_speed(network, NETWORKS[network], resolved, place, batch, seconds)
    detail = f"{network}, forward + backward, 96 px, batch {batch}, {resolved.name}: {speed:.0f} images/s"
    if not math.isfinite(loss):
        return Check("speed", False, f"{detail}, but the loss is {loss}", "use train.precision=fp32")
    return Check("speed", True, detail)


def decode_speed(seconds: float) -> Check:
    """Reading one JPEG again and again."""
    from cass_scale import selftest

    speed = selftest.decode_speed(seconds)
    return Check("speed", True, f"JPEG 500 x 400, decoded in one thread: {speed:.0f} images/s")
