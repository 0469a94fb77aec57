"""What doctor says about machines better and worse than this one."""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cass_scale import checkup, selftest
from cass_scale.checkup import GIB, Check

REQUIRES = [
    "torch>=2.11",
    'webdataset>=1.0.2; extra == "webdataset"',
    'ffcv>=1.0.2; extra == "ffcv"',
    'nvidia-dali-cuda130>=2.4; sys_platform == "linux" and extra == "dali"',
    'deepspeed>=0.19.2; sys_platform == "plan9" and extra == "deepspeed"',
    'cass-scale[webdataset]; extra == "all"',
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Distributions and versions that seem to be installed."""
    versions = {"torch": "2.13.0+cu130", "ffcv": "1.0.2"}

    def version(name: str) -> str:
        if name not in versions:
            raise checkup.importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(checkup.importlib.metadata, "version", version)
    monkeypatch.setattr(checkup, "import_error", lambda module: "")
    return versions


def extra(name: str) -> Check:
    return next(check for check in checkup.extras(REQUIRES) if check.name == name)


def say(found: list[Check], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    lines: list[str] = []
    monkeypatch.setattr(checkup, "checks", lambda seconds: iter(found))
    return checkup.doctor(0, lines.append), "\n".join(lines)


def test_optional_findings_leave_the_exit_code_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = say([Check("torch", True, "2.13"), Check("dali", None, "missing", "pip install x")], monkeypatch)
    assert code == 0
    assert "--  dali               missing\n                       -> pip install x" in text


def test_one_failure_makes_it_one_and_is_named_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = say([Check("memory", False, "0.1 GiB", "free 1 GiB"), Check("torch", True, "2.13")], monkeypatch)
    assert code == 1
    assert text.endswith("until this is mended: memory.")


def test_this_machine_passes_without_a_connection(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("doctor opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(checkup, "_requires", lambda: REQUIRES)
    found = list(checkup.checks(0))
    assert [c for c in found if c.ok is False] == []
    assert {"python", "torch", "precision", "shared memory", "working folder", "launch"} <= {c.name for c in found}


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Check:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    found = checkup._guarded("torch_build", broken)
    assert (found.name, found.ok) == ("torch build", False)
    assert found.detail == "RuntimeError: operator torchvision::nms does not exist"
    assert found.remedy.startswith("pip install --upgrade torch torchvision")


def test_core_packages(installed: dict[str, str]) -> None:
    assert checkup.packages(REQUIRES).ok is True
    installed["torch"] = "2.9.1"
    found = checkup.packages(REQUIRES)
    assert (found.ok, found.detail) == (False, "torch is 2.9.1, needed is >=2.11")
    assert found.remedy == "pip install 'torch>=2.11'"


def test_run_from_a_folder_without_being_installed() -> None:
    found = checkup.packages([])
    assert (found.ok, found.remedy) == (None, "pip install -e .")
    assert list(checkup.extras([])) == []


def test_missing_extra_says_its_line(installed: dict[str, str]) -> None:
    found = extra("webdataset")
    assert (found.ok, found.detail) == (None, "webdataset is missing")
    assert found.remedy == "pip install 'cass-scale[webdataset]'"
    installed["webdataset"] = "1.0.2"
    assert extra("webdataset") == Check("webdataset", True, "webdataset 1.0.2")


def test_missing_ffcv_says_the_system_packages_too(installed: dict[str, str]) -> None:
    del installed["ffcv"]
    line = "apt-get install libopencv-dev libturbojpeg0-dev pkg-config && pip install 'cass-scale[ffcv]'"
    assert extra("ffcv").remedy == line


def test_broken_ffcv_is_told_from_a_missing_one(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "import_error", lambda module: "ImportError: libopencv_core.so.406")
    found = extra("ffcv")
    assert found.ok is None
    assert "its import fails: ImportError: libopencv_core.so.406" in found.detail
    assert "--force-reinstall" in found.remedy


def test_extra_of_another_system(installed: dict[str, str]) -> None:
    assert extra("deepspeed").detail.startswith("is not made for ")
    assert extra("deepspeed").remedy == ""


def test_import_error_is_the_last_line() -> None:
    assert checkup.import_error("json") == ""
    assert checkup.import_error("no_such_module") == "ModuleNotFoundError: No module named 'no_such_module'"


def test_import_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **keys: Any) -> None:
        raise subprocess.TimeoutExpired(command, 120)

    monkeypatch.setattr(subprocess, "run", hang)
    assert checkup.import_error("ffcv") == "no answer within 120 s"


@pytest.mark.parametrize(("text", "cores"), [("150000 100000", 1), ("400000 100000", 4), ("max 100000", 8)])
def test_cores_by_the_containers_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cores: int) -> None:
    monkeypatch.setattr(checkup.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(text)
    assert checkup.usable_cores(tmp_path / "cpu.max") == cores


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert (checkup.cores().ok, checkup.cores().remedy) == (None, "export OMP_NUM_THREADS=2")


def test_shared_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=64 * 2**20))
    found = checkup.shared_memory(tmp_path)
    assert (found.ok, "--shm-size" in found.remedy) == (None, True)
    assert checkup.shared_memory(tmp_path / "none").ok is True


def test_folder_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert checkup.room(tmp_path / "new" / "er") == (
        pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1),
        "",
    )
    assert checkup.room(tmp_path / "file" / "below")[1] == "Not a directory"
    monkeypatch.setattr(checkup, "room", lambda path: (0, "Read-only file system"))
    assert checkup.work_folder().ok is False
    assert "cannot be written: Read-only file system" in checkup.work_folder().detail
    assert (checkup.weights().ok, "CASS_SCALE_CACHE" in checkup.weights().remedy) == (None, True)


def test_little_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "room", lambda path: (2 * GIB, ""))
    assert (checkup.work_folder().ok, "5 GiB" in checkup.work_folder().remedy) == (None, True)


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("distributed_type: MULTI_CPU\nnum_processes: 2", None),
        ("distributed_type: 'NO'\nuse_cpu: true\nnum_processes: 1", True),
        ("distributed_type: DEEPSPEED\nuse_cpu: true\nnum_processes: 2", True),
        ("distributed_type: MULTI_GPU\nnum_processes: 8", True),
    ],
)
def test_launch_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, ok: bool | None) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert checkup.launch().detail.startswith("no configuration of accelerate")
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(text)
    found = checkup.launch()
    assert found.ok is ok
    assert "torchrun" in found.remedy if ok is None else found.remedy == ""


def test_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(checkup.Path, "glob", lambda self, pattern: iter([Path("/dev/nvidia0")]))
    assert (checkup.device().ok, "nvidia-smi" in checkup.device().remedy) == (None, True)


def test_speed_of_both_networks_and_of_decoding() -> None:
    for network in checkup.NETWORKS:
        found = checkup.step_speed(network, 0.1)
        assert found.ok is True, found
        assert network in found.detail and int(found.detail.split()[-2]) > 0
    assert int(checkup.decode_speed(0.1).detail.split()[-2]) > 10


def test_loss_that_is_not_a_number_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "step_speed", lambda *args: (9.0, math.nan))
    found = checkup.step_speed("resnet10t", 1.0)
    assert (found.ok, found.remedy) == (False, "use train.precision=fp32")


def test_self_test_keeps_to_its_time() -> None:
    naps: list[int] = []

    def nap() -> None:
        naps.append(1)
        time.sleep(0.05)

    rate = selftest._rate(nap, lambda: None, most=1000, seconds=0.2)
    assert 3 <= len(naps) <= 5
    assert 10 < rate <= 20.5
