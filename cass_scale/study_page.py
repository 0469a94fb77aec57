"""A study on the page: scores with intervals, beside the paper's, and what they cost. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from cass_scale import charts, hardware_page, published, robustness
from cass_scale.charts import Axis, Chart, Line
from cass_scale.claims import moves, saving, steadier
from cass_scale.results import METRICS, NULL, PROTOCOLS, Run
from cass_scale.robustness import Estimate
from cass_scale.studies import INITIAL, BySeed, Study, common, origin
from cass_scale.types import JSON

CONTROLS = frozenset({NULL, "cass_noise", "contrast_noise", INITIAL})
USUAL = ("finetune", "linear", "knn")  # the paper's protocol, and what comes nearest
MOST = 6  # runs in one drawing
LEVEL = 0.05  # of a table's corrected p


def section(study: Study) -> JSON:
    """Everything that the template shows of one study."""
    seed = min((member.seed for member in study.members), default=0)
    first = {f"{m.name}, {m.setting}": m.run for m in study.members if m.run and m.seed == seed}
    return {
        "study": study,
        "metric": METRICS.get(study.target, study.target),
        "about": _about(study),
        "codes": origin([study]).get("codes", []),
        "unfinished": [member for member in study.members if not member.done],
        "emulated": hardware_page.notes(first),
        "predicted": hardware_page.predicted(first),
        "overview": [_overview(study, row) for row in study.rows if row != INITIAL],
        "figures": _figures(study),
        "scores": [_scores(study, protocol) for protocol in study.protocols],
        "robustness": [_robustness(study, protocol) for protocol in study.protocols] if len(study.settings) > 1 else [],
        "printed": _printed(study),
        "savings": _savings(study),
        "costs": _costs(study),
        "table2": published.hours() if study.name == "pretraining_time" else {},
        "own_gains": {name: published.own_gain(name) for name in study.protocols if name in published.SHARES},
        "curves": _curves(study),
    }


def _about(study: Study) -> JSON:
    runs = study.runs
    return {
        "done": sum(member.done for member in study.members),
        "data": study.data,
        "synthetic": any(run.part("data").get("synthetic") for run in runs),
        "arms": sorted({made.get("model", "?") for run in runs for made in run.part("arms").values()}),
        "sizes": sorted({run.record.get("image_size") or 0 for run in runs}),
        "device": sorted({str(run.part("device").get("name", "?")) for run in runs}),
        "seeds": len({member.seed for member in study.members}),
        "tests": sorted({e["n_test"] for run in runs for e in run.evaluations}),
    }


def _overview(study: Study, row: str) -> JSON:
    members = [member for member in study.members if member.row == row]
    runs = study.finished(row)
    return {
        "row": row,
        "planned": len(members),
        "done": sum(member.done for member in members),
        "collapsed": None if row == NULL else sum(bool(run.collapse) for run in runs),
    }


def mean_of(values: BySeed, most: float = math.inf) -> Estimate | None:
    """Mean over seeds of what lies between 0 and `most`, with its interval."""
    if not values:
        return None
    return robustness.estimate(robustness.average, _array(values, sorted(values)), least=0.0, most=most)


def difference_of(one: BySeed, other: BySeed) -> Estimate | None:
    """Mean of the paired differences with its interval."""
    seeds = common([one, other])
    return robustness.estimate(robustness.gap, _array(one, seeds), _array(other, seeds)) if seeds else None


def _array(values: BySeed, seeds: Sequence[int]) -> robustness.Floats:
    return np.array([[[values[seed] for seed in seeds]]])


def _all(study: Study, names: Callable[[str, str], list[str]]) -> list[str]:
    pairs = [(row, setting) for row in study.rows for setting in study.settings]
    arms = dict.fromkeys(arm for pair in pairs for arm in study.arms(*pair))  # first, whatever else has scores
    return list(arms | dict.fromkeys(name for pair in pairs for name in names(*pair)))


def _figures(study: Study) -> list[Chart]:
    """Figure 2 drawn anew: a chart per protocol and arm, a line per row, whiskers for the intervals."""
    axis = Axis(str(study.record["axis"]), tuple(study.settings))
    caption = f"{METRICS[study.target]} on held-back images."
    drawn = []
    for protocol in study.protocols if len(study.settings) > 1 else []:
        for arm in _all(study, study.arms):
            lines = [line for i, row in enumerate(study.rows) if (line := _curve(study, row, arm, protocol, i))]
            drawn += [charts.draw(f"{arm}, {study.how(protocol)}", caption, lines, axis=axis)] if lines else []
    return drawn


def _curve(study: Study, row: str, arm: str, protocol: str, number: int) -> Line | None:
    shift = (number - len(study.rows) / 2) * 0.03  # so that whiskers stand beside each other
    points = [
        (i, mean_of(study.scores(row, setting, arm, protocol), most=1.0)) for i, setting in enumerate(study.settings)
    ]
    known = [(i + shift, point) for i, point in points if point]
    if not known:
        return None
    x, y = [at for at, _ in known], [point.value for _, point in known]
    return Line(row, x, y, number % 6, number // 6, bars=[point.interval for _, point in known])


def _scores(study: Study, protocol: str) -> JSON:
    """Rows by arm, and of both arms together: a mean per setting, its paired difference to the null control, its p.

    A difference has the verdict that its p allows, corrected by Holm for the whole table.
    """
    arms: list[JSON] = []
    for arm in _all(study, study.columns):
        lines = [(row, [_cell(study, row, setting, arm, protocol) for setting in study.settings]) for row in study.rows]
        rows = [
            {"row": row, "control": row in CONTROLS, "cells": cells}
            for row, cells in lines
            if any(cell["mean"] for cell in cells)
        ]
        arms += [{"arm": arm, "rows": rows}] if rows else []
    correct([cell for arm in arms for row in arm["rows"] for cell in row["cells"]])
    title = PROTOCOLS.get(protocol) or study.how(protocol)
    return {"protocol": protocol, "title": title, "arms": arms}


def _cell(study: Study, row: str, setting: str, arm: str, protocol: str) -> JSON:
    values = study.scores(row, setting, arm, protocol)
    null = study.scores(NULL, setting, arm, protocol)
    delta = difference_of(values, null) if row != NULL else None
    seeds = common([values, null]) if delta else []
    p = robustness.paired_p(np.array([values[seed] - null[seed] for seed in seeds]))
    planned = len({m.seed for m in study.members if m.setting == setting and row in (m.row, INITIAL)})
    missing = planned - len(values) if values else 0
    return {"mean": mean_of(values, most=1.0), "delta": delta, "p": p, "missing": missing}


def correct(cells: Sequence[JSON]) -> None:
    """Give every cell of a table `holm`, its p corrected for all of them, and the `verdict` that this allows."""
    tested = [cell for cell in cells if cell["p"] is not None]
    for cell in cells:
        cell |= {"holm": None, "verdict": ""}
    for cell, p in zip(tested, robustness.holm([cell["p"] for cell in tested]), strict=True):
        sign = "above" if cell["delta"].value > 0 else "below"
        cell |= {"holm": p, "verdict": sign if p < LEVEL else "noise"}


def _robustness(study: Study, protocol: str) -> JSON:
    """Variance over settings as the paper has it, what seeds alone make of it, the worst drop; beside every DINO's."""
    dinos = [row for row in published.rows_of("dino") if moves(study, row, protocol, robustness.variance)]
    rows = []
    for row in study.rows:
        if (whole := study.grid(row, protocol, study.settings)) is None:
            continue
        others = [dino if dino != row else None for dino in dinos]
        found = {"row": row, "control": row in CONTROLS, "noise": robustness.noise(whole[0])}
        for name, statistic in (("variance", robustness.variance), ("drop", robustness.worst_drop)):
            found[name] = moves(study, row, protocol, statistic)
            found[f"{name}_less"] = [other and steadier(study, row, other, protocol, statistic) for other in others]
        rows.append(found)
    paper = published.tables()["variances"].get(study.name)
    return {"protocol": protocol, "title": study.how(protocol), "dinos": dinos, "rows": rows, "paper": paper}


