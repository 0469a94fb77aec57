"""The slow twin of cass_scale/rng.py: plain Python integers, one number at a time."""

from __future__ import annotations

import math

U64 = 2**64
STEP = 0x9E3779B97F4A7C15


def finalise(z: int) -> int:
    """SplitMix64's finaliser, on 0 <= z < 2**64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        z = (z ^ z >> shift) * factor % U64
    return z


def bits(seed: int, epoch: int, index: int, purpose: int, draw: int) -> int:
    """The draw-th (from 0) 64 bits of one sample."""
    state = 0
    for coordinate in (seed, epoch, purpose):
        state = finalise((state + STEP + coordinate) % U64)
    state = finalise((index * STEP + state) % U64)
    return finalise((state + (draw + 1) * STEP) % U64)


def uniform(seed: int, epoch: int, index: int, purpose: int, draw: int) -> float:
    """The top 24 bits as a fraction."""
    return (bits(seed, epoch, index, purpose, draw) >> 40) / 2**24


def normal(seed: int, epoch: int, index: int, purpose: int, draw: int, n: int) -> float:
    """The draw-th of n normals: Box-Muller of the uniforms `draw` and `n + draw`."""
    u, v = (uniform(seed, epoch, index, purpose, d) for d in (draw, n + draw))
    return math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v)


def permutation(seed: int, epoch: int, n: int, purpose: int) -> list[int]:
    """0..n-1 sorted by their bits read as signed integers."""
    keys = [bits(seed, epoch, i, purpose, 0) for i in range(n)]
    return sorted(range(n), key=lambda i: keys[i] - U64 * (keys[i] >> 63))
