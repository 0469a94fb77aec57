"""`cass-scale bench name=compare`: two records of one question, figure by figure: is the change noise?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cass_scale import records
from cass_scale.errors import ConfigError, DataError
from cass_scale.evidence import Finding
from cass_scale.run import differences
from cass_scale.types import JSON
from cass_scale.verbs.wire import Build

SPREAD = (0.05, 0.95)  # quantiles: of three values nearly their range, of thirty without the odd hiccup
VERDICTS = ("higher", "lower", "one value", "noise")  # in the order of the table


def run(config: JSON, build: Build, say: Callable[[str], None]) -> Finding:
    """Compare the records `bench.a` and `bench.b`. Raises ConfigError when they answer different questions."""
    a, b = (read(config["bench"][key], key) for key in ("a", "b"))
    refuse_unlike(a, b)
    rows = [verdict(name, x, y) for name, (x, y) in paired(a["figures"], b["figures"]).items()]
    rows.sort(key=lambda row: VERDICTS.index(row["verdict"]))
    return Finding(f"Change: {a['question']}", "\n\n".join([about(a, b), table(rows)]), rows)


def read(place: str, key: str) -> JSON:
    """The record in a folder, or the run.json itself. Raises DataError when it is no record of a benchmark."""
    path = Path(place)
    path = path / records.RUN if path.is_dir() else path
    record = records.read_json(path)
    if not {"question", "figures", "options", "git"} <= record.keys():
        raise DataError(
            f"{key}={place}: {path} is no record of a benchmark; give a folder that `bench ... out=FOLDER` wrote"
        )
    return record


def refuse_unlike(a: JSON, b: JSON) -> None:
    """Raise ConfigError for records of different questions, or of different schemas, naming both code versions."""
    if a["question"] != b["question"]:
        raise ConfigError(f"a and b answer different questions: {a['question']!r} and {b['question']!r}")
    if a.get("schema") != b.get("schema"):
        raise ConfigError(
            f"a has schema {a.get('schema')} ({code(a)}), b has schema {b.get('schema')} ({code(b)}): their figures do "
            "not mean the same; measure again with one of the two"
        )


def code(record: JSON) -> str:
    """Version and commit that wrote a record."""
    git = record["git"]
    version = record.get("versions", {}).get("cass-scale", "?")
    return f"cass-scale {version} at {str(git.get('sha'))[:12]}{' with changes' if git.get('dirty') else ''}"


def about(a: JSON, b: JSON) -> str:
    """Where the records come from, and what else than the code differs."""
    lines = [
        f"{name}: {code(record)}, {record['machine']}, {record['finished'][:10]}"
        for name, record in (("a", a), ("b", b))
    ]
    for what, old, new in (
        ("Other options", _without_place(a["options"]), _without_place(b["options"])),
        ("Other versions", a.get("versions", {}), b.get("versions", {})),
        ("Other machine", {"machine": a["machine"]}, {"machine": b["machine"]}),
    ):
        if changed := differences(old, new):
            lines.append(f"**{what}**: {'; '.join(changed)}")
    return "  \n".join(lines)


def _without_place(options: Mapping[str, Any]) -> JSON:
    return {key: value for key, value in options.items() if key != "out"}


def paired(a: Any, b: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Values of every figure of both records by its name; [] where one lacks it."""
    sides = [dict[str, list[float]](), dict[str, list[float]]()]
    for side, figures in zip(sides, (a, b), strict=True):
        for name, value in leaves(figures):
            side.setdefault(name, []).append(value)
    return {name: (sides[0].get(name, []), sides[1].get(name, [])) for name in {**sides[0], **sides[1]}}


def leaves(node: Any, name: str = "", repeats: bool = False) -> Iterator[tuple[str, float]]:
    """Every number with its name. The first list on the way holds repetitions, as does every list of numbers."""
    if isinstance(node, bool) or node is None or isinstance(node, str):
        return
    if isinstance(node, int | float):
        yield name, float(node)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key), repeats)
    else:
        plain = all(isinstance(value, int | float) for value in node)
        for number, value in enumerate(node):
            yield from leaves(value, f"{name}.{number}" if repeats and not plain else name, True)


def verdict(name: str, a: list[float], b: list[float]) -> JSON:
    """Medians, spreads, and whether the spreads overlap: then the change is noise."""
    row: JSON = {"figure": name, "a": _side(a), "b": _side(b), "ratio": None, "verdict": "one value"}
    if not a or not b:
        return row
    row["ratio"] = row["b"]["median"] / row["a"]["median"] if row["a"]["median"] else None
    if a == b or (
        min(len(a), len(b)) > 1 and row["a"]["low"] <= row["b"]["high"] and row["b"]["low"] <= row["a"]["high"]
    ):
        row["verdict"] = "noise"
    elif min(len(a), len(b)) > 1:
        row["verdict"] = "higher" if row["b"]["median"] > row["a"]["median"] else "lower"
    return row


def _side(values: list[float]) -> JSON:
    if not values:
        return {"n": 0}
    low, middle, high = (float(q) for q in np.quantile(values, (SPREAD[0], 0.5, SPREAD[1])))
    return {"n": len(values), "median": middle, "low": low, "high": high}


def table(rows: list[JSON]) -> str:
    """One line per figure, changes first."""
    changed = sum(row["verdict"] in ("higher", "lower") for row in rows)
    lines = [
        f"{changed} of {len(rows)} figures changed by more than their spread: the 5 to 95 % ranges do not overlap.",
        "",
        "| figure | a, median (5 to 95 %) | b, median (5 to 95 %) | b / a | change |",
        "|---|---|---|---|---|",
        *map(_line, rows),
    ]
    return "\n".join(lines)


def _line(row: JSON) -> str:
    words = {"higher": "**higher in b**", "lower": "**lower in b**", "one value": "one value: cannot be told"}
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
    name, change = row["figure"].replace("|", "/"), words.get(row["verdict"], row["verdict"])
    return f"| {name} | {_text(row['a'])} | {_text(row['b'])} | {ratio} | {change} |"


def _text(side: JSON) -> str:
    if not side["n"]:
        return "not there"
    between = f" ({side['low']:.4g} to {side['high']:.4g}, {side['n']})" if side["n"] > 1 else ""
    return f"{side['median']:.4g}{between}"
