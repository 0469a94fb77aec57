"""Line charts as inline SVG whose colours are CSS variables of the page. Never imports torch."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cass_scale.errors import MissingExtra
from cass_scale.results import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Drawn colours stand for CSS variables, so one drawing serves light, dark and print. Distinct under common
# colour-vision deficiencies (Okabe and Ito 2008, darkened for lines on white).
PALETTE = ("#0072b2", "#d55e00", "#00835f", "#a8467f", "#8c6d1f", "#5a5a5a")
INK, GRID, MARK = "#000001", "#cccccd", "#c00003"
DASHES: tuple[Any, ...] = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
SVG_DASHES = ("", "6 3", "1.5 2.5", "9 3 2 3")
POINTS = 600  # per line; more cannot be seen and makes the page heavy
RC: Any = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 9}


@dataclass(frozen=True)
class Line:
    """One curve: `x` and `y` of equal length, gaps in `y` as None; `colour` and `dash` are numbers.

    `bars`: intervals (low, high) around the points, of the same length, or none.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    dash: int = 0
    bars: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Axis:
    """What lies along x: steps, or with `ticks` one place per name, 0, 1, 2, ..."""

    label: str = "step"
    ticks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A drawing with its own words, for the page to place."""

    title: str
    caption: str
    svg: str
    legend: tuple[tuple[str, int, str], ...]  # label, colour number, SVG dash array


STEPS = Axis()


def draw(
    title: str, caption: str, lines: Sequence[Line], *, top: float = 0.0, mark: int = -1, axis: Axis = STEPS
) -> Chart:
    """A chart over `axis`; logarithmic where the values span more than a factor of 20; `mark` is a step.

    Raises MissingExtra without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as why:
        raise MissingExtra("matplotlib", "report", "The report") from why
    salt = {"svg.hashsalt": repr((title, lines))}  # ids of clip paths: stable, and unique on the page
    with rc_context(RC | salt):  # a Figure of its own: pyplot would pick a display and keep state
        figure = Figure(figsize=(4.2, 2.5))
        axes = figure.add_axes((0.145, 0.155, 0.84, 0.82))
        for line in lines:
            x, y = _thin(line)
            style: dict[str, Any] = {"color": PALETTE[line.colour % 6], "linestyle": DASHES[line.dash % 4]}
            axes.plot(x, y, lw=1.6, marker="o" if axis.ticks or len(x) == 1 else "", markersize=4, **style)
            for at, bar in zip(line.x, line.bars, strict=False):
                axes.plot([at] * len(bar or ()), bar or (), lw=1, color=style["color"])
        ends = [end for line in lines for bar in line.bars for end in bar or ()]
        _dress(axes, [*ends, *(v for line in lines for v in line.y if v is not None)], axis, top=top, mark=mark)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
    legend = tuple((one.label, one.colour % 6, SVG_DASHES[one.dash % 4]) for one in lines)
    return Chart(title, caption, _inline(text.getvalue()), legend)


