"""The figures of `bench name=savings` as tables: what each side costs, what is saved, and the paper's Table 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cass_scale import published, robustness
from cass_scale.claims import MINUS, shown
from cass_scale.grid import SEEDS_FOR_INTERVAL
from cass_scale.measure import reach_table
from cass_scale.measure.turns import failed, spread, told
from cass_scale.robustness import Estimate, Floats
from cass_scale.types import JSON

EPOCHS = 100  # of the paper's Table 2
POINTS = 10  # between the measured and the counted saving, above which it is explained
BOTH = "all"  # in place of an arm: the runs of a recipe together


@dataclass(frozen=True)
class Sides:
    """What is timed: methods that train all arms in one run, recipes that train one arm a run; `configs` by side.

    labelled: train all arms in one run, too, by labels; rows beside the others, which nothing is saved against.
    """

    methods: tuple[str, ...]
    recipes: tuple[str, ...]
    arms: tuple[str, ...]
    configs: dict[str, JSON]
    labelled: tuple[str, ...] = ()

    @property
    def whole(self) -> tuple[str, ...]:
        """Those that train all arms in one run."""
        return (*self.methods, *self.labelled)

    def names(self) -> list[str]:
        """Of all sides, `recipe/arm` for a recipe."""
        return [*self.whole, *(name for recipe in self.recipes for name in self.of(recipe, BOTH))]

    def of(self, name: str, arm: str) -> list[str]:
        """Sides that train an arm, or all, by a method or recipe."""
        if name in self.whole:
            return [name]
        return [f"{name}/{one}" for one in (self.arms if arm == BOTH else [arm])]

    def pairs(self) -> Iterator[tuple[str, str, str]]:
        """Method, recipe and arm: what is held against each other."""
        for method in self.methods:
            for recipe in self.recipes:
                for arm in (*self.arms, BOTH):
                    yield method, recipe, arm


@dataclass(frozen=True)
class Cost:
    """One run, or several of which all are needed: results of the turns by side."""

    results: list[list[JSON]]

    @property
    def why(self) -> str:
        """Why a side has no figures, else ''."""
        return next(filter(None, map(told, self.results)), "")

    def by_turn(self, value: Callable[[JSON], float]) -> Floats:
        """The sum over sides of a value per turn: [1, 1, turns], as `robustness.estimate` takes it."""
        return np.array([[[sum(map(value, turn)) for turn in zip(*self.results, strict=True)]]])

    def mean(self, value: Callable[[JSON], float]) -> Estimate:
        """Over turns, with its interval."""
        return robustness.estimate(robustness.average, self.by_turn(value), least=0.0)

    @property
    def flops(self) -> float:
        """Per image."""
        return float(sum(side[0]["flops_per_image"] for side in self.results))

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.flops / float(self.mean(seconds).value)

    def share(self, part: Callable[[JSON], float]) -> float:
        """Of the time of an image, that a part of it took: median over turns."""
        return float(np.median(self.by_turn(part) / self.by_turn(seconds)))


def seconds(result: JSON) -> float:
    """Per image, waiting for it included."""
    return float(sum(result["times"]) / (len(result["times"]) * result["batch"]))


def _span(name: str) -> Callable[[JSON], float]:
    return lambda result: float(result["spans"][name] / (len(result["times"]) * result["batch"]))


def _upkeep(result: JSON) -> float:
    """Per image: the optimizer, and what follows it."""
    return float(result["optimizer"] / result["batch"]) + _span("after")(result)


SHARES = {"waiting for data": _span("data"), "views": _span("views"), "optimizer, teacher's mean": _upkeep}


def hours(result: JSON) -> float:
    """Device-hours per million images."""
    return seconds(result) * 1e6 / 3600


def kwh_of(options: JSON, figures: JSON) -> Callable[[JSON], float] | None:
    """kWh per million images: by the watts that were given, else as the device counts them; None for neither."""
    if watts := options["watts"]:
        return lambda result: hours(result) * watts / 1000
    results = [result for side in figures["sides"].values() for result in side if "error" not in result]
    if not results or any(result["joules"] is None for result in results):
        return None
    return lambda result: float(result["joules"]) / (len(result["times"]) * result["batch"]) / 3.6


def cost(figures: JSON, names: Sequence[str]) -> Cost:
    """What the sides take together."""
    return Cost([figures["sides"][name] for name in names])


def rows(sides: Sides) -> Iterator[tuple[str, list[str]]]:
    """Every line of the table of costs: its words and its sides."""
    for method in sides.methods:
        yield f"**{method}**, all arms", [method]
    for recipe in sides.recipes:
        for arm in (*sides.arms, BOTH) if len(sides.arms) > 1 else sides.arms:
            yield (
                f"{recipe}, {f'{len(sides.arms)} runs' if arm == BOTH else _run(sides, recipe, arm)}",
                sides.of(recipe, arm),
            )
    for name in sides.labelled:
        yield f"{name}, all arms, with labels", [name]


def _run(sides: Sides, recipe: str, arm: str) -> str:
    """The arm, with what its configuration takes in place of the recipe."""
    method = sides.configs.get(f"{recipe}/{arm}", {}).get("method", {}).get("name", recipe)
    return arm if method == recipe else f"{arm} ({method})"


def saving(figures: JSON, sides: Sides, method: str, recipe: str, arm: str) -> tuple[Estimate, float] | None:
    """Share of device-hours that a method saves, and share of counted FLOPs; None where a side failed."""
    mine, theirs = (cost(figures, sides.of(name, arm)) for name in (method, recipe))
    if mine.why or theirs.why:
        return None
    measured = robustness.estimate(robustness.share_less, mine.by_turn(hours), theirs.by_turn(hours), most=1.0)
    return measured, 1 - mine.flops / theirs.flops


def tables(figures: JSON, sides: Sides, options: JSON) -> str:
    """All of it as markdown."""
    parts = [_head(figures, sides, options), _costs(figures, sides, options), _savings(figures, sides)]
    parts += [_why(figures, sides), _paper(figures, sides)]
    if "target" in figures:
        parts.append(reach_table.table(figures["target"], sides.methods, sides.recipes, sides.arms, sides.labelled))
    return "\n\n".join(filter(None, parts))


def _head(figures: JSON, sides: Sides, options: JSON) -> str:
    data = figures["data"]
    one = next((side[0] for side in figures["sides"].values() if not failed(side)), None)
    if one is None:
        return "No side ran."
    models = next((figures["sides"][name][0].get("models") for name in sides.methods), None) or one["models"]
    asked, turns = options["turns"], max(len(side) for side in figures["sides"].values() if not failed(side))
    about = (
        f"{' and '.join(models)} at {one['image_size']} px, batches of {one['batch']}, {one['precision']}, the same "
        f"stream over {data['name']}{' (synthetic)' if data['synthetic'] else ''}, {turns} turns"
        f"{f' of {asked}, then time was up' if turns < asked else ''}"
    )
    words = f"; every side with {' '.join(options['words'])}" if options["words"] else ""
    unlabelled = ", ".join(name for name in options["labelled"] if name not in sides.labelled)
    left_out = f" Without labels there is no {unlabelled}." if unlabelled else ""
    intervals = "Intervals are 95 %, over turns, paired where two sides are compared."
    few = f"{turns} turns: an interval needs {SEEDS_FOR_INTERVAL}, so none is given."
    return f"{about}{words}. {few if turns < SEEDS_FOR_INTERVAL else intervals}{left_out}"


def _costs(figures: JSON, sides: Sides, options: JSON) -> str:
    extra = _factors(figures, options)
    head = ["run", "timed steps", "images/s, median (range)", "device-hours per million images"]
    head += ["GFLOP per image", "TFLOP/s"]
    head += [*SHARES, "parameters, M", "peak memory, GiB", *(name for name, _ in extra)]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for words, names in rows(sides):
        one = cost(figures, names)
        if one.why:
            lines.append(f"| {words} | {one.why} |" + " |" * (len(head) - 2))
            continue
        rates = (1 / one.by_turn(seconds)[0, 0]).tolist()
        cells = [
            words,
            " + ".join(str(sum(len(turn["times"]) for turn in side)) for side in one.results),
            spread(rates, 2 if max(rates) < 100 else 0),
            shown(one.mean(hours), "{:.3g}"),
            f"{one.flops / 1e9:.4g}",
            f"{one.rate / 1e12:.3g}",
            *(f"{100 * one.share(part):.1f} %" for part in SHARES.values()),
            f"{sum(side[0]['parameters'] for side in one.results) / 1e6:.1f}",
            f"{max(r['peak_memory'] for side in one.results for r in side) / 2**30:.1f}",
            *(shown(one.mean(value), "{:.3g}") for _, value in extra),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _factors(figures: JSON, options: JSON) -> list[tuple[str, Callable[[JSON], float]]]:
    """Columns that need energy or a factor that was given."""
    found: list[tuple[str, Callable[[JSON], float]]] = []
    price, grid, kwh = options["price_per_hour"], options["grid_kg_per_kwh"], kwh_of(options, figures)
    if kwh:
        how = f"at {options['watts']:g} W" if options["watts"] else "by the card's counter"
        found.append((f"kWh per million images, {how}", kwh))
    if price is not None:
        found.append((f"price, at {price:g} an hour", lambda result: hours(result) * price))
    if kwh and grid is not None:
        energy = kwh
        found.append((f"kg CO2, at {grid:g} a kWh", lambda result: energy(result) * grid))
    return found


def _savings(figures: JSON, sides: Sides) -> str:
    lines = [
        "| saved by | against | device-hours, measured | FLOPs, counted | difference, points |",
        "|---|---|---:|---:|---:|",
    ]
    for method, recipe, arm in sides.pairs():
        if found := saving(figures, sides, method, recipe, arm):
            measured, counted = found
            against = f"{recipe}, {f'all {len(sides.arms)} runs' if arm == BOTH else f'{arm} alone'}"
            cells = [method, against, shown(measured, "{:.1%}"), _signed(counted, "{:.1%}")]
            lines.append(f"| {' | '.join(cells)} | {_signed(100 * (measured.value - counted), '{:+.1f}')} |")
    return "\n".join(lines)


def _signed(value: float, form: str) -> str:
    return form.format(value).replace("-", MINUS)


def _why(figures: JSON, sides: Sides) -> str:
    """What stands behind savings that are far from the counted ones."""
    far = []
    for method, recipe, arm in sides.pairs():
        found = saving(figures, sides, method, recipe, arm)
        if found and abs(found[0].value - found[1]) > POINTS / 100:
            mine, theirs = (cost(figures, sides.of(name, arm)) for name in (method, recipe))
            what = f"{recipe}, {'all runs' if arm == BOTH else arm}"
            far.append(f"{method} against {what} ({mine.rate / theirs.rate:.2f} times its FLOP/s)")
    if not far:
        return f"Measured and counted savings agree within {POINTS} points."
    return (
        f"More than {POINTS} points apart: {'; '.join(far)}. Timed and not counted are waiting, views, what the "
        "optimizer and a teacher's mean do to every parameter at every step (their shares are above), and memory "
        "traffic: of norms, small crops and small batches. Where a side has more FLOP/s it saves more time than FLOPs; "
        "one arm alone also differs from both by its own FLOP/s."
    )


def _paper(figures: JSON, sides: Sides) -> str:
    """The paper's Table 2 beside what the measured rates give for its sets."""
    runs = [(name, cost(figures, sides.of(name, BOTH))) for name in (*sides.whole, *sides.recipes)]
    kept = [(name, one.mean(hours)) for name, one in runs if not one.why]
    head = ["set of the paper", "images an epoch", "DINO, hours", "CASS, hours", "saved"]
    head += [f"here: {name}{' (all its runs)' if name in sides.recipes else ''}, hours" for name, _ in kept]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    images = published.training_images()
    for name, (dino, cass) in published.hours().items():
        scale = images[name] * EPOCHS / 1e6
        cells = [name, f"{images[name]:,}", f"{dino:.2f}", f"{cass:.2f}", f"{1 - cass / dino:.1%}"]
        lines.append(f"| {' | '.join([*cells, *(f'{one.value * scale:.3g}' for _, one in kept)])} |")
    note = (
        f"Table 2 of the paper (section 5.1: {EPOCHS} epochs on one RTX 8000, DINO for both encoders) beside "
        f"{EPOCHS} epochs of as many images at the rates measured here: another device, and perhaps other arms."
    )
    return "\n".join([note, "", *lines])
