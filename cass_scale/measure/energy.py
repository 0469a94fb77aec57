"""What a piece of work takes in energy, where the card counts it."""

from __future__ import annotations

from typing import Any

import torch


class Energy:
    """A context; afterwards `joules` is what this device took in it, None where no NVML counts energy.

    The counter is the card's own, in millijoules, since Volta: the extra `energy`.
    """

    def __init__(self, device: torch.device) -> None:
        self.joules: float | None = None
        self._handle, self._library = _open(device)

    def __enter__(self) -> Energy:
        self._begun = self._read()
        return self

    def __exit__(self, *raised: object) -> None:
        ended = self._read()
        if self._begun is not None and ended is not None:
            self.joules = (ended - self._begun) / 1000

    def _read(self) -> int | None:
        if self._library is None:
            return None
        try:
            return int(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._library.NVMLError:  # cards before Volta
            return None


def _open(device: torch.device) -> tuple[Any, Any]:
    if device.type != "cuda":
        return None, None
    try:
        import pynvml
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # CUDA_VISIBLE_DEVICES renumbers, NVML does not
        return pynvml.nvmlDeviceGetHandleByUUID(uuid), pynvml
    except pynvml.NVMLError:
        return None, None
