from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cass_scale import precision
from cass_scale.errors import ConfigError
from cass_scale.precision import apply, resolve

CUDA, CPU = torch.device("cuda", 1), torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)  # as it does on Turing

    return pretend


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    def pretend(cpuinfo: str) -> None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")

    return pretend


@pytest.mark.parametrize(
    ("capability", "name", "scaler"),
    [
        ((9, 0), "bf16", False),
        ((8, 0), "bf16", False),
        ((7, 5), "fp16", True),
        ((7, 0), "fp16", True),
        ((6, 1), "fp32", False),
    ],
)
def test_auto_takes_the_fastest_the_card_has(
    gpu: Callable[[int, int], None], capability: tuple[int, int], name: str, scaler: bool
) -> None:
    gpu(*capability)
    found = resolve("auto", CUDA)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[name]
    assert (found.name, found.autocast_dtype, found.use_scaler, found.tf32) == (name, dtype, scaler, False)
    assert "Card 1" in found.why
    assert f"{capability[0]}.{capability[1]}" in found.why


def test_each_precision_on_a_card_that_has_all(gpu: Callable[[int, int], None]) -> None:
    gpu(8, 6)
    found = {name: resolve(name, CUDA) for name in ("fp32", "tf32", "fp16", "bf16")}
    assert {n: f.name for n, f in found.items()} == {n: n for n in found}
    assert [n for n, f in found.items() if f.tf32] == ["tf32"]
    assert [n for n, f in found.items() if f.use_scaler] == ["fp16"]
    assert found["tf32"].autocast_dtype is None


@pytest.mark.parametrize(
    ("asked", "capability", "message"),
    [
        ("bf16", (7, 5), r"7\.5\) only emulates bfloat16 .*is_bf16_supported.*auto \(= fp16\), fp16, fp32"),
        ("tf32", (7, 5), r"has no TF32, it begins at 8\.0.*auto \(= fp16\), fp16, fp32"),
        ("fp16", (6, 1), r"has no fast float16, it begins at 7\.0.*auto \(= fp32\), fp32"),
    ],
)
def test_what_a_card_lacks_is_refused_with_the_reason(
    gpu: Callable[[int, int], None], asked: str, capability: tuple[int, int], message: str
) -> None:
    gpu(*capability)
    with pytest.raises(ConfigError, match=f"precision={asked}: Card 1.*{message}"):
        resolve(asked, CUDA)


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor: 0\nflags\t\t: fpu avx512f avx512_bf16\n", "bf16"),
        ("flags : fpu amx_bf16 amx_tile\n", "bf16"),
        ("Features\t: fp asimd bf16 i8mm\n", "bf16"),
        ("flags : fpu avx2 avx512f\n", "fp32"),
        ("model name: bf16 in the name only\nflags : avx2\n", "fp32"),
    ],
)
def test_auto_on_a_cpu_reads_its_flags(cpu: Callable[[str], None], cpuinfo: str, name: str) -> None:
    cpu(cpuinfo)
    assert resolve("auto", CPU).name == name


def test_a_system_without_cpuinfo_runs_in_fp32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "none")
    assert resolve("auto", CPU).name == "fp32"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("bf16", r"this CPU only emulates bfloat16: /proc/cpuinfo shows none of avx512_bf16"),
        ("fp16", r"this CPU has no fast float16.*What works: auto \(= fp32\), fp32"),
        ("tf32", r"this CPU has no TF32.*on NVIDIA GPUs"),
    ],
)
def test_what_a_cpu_lacks_is_refused(cpu: Callable[[str], None], asked: str, message: str) -> None:
    cpu("flags : avx2\n")
    with pytest.raises(ConfigError, match=message):
        resolve(asked, CPU)


def test_other_devices_run_in_fp32_only() -> None:
    assert resolve("auto", torch.device("mps")).name == "fp32"
    with pytest.raises(ConfigError, match="the device mps is run in fp32 only"):
        resolve("bf16", torch.device("mps"))


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="precision=half: auto, fp32, tf32, fp16 and bf16 exist"):
        resolve("half", CPU)


@pytest.fixture
def flags() -> object:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("flags")
def test_apply_sets_both_flags_and_fp32_takes_back_cudnns_default(gpu: Callable[[int, int], None]) -> None:
    gpu(8, 0)
    apply(resolve("tf32", CUDA))
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    apply(resolve("fp32", CUDA))
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
