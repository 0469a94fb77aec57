"""What a device could do at most: its datasheet, and what it shows in a large matrix product and a copy."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import torch

from cass_scale.precision import AMPERE

SECONDS = 1.0  # that a measurement takes at least
CPU_SIDE, CUDA_SIDE = 2048, 8192  # of the square matrices


class Card(NamedTuple):
    """Dense peaks in TFLOP/s (a multiply-add counts as two; no sparsity) and memory bandwidth in GB/s."""

    fp32: float
    tf32: float | None
    fp16: float | None  # tensor cores, accumulating in float32
    bf16: float | None
    bandwidth: float
    source: str


# By the whole of torch.cuda.get_device_name(), without the maker's name that newer drivers put before it: what is
# slower or faster sounds nearly the same (H100 NVL, V100S, 3090 Ti, 4090 D, a MIG slice).
CARDS: tuple[tuple[str, Card], ...] = (
    (r"Quadro RTX 8000", Card(16.3, None, 130.5, None, 672, "NVIDIA Quadro RTX 8000 datasheet")),
    (r"Tesla V100-PCIE-(16|32)GB", Card(14.0, None, 112.0, None, 900, "NVIDIA V100 datasheet, PCIe")),
    (r"Tesla V100-SXM2-(16|32)GB", Card(15.7, None, 125.0, None, 900, "NVIDIA V100 datasheet, SXM2")),
    (r"Tesla T4", Card(8.1, None, 65.0, None, 320, "NVIDIA T4 datasheet")),
    (r"A100-SXM4?-80GB", Card(19.5, 156.0, 312.0, 312.0, 2039, "NVIDIA A100 datasheet, 80 GB SXM")),
    (r"A100 80GB PCIe", Card(19.5, 156.0, 312.0, 312.0, 1935, "NVIDIA A100 datasheet, 80 GB PCIe")),
    (r"A100-(SXM4|PCIE)-40GB", Card(19.5, 156.0, 312.0, 312.0, 1555, "NVIDIA A100 datasheet, 40 GB")),
    (r"A10", Card(31.2, 62.5, 125.0, 125.0, 600, "NVIDIA A10 datasheet")),
    (r"L40S", Card(91.6, 183.0, 362.0, 362.0, 864, "NVIDIA L40S datasheet")),
    (r"L4", Card(30.3, 60.0, 121.0, 121.0, 300, "NVIDIA L4 datasheet")),
    (r"GeForce RTX 3090", Card(35.6, 35.6, 71.0, 71.0, 936, "NVIDIA GA102 whitepaper, RTX 3090")),
    (r"GeForce RTX 4090", Card(82.6, 82.6, 165.2, 165.2, 1008, "NVIDIA Ada whitepaper, RTX 4090")),
    (r"H100 PCIe", Card(51.0, 378.0, 756.0, 756.0, 2000, "NVIDIA H100 datasheet, PCIe")),
    (r"H100 80GB HBM3", Card(67.0, 494.7, 989.4, 989.4, 3350, "NVIDIA H100 datasheet, SXM")),
    (r"H200", Card(67.0, 494.7, 989.4, 989.4, 4800, "NVIDIA H200 datasheet, SXM")),
    (r"B200", Card(75.0, 1125.0, 2250.0, 2250.0, 8000, "NVIDIA HGX B200 datasheet")),
)


def datasheet(name: str) -> Card | None:
    """The card of that name; None when it is not in the table, and then nothing is guessed."""
    plain = name.removeprefix("NVIDIA ")
    return next((card for pattern, card in CARDS if re.fullmatch(pattern, plain)), None)


def peak(name: str, precision: str) -> float | None:
    """FLOP/s that the datasheet promises in fp32, tf32, fp16 or bf16; None when it says nothing."""
    card = datasheet(name)
    found = getattr(card, precision) if card else None
    return found * 1e12 if found else None


def matrix_products(device: torch.device) -> dict[str, float]:
    """FLOP/s of matrix products by precision: fp32 and bf16, on CUDA also fp16 and, where the card has it, tf32."""
    found = {"fp32": matrix_product(device, torch.float32), "bf16": matrix_product(device, torch.bfloat16)}
    if device.type == "cuda":
        found["fp16"] = matrix_product(device, torch.float16)
        if torch.cuda.get_device_capability(device) >= AMPERE:
            with _tf32():
                found["tf32"] = matrix_product(device, torch.float32)
    return found


@contextmanager
def _tf32() -> Iterator[None]:
    """Lets float32 matrix products round to TF32 inside."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def matrix_product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products in `dtype`: the median of single ones."""
    side = CUDA_SIDE if device.type == "cuda" else CPU_SIDE
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _median_seconds(lambda: torch.mm(a, b, out=out), device)


def copying(device: torch.device) -> float:
    """Bytes/s read and written by a copy on the device that is larger than its caches."""
    a = torch.empty(2**28, device=device, dtype=torch.float32) if device.type == "cuda" else torch.zeros(2**26)
    b = torch.zeros_like(a)
    return 2 * a.numel() * a.element_size() / _median_seconds(lambda: b.copy_(a), device)


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        work()
    wait()
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 5:
        begun = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - begun)
    return median(times)
