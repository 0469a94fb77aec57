"""Near duplicates: copies that were compressed again, resized, brightened, mirrored or turned by quarters.

Two steps, so that 25,000 images take seconds and neighbouring slices are told apart. Signs of the lowest DCT
frequencies, as codes of 63 bits, pick candidates by Hamming distance (pHash; Zauner 2010, "Implementation and
Benchmarking of Perceptual Image Hash Functions"). Candidates are then correlated without their lowest frequencies, in
which all slices of an organ agree. Copies smaller than about 64 px, crops and free rotations are not found.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cass_scale.data.look import SIDE
from cass_scale.data.sets import Sets

TURNS = (
    "as it is", "turned 90", "turned 180", "turned 270",
    "mirrored", "mirrored, turned 90", "mirrored, turned 180", "mirrored, turned 270",
)  # fmt: skip
CODE = 8  # frequencies per axis in a code
BITS = 12  # of 63 that may differ in a candidate
LOW, HIGH = 6, 48  # the band that is correlated, in half waves per side
CORRELATION = 0.962  # chosen with benchmarks/copies.py
BLANK = 2.0  # standard deviation in grey levels below which there is nothing to compare
ROWS, COLUMNS, CHUNK = 64, 4096, 1024  # blocks that stay in a core's cache

Thumbs = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Near(NamedTuple):
    """Row `second` shows what row `first` shows after `turn`."""

    first: int
    second: int
    turn: str
    correlation: float


class Traits(NamedTuple):
    """What is compared of N images."""

    codes: NDArray[np.uint64]  # [8, N], one per turn
    detail: NDArray[np.float16]  # [N, B], of length 1: the band's coefficients
    plain: NDArray[np.bool_]  # [N], False where there is nothing to compare


def blank(thumbs: Thumbs) -> NDArray[np.bool_]:
    """Which of uint8 [N, SIDE * SIDE] are of one grey, so that correlation means nothing: bool [N]."""
    return np.array([thumb.std() < BLANK for thumb in thumbs], dtype=np.bool_)


def near(thumbs: Thumbs, *, bits: int = BITS, correlation: float = CORRELATION) -> list[Near]:
    """Links that join the near duplicates among uint8 [N, SIDE * SIDE]: of n alike, the first n - 1 found.

    All pairs are compared, in blocks, each under the 8 flips and quarter turns; "as it is" is tried first.
    """
    traits = _traits(thumbs)
    codes, plain = traits.codes, traits.plain
    sets, found = Sets(len(thumbs)), []
    for start in range(0, len(thumbs), ROWS):
        for column in range(start, len(thumbs), COLUMNS):
            for turn, code in enumerate(codes):
                far = np.bitwise_count(code[start : start + ROWS, None] ^ codes[0][None, column : column + COLUMNS])
                a, b = np.nonzero(far <= bits)
                a, b = a + start, b + column
                new = (a < b) & plain[a] & plain[b] & (sets.of[a] != sets.of[b])
                for first, second, value in _alike(traits.detail, a[new], b[new], turn, correlation):
                    if sets.join(first, second):
                        found.append(Near(first, second, TURNS[turn], value))
    return found


def _alike(
    detail: NDArray[np.float16], a: NDArray[np.int64], b: NDArray[np.int64], turn: int, least: float
) -> list[tuple[int, int, float]]:
    """Those pairs (a turned, b) that correlate enough, the most alike first."""
    out: list[tuple[int, int, float]] = []
    order, sign = _MOVED[turn]
    for start in range(0, len(a), CHUNK):
        i, j = a[start : start + CHUNK], b[start : start + CHUNK]
        turned = detail[i][:, order].astype(np.float32) * sign
        values = np.einsum("pd,pd->p", turned, detail[j].astype(np.float32))
        good = np.flatnonzero(values >= least)
        out += zip(i[good].tolist(), j[good].tolist(), values[good].tolist(), strict=True)
    return sorted(out, key=lambda pair: -pair[2])


def _traits(thumbs: Thumbs) -> Traits:
    codes = np.empty((len(TURNS), len(thumbs)), dtype=np.uint64)
    detail = np.empty((len(thumbs), len(_BAND[0])), dtype=np.float16)
    for start in range(0, len(thumbs), CHUNK):
        here = slice(start, start + CHUNK)
        waves: Floats = _DCT @ thumbs[here].reshape(-1, SIDE, SIDE).astype(np.float32) @ _DCT.T
        for turn in range(len(TURNS)):
            low = _turned(waves[:, :CODE, :CODE], turn).reshape(-1, CODE * CODE)
            codes[turn, here] = np.packbits(low[:, 1:] > 0, axis=1).view(">u8")[:, 0]  # without the mean
        band = waves[:, _BAND[0], _BAND[1]]
        detail[here] = band / np.maximum(np.linalg.norm(band, axis=1, keepdims=True), 1e-6)
    return Traits(codes, detail, ~blank(thumbs))


def _turned(waves: Floats, turn: int) -> Floats:
    """DCT coefficients [..., K, K] of `np.rot90(np.fliplr(x) if turn >= 4 else x, turn % 4)` from those of x."""
    sign = (-1.0) ** np.arange(waves.shape[-1], dtype=np.float32)
    if turn >= 4:
        waves = waves * sign
    for _ in range(turn % 4):
        waves = waves.swapaxes(-1, -2) * sign[:, None]
    return waves


def _moved(turn: int) -> tuple[NDArray[np.int64], Floats]:
    """Where each of the band's coefficients comes from under a turn, and its sign."""
    numbers = np.zeros((HIGH, HIGH), dtype=np.float32)
    numbers[_BAND] = np.arange(1, len(_BAND[0]) + 1)
    moved = _turned(numbers, turn)[_BAND]
    return np.abs(moved).astype(np.int64) - 1, np.sign(moved)


_WAVE = np.arange(HIGH)
_RADIUS = np.hypot(_WAVE[:, None], _WAVE)
_BAND = np.nonzero((_RADIUS >= LOW) & (_RADIUS < HIGH))
_DCT: Floats = (np.cos(np.pi / SIDE * np.outer(_WAVE, np.arange(SIDE) + 0.5)) * np.sqrt(2 / SIDE)).astype(np.float32)
_DCT[0] /= np.sqrt(2)
_MOVED = [_moved(turn) for turn in range(len(TURNS))]
