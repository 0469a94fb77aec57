"""The embedded set `phantom`: synthetic fluorescence biopsies, drawn by a program; they show no patient.

In the shape of the paper's autoimmune set (section 4.1; class names from the authors' DEDL repository): 198
RGB TIFF of 352 x 469 from 7 patients, five cell classes of which several can be present. Muscle fibres with
their septa in a tint, sharpness and gain of the patient's own (so that patients must not be split), nuclei,
and cells whose stain, shape and texture tell the class. Absent classes leave stain debris, so that colour
alone does not decide.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cass_scale import rng
from cass_scale.data.layouts import CSV
from cass_scale.data.splits import assign
from cass_scale.errors import ConfigError

VERSION = 1  # of the drawing: a change makes another cache folder
HEIGHT, WIDTH, PATIENTS = 352, 469, 7
# How often a class is present, ordered as the authors' class weights (0.95, 0.49, 0.50, 0.2, 1).
PRESENT = {"b": 0.6, "tfh": 0.4, "tfh217": 0.42, "tfhl": 0.28, "other": 0.7}

# float64 although 8 bits come out: an exp that differs in the last bit on another CPU then changes no pixel.
Plane = NDArray[np.float64]  # [H, W], or [H, W, 3] for colours
RED, GREEN, BLUE = ((1.0, 0.16, 0.10), (0.14, 1.0, 0.22), (0.22, 0.30, 1.0))


@dataclass(frozen=True)
class Stain:
    """How the cells of one class look. Lengths are in units of the cell's radius."""

    ring: tuple[float, ...] | None  # colour of a stained membrane
    dots: tuple[float, ...] | None  # colour of granules in the cell body
    nucleus: float  # its radius
    radius: tuple[float, float]  # pixels at full scale
    stretch: float  # length over width


STAINS = {
    "b": Stain(ring=GREEN, dots=None, nucleus=0.62, radius=(9, 12), stretch=1.1),
    "tfh": Stain(ring=RED, dots=None, nucleus=0.60, radius=(8, 11), stretch=1.1),
    "tfh217": Stain(ring=RED, dots=GREEN, nucleus=0.50, radius=(9, 13), stretch=1.2),
    "tfhl": Stain(ring=None, dots=RED, nucleus=0.45, radius=(10, 14), stretch=1.7),
    "other": Stain(ring=None, dots=None, nucleus=0.85, radius=(9, 14), stretch=1.4),
}
NUCLEUS = Stain(ring=None, dots=None, nucleus=1.0, radius=(4, 4), stretch=2.0)  # of a muscle fibre
DEBRIS = [Stain(ring=None, dots=colour, nucleus=0.0, radius=(4, 9), stretch=1.0) for colour in (RED, GREEN)]
CELL_NUMBERS = 10 + 3 * 7  # position, size, light, shape; seven granules


