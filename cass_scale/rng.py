"""Counter-based random numbers: a pure function of (seed, epoch, sample id, purpose), with no state.

Nothing to save, nothing that depends on rank, worker, batch size or resume. The mixer is SplitMix64's finaliser
(Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), in 64-bit integers that wrap, so the
bits are the same on every device. `tests/reference/rng.py` is its slow twin.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MIX1, MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

# Purposes: the last coordinate of the counter. Views use their own number 0, 1, 2, ...
PLAN, SPLIT, NOISE, PHANTOM, SUBSET, TAIL = 1 << 20, 2 << 20, 3 << 20, 4 << 20, 5 << 20, 6 << 20
FINISH = 7 << 20  # plus the view's number


def _signed(value: int) -> int:
    value &= MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * MIX1) & MASK
    z = ((z ^ (z >> 27)) * MIX2) & MASK
    return z ^ (z >> 31)


def _shift(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)  # torch's >> on int64 keeps the sign; a mixer needs zeros


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(MIX1)
    z = (z ^ _shift(z, 27)) * _signed(MIX2)
    return z ^ _shift(z, 31)


def bits(seed: int, epoch: int, ids: Tensor, purpose: int, n: int = 1) -> Tensor:
    """64 random bits for each of `ids` [B] int64 and each of `n` draws: int64 [B, n] on the device of `ids`."""
    key = 0
    for coordinate in (seed, epoch, purpose):
        key = _mix_int((key + GOLDEN + coordinate) & MASK)
    per_id = _mix(ids.long() * _signed(GOLDEN) + _signed(key))
    draws = torch.arange(1, n + 1, device=ids.device) * _signed(GOLDEN)
    return _mix(per_id[:, None] + draws)


def uniform(seed: int, epoch: int, ids: Tensor, purpose: int, n: int = 1) -> Tensor:
    """Uniform in [0, 1): float32 [B, n], exact multiples of 2**-24."""
    return _shift(bits(seed, epoch, ids, purpose, n), 40).float() * 2.0**-24


def normal(seed: int, epoch: int, ids: Tensor, purpose: int, n: int = 1) -> Tensor:
    """Standard normal by Box-Muller: float32 [B, n]."""
    u = uniform(seed, epoch, ids, purpose, 2 * n)
    radius = torch.sqrt(-2.0 * torch.log1p(-u[:, :n]))
    return radius * torch.cos(2.0 * math.pi * u[:, n:])


def permutation(seed: int, epoch: int, n: int, purpose: int = PLAN) -> Tensor:
    """A permutation of 0..n-1: int64 [n]; ties of the 64-bit keys keep their order."""
    return torch.argsort(bits(seed, epoch, torch.arange(n), purpose)[:, 0], stable=True)
