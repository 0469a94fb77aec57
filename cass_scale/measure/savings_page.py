"""The savings as a page with bars and FLOPs against hours, for the record's folder."""

from __future__ import annotations

from collections.abc import Callable

from cass_scale import charts
from cass_scale.charts import Axis, Chart, Line
from cass_scale.errors import MissingExtra
from cass_scale.measure.savings_table import BOTH, Sides, cost, hours, rows, saving
from cass_scale.page import filled
from cass_scale.types import JSON

PAGE = "savings.html"


def page(question: str, figures: JSON, sides: Sides, options: JSON, say: Callable[[str], None]) -> dict[str, str]:
    """The page by its name; none, and that is said, without the extra `report`."""
    values = {
        "question": question,
        "data": figures["data"],
        "options": options,
        "costs": _costs(figures, sides),
        "savings": _savings(figures, sides),
    }
    try:
        return {PAGE: filled("savings.html.j2", values | {"charts": [flops_against_hours(figures, sides)]})}
    except MissingExtra as why:
        say(f"{PAGE} is left out: {why}")
        return {}


def _costs(figures: JSON, sides: Sides) -> list[JSON]:
    """Bars of hours: words without the markdown, hours, and the share of the longest."""
    known = [(words.replace("*", ""), names, cost(figures, names)) for words, names in rows(sides)]
    found: list[JSON] = [
        {"words": words, "hours": one.mean(hours), "flops": one.flops, "rate": one.rate, "ours": len(names) == 1}
        for words, names, one in known
        if not one.why
    ]
    longest = max((line["hours"].value for line in found), default=1.0)
    return [line | {"share": line["hours"].value / longest} for line in found]


def _savings(figures: JSON, sides: Sides) -> list[JSON]:
    found = []
    for method, recipe, arm in sides.pairs():
        if both := saving(figures, sides, method, recipe, arm):
            against = f"{recipe}, {f'all {len(sides.arms)} runs' if arm == BOTH else arm}"
            found.append({"method": method, "against": against, "measured": both[0], "counted": both[1]})
    return found


def flops_against_hours(figures: JSON, sides: Sides) -> Chart:
    """A point per run: on a line through the origin, time is what the FLOPs say."""
    lines = []
    for number, name in enumerate(sides.names()):
        one = cost(figures, [name])
        if not one.why:
            took = one.mean(hours)
            lines.append(Line(name, [one.flops / 1e9], [took.value], number % 6, number // 6, bars=[took.interval]))
    caption = "Device-hours per million images, with 95 % intervals. Points on one line through zero have equal FLOP/s."
    return charts.draw("FLOPs against hours", caption, lines, axis=Axis("GFLOP per image"))