class Draws:
    """Uniform numbers for one image or patient: the n-th request is a pure function of (seed, id, n)."""

    def __init__(self, seed: int, number: int) -> None:
        self.seed, self.number, self.request = seed, torch.tensor([number]), 0

    def many(self, n: int, low: float = 0.0, high: float = 1.0) -> Plane:
        """`n` numbers in [low, high)."""
        self.request += 1
        u: Plane = rng.uniform(self.seed, self.request, self.number, rng.PHANTOM, n)[0].double().numpy()
        return low + (high - low) * u

    def one(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number in [low, high)."""
        return float(self.many(1, low, high)[0])

    def table(self, n: int) -> Plane:
        """What `_cell` needs for each of `n` cells: [n, CELL_NUMBERS] in 0..1."""
        return self.many(n * CELL_NUMBERS).reshape(n, CELL_NUMBERS)

    def smooth(self, height: int, width: int, cell: float) -> Plane:
        """A field in 0..1 that varies over about `cell` pixels: [height, width]."""
        rows, columns = (max(2, math.ceil(side / cell) + 1) for side in (height, width))
        coarse = self.many(rows * columns).reshape(rows, columns)
        return _resize(coarse, height, width, Image.Resampling.BICUBIC)


def folder_name(images: int, scale: float, seed: int) -> str:
    """Where in the cache the set lies. Raises ConfigError for a size that cannot be drawn."""
    if images < 1 or not 0.1 <= scale <= 4.0:
        raise ConfigError(f"data.images={images} must be at least 1 and data.scale={scale} between 0.1 and 4")
    return f"phantom-{images}-x{scale:g}-seed{seed}-v{VERSION}"


def generate(folder: Path, *, images: int = 198, scale: float = 1.0, seed: int = 0) -> None:
    """Write `images` TIFF files and labels.csv (path,label,split,patient_id); splits 70/10/20 by patient."""
    (folder / "images").mkdir()
    keys = [f"images/biopsy_{i:04d}.tif" for i in range(images)]
    patients = [i * PATIENTS // images for i in range(images)]
    labels = []
    for i, (key, patient) in enumerate(zip(keys, patients, strict=True)):
        pixels, classes = draw(i, patient, scale=scale, seed=seed)
        Image.fromarray(pixels).save(folder / key)
        labels.append("|".join(classes))
    groups = [f"patient_{p + 1}" for p in patients]
    with open(folder / CSV, "w", newline="", encoding="utf-8") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["path", "label", "split", "patient_id"])
        out.writerows(zip(keys, labels, assign(labels, groups, (0.7, 0.1, 0.2), seed), groups, strict=True))


def draw(number: int, patient: int, *, scale: float, seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Image `number` of `patient`: uint8 [H, W, 3] and its sorted classes."""
    height, width = round(HEIGHT * scale), round(WIDTH * scale)
    image, own = Draws(seed, number), Draws(seed, -1 - patient)
    tint, gain, blur = own.many(3, 0.35, 1.0), own.one(0.75, 1.25), own.one(0.3, 1.2)
    stain_gain = own.many(3, 0.7, 1.3)
    tilt = own.many(len(PRESENT), -0.15, 0.15)
    chance = image.many(len(PRESENT)) - tilt
    classes = sorted(c for c, u in zip(PRESENT, chance, strict=True) if u < PRESENT[c]) or ["other"]
    septum, canvas = _tissue(image, height, width, scale, tint)
    _infiltrate(canvas, image, classes, scale, stain_gain, septum)
    canvas *= gain * (0.75 + 0.5 * image.smooth(height, width, 300 * scale))[..., None]
    return _photograph(canvas, image, blur * scale), classes


def _tissue(draws: Draws, height: int, width: int, scale: float, tint: Plane) -> tuple[Plane, Plane]:
    """Fibres as jittered Voronoi cells, darker in the septa: (septum [H, W] in 0..1, canvas [H, W, 3])."""
    h, w = height // 2, width // 2  # half resolution: the tissue is soft anyway
    pitch = draws.one(20, 28) * scale
    rows, columns = math.ceil(h / pitch) + 2, math.ceil(w / pitch) + 2
    at = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2) - 0.5
    at = at + draws.many(at.size, -0.38, 0.38).reshape(-1, 2)
    grid = torch.cartesian_prod(torch.arange(h).double() / pitch, torch.arange(w).double() / pitch)
    distance = torch.cdist(grid, torch.from_numpy(at))
    first, nearest = distance.min(1)
    second = distance.scatter_(1, nearest[:, None], math.inf).amin(1)
    wall = torch.exp(-(((second - first) / 0.10) ** 2)).reshape(h, w).numpy()
    fibre = draws.many(len(at), 0.55, 1.0)[nearest.reshape(h, w).numpy()]
    septum = 1 / (1 + np.exp(-24 * (draws.smooth(h, w, 85 * scale) - 0.66)))
    grain = 0.8 + 0.4 * draws.smooth(h, w, max(1.5, 3 * scale))
    body = (0.26 * fibre * (1 - 0.35 * first.reshape(h, w).numpy()) * grain * (1 - wall) + 0.07 * wall) * (1 - septum)
    course = draws.one(-1, 1) * np.arange(h)[:, None] + draws.one(-1, 1) * np.arange(w)
    strand = 0.5 + 0.5 * np.sin(course * (1.3 / scale) + 40 * draws.smooth(h, w, 60 * scale))
    threads = septum * (0.06 + 0.08 * strand * draws.smooth(h, w, max(1.5, 8 * scale)))
    soft = Image.Resampling.BILINEAR
    return _resize(septum, height, width, soft), _resize(body + threads, height, width, soft)[..., None] * tint


def _resize(plane: Plane, height: int, width: int, how: Image.Resampling) -> Plane:
    image = Image.fromarray(plane.astype(np.float32)).resize((width, height), how)
    return np.asarray(image).astype(np.float64)


