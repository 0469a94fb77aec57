"""The savings as a page with bars and FLOPs against hours, for the record's folder."""

from __future__ import annotations

from collections.abc import Callable

from cass_scale import charts
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
        drawn = charts.flops_against_hours(_points(figures, sides), "a million images, all arms")
        return {PAGE: filled("savings.html.j2", values | {"charts": [drawn]})}
    except MissingExtra as why:
        say(f"{PAGE} is left out: {why}")
        return {}


def _costs(figures: JSON, sides: Sides) -> list[JSON]:
    """Bars of hours: words without the markdown, hours, and the share of the longest."""
    known = [(words.replace("*", ""), names, cost(figures, names)) for words, names in rows(sides)]
    found: list[JSON] = [
        {
            "words": words,
            "hours": one.mean(hours),
            "flops": one.flops,
            "rate": one.rate,
            "ours": names[0] in sides.methods,
        }
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


def _points(figures: JSON, sides: Sides) -> list[charts.Cost]:
    """What it takes to train all arms, by every method and recipe."""
    known = [(name, cost(figures, sides.of(name, BOTH))) for name in (*sides.whole, *sides.recipes)]
    found = [(name, one.flops * 1e6, one.mean(hours)) for name, one in known if not one.why]
    return [(name, flops, took.value, took.interval) for name, flops, took in found]