def _printed(study: Study) -> list[JSON]:
    """The paper's tables, every number beside ours where there is one."""
    usual = next((protocol for protocol in USUAL if protocol in study.protocols), "")
    found = []
    for number, table in published.tables_of(study.name).items():
        lines = []
        for line in table["values"]:
            row = study.first(published.rows_of(line["row"]), lambda name: name == INITIAL or study.finished(name))
            setting, protocol = str(line.get("setting", study.record["standard"])), line.get("protocol") or usual
            for arm, (printed, _) in ((key, value) for key, value in line.items() if isinstance(value, list)):
                ours = mean_of(study.scores(row, setting, arm, protocol), most=1.0) if row else None
                less = ours.value - printed if ours else None
                lines.append(
                    {"line": line, "arm": arm, "by": study.how(protocol), "paper": printed, "ours": ours, "less": less}
                )
        found.append({"number": number, "table": table, "lines": lines})
    return found


def _costs(study: Study) -> JSON:
    """Hours and FLOPs of pretraining per row, at the standard setting."""
    setting = str(study.record["standard"])
    rows: list[JSON] = []
    longest = 0.0
    for row in study.rows if setting in study.settings else []:
        if took := mean_of(study.hours(row, setting)):
            counted = flops(study.finished(row, setting))
            rate = counted / took.value / 3600 if counted else None
            total = mean_of(study.hours(row, setting, "total"))
            rows.append({"row": row, "train": took, "total": total, "flops": counted, "rate": rate})
            longest = max(longest, took.value)
    points = [(row["row"], row["flops"], row["train"].value, row["train"].interval) for row in rows if row["flops"]]
    drawn = charts.flops_against_hours(points, "a run") if len(points) > 1 else None
    return {"setting": setting, "rows": rows, "longest": longest or 1.0, "chart": drawn}


def flops(runs: Sequence[Run]) -> float | None:
    """FLOPs of one seed's pretraining; None where a run did not count them."""
    if not runs or any(not run.record.get("flops_per_image") for run in runs):
        return None
    seeds = len({run.record.get("seed") for run in runs})
    return float(sum(run.record["flops_per_image"] * run.record["images_seen"] for run in runs)) / seeds


def _savings(study: Study) -> list[JSON]:
    """Share of device-hours, and of FLOPs, that every row saves against every DINO recipe, at the standard setting."""
    setting = str(study.record["standard"])
    dinos = [row for row in published.rows_of("dino") if row in study.rows]
    found = []
    for row in study.rows if setting in study.settings else []:
        for dino in dinos if row not in dinos and row not in CONTROLS else []:
            if share := saving(study, (row, setting), (dino, setting)):
                mine, theirs = (flops(study.finished(name, setting)) for name in (row, dino))
                by_flops = 1 - mine / theirs if mine and theirs else None
                found.append({"row": row, "dino": dino, "saving": share, "by_flops": by_flops})
    return found


def _curves(study: Study) -> list[Chart]:
    """Loss and ranks of the first seed at the standard setting."""
    shown = (str(study.record["standard"]), min((member.seed for member in study.members), default=0))
    runs = [member.ended for member in study.members if (member.setting, member.seed) == shown and member.ended]
    return [chart for start in range(0, len(runs), MOST) for chart in charts.overlay(runs[start : start + MOST])]
