"""What this device can really do: fp32, tf32, fp16 with loss scaling, or bf16."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from cass_scale.errors import ConfigError

Name = Literal["fp32", "tf32", "fp16", "bf16"]
AMPERE, VOLTA = (8, 0), (7, 0)  # first compute capabilities with bf16 and TF32, and with fp16 tensor cores
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Resolved:
    """A precision the device has in hardware. Weights, optimizer and losses are float32 in all four."""

    name: Name
    autocast_dtype: torch.dtype | None  # None: no autocast
    use_scaler: bool  # fp16 gradients underflow without loss scaling
    tf32: bool  # float32 matrix products and convolutions may round to 10 bits of mantissa
    why: str


def resolve(asked: str, device: torch.device) -> Resolved:
    """Precision to run in: `asked` of auto, fp32, tf32, fp16, bf16.

    Raises:
        ConfigError: the device lacks it in hardware, with the reason and what would work.
    """
    if asked not in ("auto", "fp32", "tf32", "fp16", "bf16"):
        raise ConfigError(f"precision={asked}: auto, fp32, tf32, fp16 and bf16 exist")
    works, who = _works(device)
    best = works[0]
    if asked == "auto":
        return _build(best, f"{best}, the fastest that {who} has in hardware")
    if asked in works:
        return _build(asked, f"{asked}, as asked; {who} has it in hardware")
    others = ", ".join(works)
    raise ConfigError(f"precision={asked}: {who} {_lack(asked, device)}. What works: auto (= {best}), {others}")


def apply(resolved: Resolved) -> None:
    """Set the process's flags for float32 matrix products and convolutions (cuDNN allows TF32 by default)."""
    torch.backends.cuda.matmul.allow_tf32 = resolved.tf32
    torch.backends.cudnn.allow_tf32 = resolved.tf32


def _build(name: str, why: str) -> Resolved:
    # No TF32 beside bf16: there the bodies run in bf16 anyway, and the losses would lose 13 bits for nothing.
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
    return Resolved(name, dtypes.get(name), name == "fp16", name == "tf32", why)  # type: ignore[arg-type]


def _works(device: torch.device) -> tuple[list[str], str]:
    """Precisions in hardware, fastest first, and the device in words."""
    if device.type == "cuda":
        # Not torch.cuda.is_bf16_supported(): true on Turing, where it emulates (pytorch pull request 148322).
        have = torch.cuda.get_device_capability(device)
        who = f"{torch.cuda.get_device_name(device)} (compute capability {have[0]}.{have[1]})"
        if have >= AMPERE:
            return ["bf16", "fp16", "tf32", "fp32"], who
        return (["fp16", "fp32"] if have >= VOLTA else ["fp32"]), who
    if device.type == "cpu" and _cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}:
        return ["bf16", "fp32"], "this CPU"
    return ["fp32"], "this CPU" if device.type == "cpu" else f"the device {device.type}"


def _lack(asked: str, device: torch.device) -> str:
    if device.type not in ("cuda", "cpu"):
        return "is run in fp32 only"
    if asked == "bf16" and device.type == "cuda":
        return "only emulates bfloat16 (which torch.cuda.is_bf16_supported() counts), hardware begins at 8.0"
    if asked == "bf16":
        return "only emulates bfloat16: /proc/cpuinfo shows none of avx512_bf16, amx_bf16 and bf16 (ARM)"
    name = {"tf32": "TF32", "fp16": "fast float16"}[asked]
    return f"has no {name}, it begins at {8 if asked == 'tf32' else 7}.0 on NVIDIA GPUs"


def _cpu_flags() -> set[str]:
    """Words of the first `flags` (x86) or `Features` (ARM) line of /proc/cpuinfo; empty without one."""
    if not CPUINFO.is_file():
        return set()
    lines = CPUINFO.read_text().splitlines()
    return next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())