def _thin(line: Line) -> tuple[list[float], list[float]]:
    """At most about POINTS points, keeping the lowest and highest of every bucket: spikes stay."""
    y = [float("nan") if value is None else value for value in line.y]
    width = max(1, -(-2 * len(y) // POINTS))
    keep = {0, len(y) - 1} if y else set()
    for start in range(0, len(y), width):
        bucket = range(start, min(start + width, len(y)))
        keep |= {min(bucket, key=y.__getitem__), max(bucket, key=y.__getitem__)}
    places = sorted(keep)
    return [line.x[i] for i in places], [y[i] for i in places]


def _dress(axes: Axes, values: Sequence[float], axis: Axis, *, top: float, mark: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if max(values) < 500 * min(values) else (1,), numticks=7)
        )
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if not axis.ticks:  # from zero: a zoomed axis makes noise look large; ticks come with intervals
            axes.set_ylim(min([0.0, *values]) * 1.04, max([top, *values]) * 1.04 or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    if axis.ticks:
        axes.set_xticks(range(len(axis.ticks)), axis.ticks)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel(axis.label, color=INK)
    if mark >= 0:
        axes.axvline(mark, color=MARK, lw=1, linestyle=(0, (2, 2)))
    axes.grid(True, color=GRID, lw=0.6)
    axes.tick_params(colors=INK, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _inline(svg: str) -> str:
    """Bare <svg>: no prolog or metadata (they name addresses), no group ids (they repeat), page colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|font-family: [^;]*;", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    for number, colour in enumerate(PALETTE):
        svg = svg.replace(colour, f"var(--line{number})")
    return svg.replace(INK, "currentColor").replace(GRID, "var(--grid)").replace(MARK, "var(--bad)")


def _line(run: Run, key: str, label: str, colour: int, dash: int = 0) -> list[Line]:
    rows = [row for row in run.rows if key in row]
    return [Line(label, [r["step"] for r in rows], [r[key] for r in rows], colour, dash)] if rows else []


def _probed(run: Run) -> list[str]:
    """Names of the arms with monitor rows, in the order of the record."""
    found = {k.split("/")[1] for row in run.rows for k in row if k.startswith("probe/") and k.count("/") == 2}
    return [a for a in run.part("arms") if a in found] + sorted(found - run.part("arms").keys())


Cost = tuple[str, float, float, tuple[float, float] | None]  # whose, FLOPs, hours, and the interval of these


def flops_against_hours(costs: Sequence[Cost], of: str) -> Chart:
    """A point for each, of equal work: `of` an image, a run."""
    most = max((flops for _, flops, _, _ in costs), default=1.0)
    unit, size = next(((u, s) for u, s in (("P", 1e15), ("T", 1e12)) if most >= 10 * s), ("G", 1e9))
    lines = [
        Line(what, [flops / size], [hours], number % 6, number // 6, bars=[interval])
        for number, (what, flops, hours, interval) in enumerate(costs)
    ]
    caption = f"Device-hours of {of}, with 95 % intervals. Points on one line through zero have equal FLOP/s."
    return draw("FLOPs against hours", caption, lines, axis=Axis(f"{unit}FLOP of {of}"))


COSINE = "Mean cosine between the outputs of different images: 1 means every image gets the same answer."
RANK = "RankMe: how many directions are in use. Near 1 means collapse."
PAIRS = "Loss on true pairs and on shuffled pairs: where the two lines meet, nothing about the image is learnt."


def of_run(run: Run) -> list[Chart]:
    """Loss, between-sample cosine, RankMe, matched against shuffled: the curves of one run."""
    arms = list(enumerate(_probed(run)))
    cosine = [ln for i, arm in arms for ln in _line(run, f"probe/{arm}/between_cosine", arm, i)]
    rank = [
        line
        for i, arm in arms
        for dash, part in enumerate(("features", "outputs"))
        for line in _line(run, f"probe/{arm}/rankme_{part}", f"{arm}, {part}", i, dash)
    ]
    pairs = _line(run, "probe/matched", "true pairs", 0) + _line(run, "probe/shuffled", "shuffled pairs", 1, 1)
    mark = next((entry["step"] for entry in run.collapse if "step" in entry), -1)
    return [
        draw(title, caption, lines, top=top, mark=mark)
        for title, caption, lines, top in (
            ("Loss", "Training loss at logged steps.", _line(run, "loss", "loss", 0), 0.0),
            ("Sameness of outputs", COSINE, cosine, 1.0),
            ("Effective rank", RANK, rank, 0.0),
            ("True against shuffled pairs", PAIRS, pairs, 0.0),
        )
        if lines
    ]


def overlay(runs: Sequence[Run]) -> list[Chart]:
    """The same quantities with one colour per run (at most six runs) and one dash per arm."""

    def of_arms(key: str) -> list[Line]:
        return [
            line
            for colour, run in enumerate(runs)
            for dash, arm in enumerate(_probed(run))
            for line in _line(run, f"probe/{arm}/{key}", f"{run.name}, {arm}", colour, dash)
        ]

    loss = [line for c, run in enumerate(runs) for line in _line(run, "loss", run.name, c)]
    pairs = [
        line
        for c, run in enumerate(runs)
        for dash, part in enumerate(("matched", "shuffled"))
        for line in _line(run, f"probe/{part}", f"{run.name}, {('true', 'shuffled')[dash]}", c, dash)
    ]
    scales = "Different objectives have different scales: compare shapes, not heights."
    return [
        draw(title, caption, lines, top=top)
        for title, caption, lines, top in (
            ("Loss", scales, loss, 0.0),
            ("Sameness of outputs", COSINE, of_arms("between_cosine"), 1.0),
            ("Effective rank of features", RANK, of_arms("rankme_features"), 0.0),
            ("Effective rank of outputs", RANK, of_arms("rankme_outputs"), 0.0),
            ("True against shuffled pairs", PAIRS, pairs, 0.0),
        )
        if lines
    ]
