"""Pictures as PNG and SVG, the same bytes for the same numbers: tiles with maps over images, matrices, scatters."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cass_scale.errors import MissingExtra
from cass_scale.records import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
RC: Any = {"svg.fonttype": "none", "svg.hashsalt": "cass-scale", "text.parse_math": False, "font.size": 9}
HEAT, CKA = "inferno", "magma"
DPI = 130
LETTER = 0.078  # inches, about, of the font above
GAP = 0.06
MARKERS = "os^DvP*X<"  # nine beside ten colours: ninety pairs


@dataclass(frozen=True)
class Tile:
    """An image [S, S, 3] in [0, 1], a map [h, w], or a map over the image; `top` is the map's brightest value."""

    image: Array | None = None
    heat: Array | None = None
    top: float | None = None  # null: the map's own largest value
    note: str = ""


def tiles(
    rows: Mapping[str, Sequence[Tile | None]], columns: Sequence[str], *, side: float = 1.35, bars: Sequence[int] = ()
) -> Figure:
    """Rows of tiles under column names; the columns `bars` have a colour bar at each tile."""
    left = GAP + LETTER * max(map(len, rows), default=0) + 0.08
    head = 0.12 + 0.17 * max((name.count("\n") + 1 for name in columns), default=0)
    notes = 0.2 if any(tile and tile.note for line in rows.values() for tile in line) else 0.0
    widths = [side + (0.62 if number in bars else 0.0) for number in range(len(columns))]
    width, height = left + sum(widths) + GAP * len(columns), head + len(rows) * (side + notes + GAP)
    figure = _figure(width, height)
    for number, (name, line) in enumerate(rows.items()):
        bottom = height - head - (number + 1) * side - number * (notes + GAP)
        figure.text((left - 0.08) / width, (bottom + side / 2) / height, name, ha="right", va="center")
        for place, tile in enumerate(line):
            x = left + sum(widths[:place]) + GAP * place
            if number == 0:
                top = (height - head + 0.05) / height
                figure.text((x + side / 2) / width, top, columns[place], ha="center", va="bottom")
            if tile is not None:
                axes = figure.add_axes((x / width, bottom / height, side / width, side / height))
                shown = _tile(axes, tile)
                if place in bars and shown is not None:
                    _bar(figure, shown, (x + side + 0.05) / width, (bottom + 0.07) / height, (side - 0.14) / height)
    return figure


def _tile(axes: Axes, tile: Tile) -> Any:
    """Draw one tile; returns the map's colours, if there is a map."""
    shown, over = None, tile.image is not None and tile.heat is not None
    extent = (0.0, 1.0, 0.0, 1.0)
    if tile.image is not None:
        image = tile.image.mean(axis=2) if over else tile.image
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="antialiased")
    if tile.heat is not None:
        top = float(tile.heat.max()) if tile.top is None else tile.top
        smooth = "bilinear" if over else "nearest"
        shown = axes.imshow(
            tile.heat,
            cmap=HEAT,
            vmin=0,
            vmax=top or 1.0,
            extent=extent,
            alpha=0.62 if over else 1.0,
            interpolation=smooth,
        )
    axes.set_axis_off()
    if tile.note:
        axes.text(0.5, -0.03, tile.note, ha="center", va="top", fontsize=7.5, transform=axes.transAxes)
    return shown


def _bar(figure: Figure, shown: Any, x: float, y: float, height: float) -> None:
    """A colour bar at a place of the figure, in shares of its size."""
    axes = figure.add_axes((x, y, 0.09 / figure.get_figwidth(), height))
    figure.colorbar(shown, cax=axes).ax.tick_params(labelsize=7, length=2)


