"""Hours to the same score as a table; where a side never reaches it there is no ratio, and that is said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cass_scale import robustness
from cass_scale.claims import shown
from cass_scale.types import JSON


def table(
    target: JSON, methods: Sequence[str], recipes: Sequence[str], arms: Sequence[str], labelled: Sequence[str] = ()
) -> str:
    """Per protocol: hours of every side, per arm and of all arms, and what each method saves against each recipe.

    labelled: sides that train all arms in one run, as methods do; they have hours and no savings.
    """
    head = (
        f"Hours to {target['metric']} {target['target']:g} on held-back images: training alone, looked at every "
        f"{target['every']:.4g} steps of at most {target['steps']} (epochs: {target['epochs']}); evaluation is off the "
        "clock. All arms: a method's one run until the last arm is there, the sum of a recipe's runs."
    )
    parts = [head]
    for protocol in target["protocols"]:
        parts += [_hours(target, protocol, (*methods, *labelled), recipes, arms)]
        parts += [_saved(target, protocol, methods, recipes, arms)]
    return "\n\n".join(parts)


def _columns(arms: Sequence[str]) -> list[list[str]]:
    return [*([arm] for arm in arms), list(arms)]


def _hours(target: JSON, protocol: str, methods: Sequence[str], recipes: Sequence[str], arms: Sequence[str]) -> str:
    head = [f"{protocol}: hours", *arms, "all arms", "evaluation, hours"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for name in (*methods, *recipes):
        cells = [_cell(target, protocol, name, some, name in methods) for some in _columns(arms)]
        sides = [name] if name in methods else [f"{name}/{arm}" for arm in arms]
        looks = [look for side in sides for some in target["runs"][side].values() for look in some]
        observed = sum(look.get("observe", 0.0) for look in looks)
        lines.append(f"| {' | '.join([name, *cells, f'{observed:.3g}'])} |")
    return "\n".join(lines)


def _cell(target: JSON, protocol: str, name: str, arms: Sequence[str], together: bool) -> str:
    found = reached(target, protocol, name, arms, together)
    if isinstance(found, str):
        return found
    return shown(robustness.estimate(robustness.average, found, least=0.0), "{:.3g}")


def reached(target: JSON, protocol: str, name: str, arms: Sequence[str], together: bool) -> robustness.Floats | str:
    """Hours [1, 1, seeds] until all `arms` are there, or in words why there are none.

    together: the arms are trained by one run, else each by a run `name/arm` of its own.
    """
    by_arm = []
    for arm in arms:
        runs = target["runs"][name if together else f"{name}/{arm}"]
        firsts = [_first(looks, protocol, arm, target["target"]) for looks in runs.values()]
        if why := next((first for first in firsts if isinstance(first, str)), None):
            return why
        by_arm.append(firsts)
    hours = np.array(by_arm, dtype=float)
    return np.asarray((hours.max(axis=0) if together else hours.sum(axis=0))[None, None, :])


def _first(looks: Sequence[JSON], protocol: str, arm: str, goal: float) -> float | str:
    """Hours at the first look that reaches the goal, or why there is none."""
    scores = [(look["hours"]["train"], look["scores"][protocol][arm] or 0.0) for look in looks if "error" not in look]
    there = next((number for number, (_, score) in enumerate(scores) if score >= goal), None)
    if there == 0:
        return f"there before training ({scores[0][1]:.3f})"
    if there is not None:
        return float(scores[there][0])
    why = next((f"failed: {look['error']}" for look in looks if "error" in look), "never")
    best = f" (best {max(score for _, score in scores):.3f})" if scores else ""
    return why.replace("|", "/") + best


def _saved(target: JSON, protocol: str, methods: Sequence[str], recipes: Sequence[str], arms: Sequence[str]) -> str:
    head = [f"{protocol}: hours saved by", "against", *arms, "all arms"]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    for method in methods:
        for recipe in recipes:
            cells = [_ratio(target, protocol, method, recipe, some) for some in _columns(arms)]
            lines.append(f"| {' | '.join([method, recipe, *cells])} |")
    return "\n".join(lines)


def _ratio(target: JSON, protocol: str, method: str, recipe: str, arms: Sequence[str]) -> str:
    mine, theirs = reached(target, protocol, method, arms, True), reached(target, protocol, recipe, arms, False)
    if isinstance(mine, str) or isinstance(theirs, str):
        return "no ratio"
    return shown(robustness.estimate(robustness.share_less, mine, theirs, most=1.0), "{:.1%}")
