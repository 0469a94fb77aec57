"""Runs under the limits of another card, in words and on the page. Never imports torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from cass_scale import published
from cass_scale.results import Run
from cass_scale.types import JSON


def shown(held: Mapping[str, Any]) -> str:
    """A record's `hardware` in one line: what is emulated, on what, and what of it is not enforced."""
    where = f", emulated on {held['emulated_on']}" if held["emulated_on"] else ""
    loose = [f"{name}: {one['how']}" for name, one in held["limits"].items() if not one["enforced"]]
    return f"{held['card']}, {held['mode']}{where}{'; not enforced: ' if loose else ''}{'; '.join(loose)}"


def notes(runs: Mapping[str, Run]) -> list[str]:
    """A sentence about all runs, by name, that emulated the same on the same device."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, run in runs.items():
        if run.part("hardware").get("emulated_on"):
            found[shown(run.part("hardware"))].append(name)
    return [f"{text}. Times are those of the emulation (runs: {', '.join(names)})." for text, names in found.items()]


def predicted(runs: Mapping[str, Run]) -> JSON:
    """What finished runs, by name, would take on the card itself, beside Table 2; {} when none says."""
    rows = [
        {"name": name, **held["prediction"], "differs": held.get("differs", [])}
        for name, run in runs.items()
        if (held := run.part("hardware")).get("prediction")
    ]
    if not rows:
        return {}
    cards = sorted({str(run.part("hardware")["card"]) for run in runs.values() if run.part("hardware")})
    return {"rows": rows, "card": ", ".join(cards), "sustained": rows[0]["sustained"], "table2": published.hours()}
