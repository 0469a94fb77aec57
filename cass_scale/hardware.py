"""The card that a run is held to: its limits enforced on another device, and in words what cannot be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cass_scale import machine, precision
from cass_scale.errors import ConfigError
from cass_scale.precision import Resolved
from cass_scale.types import JSON

MODES = {"published": "fp32", "fast": "fp16"}  # the paper knew no mixed precision
TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Limits:
    """What a card of Turing and its node have: a leaf of configs/hardware."""

    name: str
    card: str  # as torch names it
    mode: str  # of MODES
    memory_gb: float  # of 10^9 bytes
    cores: int

    @property
    def memory(self) -> int:
        """Bytes of the device."""
        return int(self.memory_gb * 10**9)

    @property
    def precision(self) -> str:
        """That of the mode."""
        return MODES[self.mode]

    @property
    def shown(self) -> str:
        """In words."""
        return f"{self.card}, {self.mode}: {self.precision}, {self.memory_gb:g} GB, {self.cores} cores"


def read(node: Mapping[str, Any]) -> Limits | None:
    """The limits of a checked node `hardware`; None for `any`."""
    return None if node["name"] == "any" else Limits(**node)


def problems(node: Mapping[str, Any], asked: str, key: str) -> list[str]:
    """What is wrong with a node `hardware` beside the precision `asked` under `key`."""
    if node["name"] == "any":
        return []
    found = [] if node["mode"] in MODES else [f"hardware.mode={node['mode']}: one of {', '.join(MODES)} is needed"]
    for name, kind, what in (("memory_gb", int | float, "number"), ("cores", int, "whole number")):
        if isinstance(node[name], bool) or not isinstance(node[name], kind) or node[name] < 1:
            found.append(f"hardware.{name}={node[name]}: a {what} of at least 1 is needed")
    if node["mode"] in MODES:
        found += _contradiction(read(node), asked, key)
    return found


def _contradiction(limits: Limits | None, asked: str, key: str) -> list[str]:
    if limits is None or asked in ("auto", limits.precision):
        return []
    lack = f", which has no {asked}" if asked in ("bf16", "tf32") else f" hardware.mode={limits.mode}"
    modes = ", ".join(f"hardware.mode={mode} runs {name}" for mode, name in MODES.items())
    return [f"{key}={asked} contradicts hardware={limits.name}{lack}: leave it at auto; {modes}"]


def require(node: Mapping[str, Any], asked: str, key: str) -> None:
    """Raise ConfigError with what `problems` finds."""
    if found := problems(node, asked, key):
        raise ConfigError(*found)


def resolve(limits: Limits | None, asked: str, device: torch.device) -> Resolved:
    """The precision to run in: that of the mode under limits, else what `asked` means on the device.

    Raises ConfigError when the device or the card lacks it; but a CPU computes `fast` in fp32, which the record says.
    """
    if limits is None:
        return precision.resolve(asked, device)
    if wrong := _contradiction(limits, asked, "precision"):
        raise ConfigError(*wrong)
    found = precision.resolve(limits.precision if device.type == "cuda" else "fp32", device)
    lack = "" if found.name == limits.precision else f", in place of {limits.precision}, which a CPU has not"
    return replace(found, why=f"{found.name}, by hardware.mode={limits.mode}{lack}")


def hold(limits: Limits, resolved: Resolved, device: torch.device) -> JSON:
    """Hold this process, and those it will start, to the limits from here on; returns the record's `hardware`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine.cpu_name()
    return {
        "name": limits.name,
        "card": limits.card,
        "mode": limits.mode,
        "emulated_on": None if limits.card.removeprefix("Quadro ") in name else name,
        "limits": {
            "precision": _precision(limits, resolved),
            "memory": {"bytes": limits.memory} | _hold_memory(limits, device),
            "cores": {"number": limits.cores} | _hold_cores(limits, device),
        }
        | (_hold_attention() if device.type == "cuda" else {}),
    }


def _said(enforced: bool, how: str) -> JSON:
    return {"enforced": enforced, "how": how}


def _precision(limits: Limits, resolved: Resolved) -> JSON:
    wanted = {"fp32": "fp32 without TF32", "fp16": "fp16 with loss scaling"}[limits.precision]
    same = resolved.name == limits.precision
    return {"name": wanted} | _said(same, "bf16 and TF32 are refused" if same else f"a CPU computes in {resolved.name}")


def _hold_memory(limits: Limits, device: torch.device) -> JSON:
    if device.type != "cuda":
        return _said(False, "a CPU's memory is the machine's; peak_memory_bytes says what was taken")
    whole = torch.cuda.get_device_properties(device).total_memory
    if whole <= limits.memory:
        return _said(True, f"this device has {whole / 1e9:.1f} GB")
    torch.cuda.set_per_process_memory_fraction(limits.memory / whole, device)
    return _said(True, f"torch's allocator takes no more of {whole / 1e9:.1f} GB")


def _hold_cores(limits: Limits, device: torch.device) -> JSON:
    there = machine.cores()
    if there <= limits.cores:
        return _said(True, f"this process may use {there}")
    if device.type != "cuda":
        return _said(False, f"the {there} cores are the device; {limits.cores} workers load")
    if not hasattr(os, "sched_setaffinity"):
        return _said(False, f"this system pins no process; {limits.cores} workers load")
    chosen = sorted(os.sched_getaffinity(0))[: limits.cores]
    for task in TASKS.iterdir():  # threads that torch has started keep their own
        os.sched_setaffinity(int(task.name), chosen)
    return _said(True, f"this process and its workers stay on cores {', '.join(map(str, chosen))}")


def _hold_attention() -> JSON:
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    return {"attention": {"name": "without FlashAttention"} | _said(True, "the memory-efficient kernel is taken")}