def matrices(panels: Mapping[str, tuple[Array, Sequence[str], Sequence[str]]], *, side: float = 2.6) -> Figure:
    """Values 0 to 1 of matrices [R, C] with the names of rows and columns, lowest row first, one colour bar."""
    margin = 0.12 + LETTER * 0.8 * max(len(name) for _, rows, _ in panels.values() for name in rows)
    below = 0.12 + LETTER * 0.8 * max(len(name) for *_, columns in panels.values() for name in columns)
    width, height = len(panels) * (margin + side + 0.15) + 0.75, side + below + 0.35
    figure = _figure(width, height)
    for number, (title, (values, rows, columns)) in enumerate(panels.items()):
        x = number * (margin + side + 0.15) + margin
        axes = figure.add_axes((x / width, below / height, side / width, side / height))
        shown = axes.imshow(values, cmap=CKA, vmin=0, vmax=1, origin="lower", aspect="auto", interpolation="nearest")
        axes.set_facecolor("#bbbbbb")  # seen where a value is not defined
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=9)
        if number == len(panels) - 1:
            _bar(figure, shown, (x + side + 0.12) / width, below / height, side / height)
    return figure


def scatters(
    panels: Mapping[str, Mapping[str, tuple[Array, str] | None]],
    groups: Array,
    names: Sequence[str],
    *,
    side: float = 2.4,
) -> Figure:
    """Points [N, 2], by row and column with a note, coloured by `groups` (int [N], numbers of `names`)."""
    columns = list(dict.fromkeys(name for line in panels.values() for name in line))
    left, legend = 0.35, 0.4 + LETTER * max(map(len, names), default=0) if len(names) > 1 else 0.0
    width = left + len(columns) * (side + 0.12) + legend
    height = max(0.32 + len(panels) * (side + 0.42), 0.2 + 0.175 * len(names))
    figure = _figure(width, height)
    for number, (row, line) in enumerate(panels.items()):
        bottom = height - 0.32 - (number + 1) * side - number * 0.42
        figure.text(0.12 / width, (bottom + side / 2) / height, row, rotation=90, ha="center", va="center")
        for name, found in line.items():
            if found is None:
                continue
            x = left + columns.index(name) * (side + 0.12)
            axes = figure.add_axes((x / width, bottom / height, side / width, side / height))
            _points(axes, found[0], groups)
            axes.set_title(name, fontsize=9, pad=4)
            axes.set_xlabel(found[1], fontsize=7.5, labelpad=3)
    if len(names) > 1:
        styles = [_style(number) for number in range(len(names))]
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], linestyle="", label=name, **style) for name, style in zip(names, styles, strict=True)]
        figure.legend(handles=handles, loc="upper right", frameon=False, fontsize=8, handletextpad=0.2)
    return figure


def _style(number: int) -> dict[str, Any]:
    from matplotlib import colormaps

    return {"color": colormaps["tab10"](number % 10), "marker": MARKERS[number % len(MARKERS)], "markersize": 4}


def _points(axes: Axes, points: Array, groups: Array) -> None:
    for group in np.unique(groups):
        style = _style(int(group)) | {"markersize": 3.2, "alpha": 0.75, "markeredgewidth": 0}
        axes.plot(*points[groups == group].T, linestyle="", **style)
    axes.set_xticks([])
    axes.set_yticks([])
    for edge in axes.spines.values():
        edge.set_color("#bbbbbb")


def _figure(width: float, height: float) -> Figure:
    """A figure of its own, in inches: pyplot would pick a display and keep state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def save(make: Callable[[], Figure], folder: Path, name: str) -> bytes:
    """Draw, and write `name`.png and `name`.svg into the folder, atomically; returns the PNG.

    Raises MissingExtra without matplotlib.
    """
    try:
        from matplotlib import rc_context
    except ImportError as why:
        raise MissingExtra("matplotlib", "report", "explain") from why
    made = {}
    with rc_context(RC):
        figure = make()
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI, facecolor="white", metadata=metadata)
            made[kind] = buffer.getvalue()
            atomic_write_bytes(folder / f"{name}.{kind}", made[kind])
    return made["png"]