def _infiltrate(
    canvas: Plane, draws: Draws, classes: list[str], scale: float, stain_gain: Plane, septum: Plane
) -> None:
    """Nuclei everywhere, cells of the present classes around foci in the septa, debris of all stains."""
    extent = np.array(canvas.shape[:2])
    for u in draws.table(60):
        _cell(canvas, u, u[:2] * extent, 4.0 * scale, NUCLEUS, 0.35, stain_gain)
    tries = draws.many(2 * 24, 0.1, 0.9).reshape(24, 2)
    inside = [septum[int(y), int(x)] for y, x in tries * extent]
    foci = tries[np.argsort(inside)[-3:]]
    for stain in (STAINS[name] for name in classes):
        for k, u in enumerate(draws.table(int(draws.one(5, 14)))):
            place = foci[int(3 * u[4])] + (u[0:2] + u[2:4] - 1) * 0.28
            place = 1 - np.abs(1 - np.abs(place))  # reflected into the picture
            radius = (stain.radius[0] + u[5] * (stain.radius[1] - stain.radius[0])) * scale
            light = 0.2 + 0.55 * u[6] if k else 0.75  # at least one cell is clear
            _cell(canvas, u, place * extent, radius, stain, light, stain_gain)
    for u in draws.table(16):
        _cell(
            canvas,
            u,
            u[:2] * extent,
            (4 + 5 * u[5]) * scale,
            DEBRIS[int(2 * u[4])],
            0.2 + 0.4 * u[6],
            stain_gain,
        )


def _cell(canvas: Plane, u: Plane, at: Plane, radius: float, stain: Stain, light: float, gain: Plane) -> None:
    """Add one cell, shaped by its row `u` of numbers, to the canvas in place; parts outside are cut."""
    reach = math.ceil(1.5 * radius * math.sqrt(stain.stretch)) + 1
    y0, x0 = max(0, int(at[0]) - reach), max(0, int(at[1]) - reach)
    patch = canvas[y0 : max(0, int(at[0]) + reach), x0 : max(0, int(at[1]) + reach)]
    if patch.size == 0:
        return
    angle, wobble, phase = (float(v) for v in u[7:10])
    y, x = np.ogrid[y0 : y0 + patch.shape[0], x0 : x0 + patch.shape[1]]
    c, s = math.cos(math.pi * angle), math.sin(math.pi * angle)
    along = ((x - at[1]) * c + (y - at[0]) * s) / (radius * math.sqrt(stain.stretch))
    across = ((y - at[0]) * c - (x - at[1]) * s) / (radius / math.sqrt(stain.stretch))
    turn = np.arctan2(across, along) + 2 * math.pi * phase
    d = np.hypot(along, across) / (1 + 0.10 * wobble * np.sin(2 * turn) + 0.03 * np.sin(5 * turn))
    if stain.nucleus:
        body = 0.55 * light / (1 + np.exp((d - stain.nucleus) * 1.6 * max(radius, 3)))
        patch += body[..., None] * np.array(BLUE) * gain
    if stain.ring:
        uneven = light * (0.75 + 0.25 * np.sin(turn + 6 * wobble))
        patch += (uneven * np.exp(-(((d - 0.88) / 0.16) ** 2)))[..., None] * np.array(stain.ring) * gain
    if stain.dots:
        far, around, size = u[10:].reshape(3, -1, 1, 1)
        du = along - 0.75 * far * np.cos(7 * around)
        dv = across - 0.75 * far * np.sin(7 * around)
        dots = np.exp(-(du**2 + dv**2) / (0.12 + 0.08 * size) ** 2).sum(0)
        patch += (1.1 * light * dots)[..., None] * np.array(stain.dots) * gain


def _photograph(canvas: Plane, draws: Draws, blur: float) -> NDArray[np.uint8]:
    """Exposure, focus and shot noise: uint8 [H, W, 3]."""
    seen = np.clip(1 - np.exp(-1.6 * canvas), 0, 1)
    soft = Image.fromarray((255 * seen).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
    x = np.asarray(soft).astype(np.float64)
    noise = draws.many(x.size, -1.0, 1.0).reshape(x.shape)
    return np.clip(x + noise * (3.0 + 0.55 * np.sqrt(x)), 0, 255).astype(np.uint8)
