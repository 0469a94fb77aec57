"""Records to one self-contained HTML page. Never imports torch; needs the extra `report`."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from cass_scale import charts, choice, published, records, studies
from cass_scale.claims import MINUS, judge
from cass_scale.errors import ConfigError, MissingExtra
from cass_scale.grid import SEEDS_FOR_INTERVAL
from cass_scale.results import METRICS, NULL, PROTOCOLS, Run, Table, load, tables
from cass_scale.robustness import Estimate
from cass_scale.studies import Study
from cass_scale.study_page import section
from cass_scale.types import JSON

PUBLISHED = frozenset({"cass", "cass_paper", "cass_official"})  # the cosine objective, which collapses
REMEDY = "cass_contrast"
SPANS = ("data", "views", "step", "monitor", "checkpoint", "other")  # shown first; a run may have more
MOST_BAD = 200  # files listed; the rest are counted
DASH = "\N{EN DASH}"
PNG = b"\x89PNG\r\n\x1a\n"


def report(runs: Path, out: Path) -> Path:
    """Write the page about every study and every other run below `runs` to the file `out` and return `out`.

    Raises DataError when there is no run or a record is newer than this package, ConfigError when `out`
    cannot be written, MissingExtra without jinja2 or matplotlib.
    """
    notes: list[str] = []
    found = [studies.load(folder, notes) for folder in studies.find(runs)]
    others, more = load(runs, apart=[study.folder for study in found])
    render("report.html.j2", _page(others, notes + more) | _of_studies(found), out)
    return out


def _of_studies(found: list[Study]) -> JSON:
    return {
        "studies": [section(study) for study in found],
        "verdicts": judge(published.claims(), found) if found else [],
        "anchors": {study.folder: f"study-{number + 1}" for number, study in enumerate(found)},
        "seeds_for_interval": SEEDS_FOR_INTERVAL,
    }


def render(template: str, values: JSON, out: Path) -> None:
    """Write a template of `templates/` to the file `out`. Raises ConfigError and MissingExtra as `report` does."""
    try:
        from jinja2 import ChainableUndefined, Environment, FileSystemLoader
    except ImportError as why:
        raise MissingExtra("jinja2", "report", "The report") from why
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # names of classes, arms and folders are other people's text
        undefined=ChainableUndefined,  # a run that failed early has half a record
        finalize=lambda value: DASH if value is None or isinstance(value, ChainableUndefined) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "hours": hours,
        "score": score,
        "difference": difference,
        "count": count,
        "moment": moment,
        "printed": "{:g}".format,
        "estimate": partial(interval, form=score),
        "gap": partial(interval, form=difference),
        "took": partial(interval, form=hours),
        "percent": partial(interval, form=lambda value: f"{100 * value:.1f} %".replace("-", MINUS)),
        "tenthousandths": partial(interval, form=lambda value: f"{1e4 * value:.2f}".replace("-", MINUS)),
    }
    page = environment.get_template(template).render(values)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        records.atomic_write_text(out, page)
    except OSError as why:
        problem = f"out={out} cannot be written ({why.strerror}); name a file in a writable folder"
        raise ConfigError(problem) from why


def _page(runs: list[Run], notes: list[str]) -> JSON:
    scores, cases = tables(runs), choice.cases(runs)
    done = [run for run in runs if run.done]
    return {
        "made": records.now(),
        "version": records.versions(["cass-scale"]).get("cass-scale", ""),
        "notes": notes,
        "banners": _banners(runs),
        "data_notes": _data_notes(runs),
        "findings": _findings(scores),
        "done": [_summary(run, runs) for run in done],
        "unfinished": [_summary(run, runs) for run in runs if not run.done],
        "tables": scores,
        "metrics": METRICS,
        "protocols": PROTOCOLS,
        "cases": cases,
        "picks": choice.picks(cases),
        "fewest": choice.FEWEST,
        "overlays": _overlays(done),
        "samples": _samples(runs),
        "spans": list(dict.fromkeys(name for run in done for name, *_ in _shares(run.part("spans")))),
        "details": [_details(run, runs) for run in runs],
        "most_bad": MOST_BAD,
    }


def _anchor(run: Run, runs: list[Run]) -> str:
    return f"run-{runs.index(run) + 1}"


def _banners(runs: list[Run]) -> list[JSON]:
    """One banner per collapsed run: arms with the first step at which the monitor saw it."""
    remedies = [run for run in runs if run.method == REMEDY and run.done and not run.collapse]
    banners = []
    for run in (run for run in runs if run.collapse):
        first: dict[str, Any] = {}
        for entry in run.collapse:
            first.setdefault(str(entry.get("arm", "?")), entry.get("step", "?"))
        published = run.method in PUBLISHED
        banners.append(
            {
                "run": run,
                "anchor": _anchor(run, runs),
                "arms": first,
                "published": published,
                "remedies": [(r.name, _anchor(r, runs)) for r in remedies] if published else [],
            }
        )
    return banners


def _data_notes(runs: list[Run]) -> list[str]:
    synthetic: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        if run.part("data").get("synthetic"):
            synthetic[str(run.part("data").get("name"))].append(run.name)
    notes = [
        f"synthetic {name} data: says nothing about medicine (runs: {', '.join(members)})."
        for name, members in synthetic.items()
    ]
    return notes + [
        f"{run.name} was trained on Gaussian noise images (data.noise=true): a control. What it gains is "
        "conditioning of the weights, not knowledge of the images."
        for run in runs
        if run.part("data").get("noise")
    ]


def _findings(scores: Iterable[Table]) -> dict[str, list[tuple[str, list[str]]]]:
    """Per run, for each protocol, macro F1 of each arm against the null control in words."""
    found: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for table in scores:
        by_run: dict[str, list[str]] = defaultdict(list)
        for row in table.rows:
            cell = row.cells["macro_f1"]
            if row.kind == "run" and cell.value is not None:
                worth = "no null control to compare with"
                if cell.delta is not None:
                    place = "within noise" if cell.verdict == "within noise" else f"{cell.verdict} the null control"
                    worth = f"{difference(cell.delta)}, {place}"
                by_run[row.run.name].append(f"{row.arm} {score(cell.value)} ({worth})")
        title = ", ".join(filter(None, (PROTOCOLS.get(table.protocol, table.protocol), table.data, table.amount)))
        for name, words in by_run.items():
            found[name].append((title, words))
    return found


def _summary(run: Run, runs: list[Run]) -> JSON:
    record, spans = run.record, run.part("spans")
    total = sum(spans.values())
    speeds = sorted(row["images_per_s"] for row in run.rows if row.get("images_per_s"))
    last = run.rows[-1] if run.rows else {}
    return {
        "run": run,
        "anchor": _anchor(run, runs),
        "arms": {arm: made.get("model", "?") for arm, made in run.part("arms").items()},
        "data": run.part("data"),
        "images": record.get("images_seen"),
        "steps": record.get("steps"),
        "total_steps": record.get("total_steps"),
        "wall": total / 3600 if spans else None,
        "hours": run.part("device_hours"),
        "flops": record.get("flops_per_image"),
        "speed": speeds[len(speeds) // 2] if speeds else None,
        "wait": spans.get("data", 0.0) / total if total else None,
        "memory": record.get("peak_memory_bytes"),
        "status": record.get("status", "unknown"),
        "collapsed": DASH if run.method == NULL else "yes" if run.collapse else "no",
        "dirty": run.part("git").get("dirty"),
        "last_step": last.get("step"),
        "error": record.get("error"),
        "shares": _shares(spans),
    }


def _shares(spans: JSON) -> list[tuple[str, float, float]]:
    """Name, seconds and percent of every span, the known ones first."""
    total = sum(spans.values()) or 1.0
    names = [name for name in SPANS if name in spans] + sorted(spans.keys() - set(SPANS))
    return [(name, spans[name], 100 * spans[name] / total) for name in names]


def _overlays(runs: list[Run]) -> list[JSON]:
    """Runs on the same data in the same drawing, six at a time: more lines cannot be told apart."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        data = run.part("data")
        groups[str(data.get("name", "?")), str(data.get("fingerprint"))].append(run)
    return [
        {"data": name, "charts": drawn}
        for (name, _), members in groups.items()
        for start in range(0, len(members), 6)
        if (drawn := charts.overlay(members[start : start + 6]))
    ]


def _details(run: Run, runs: list[Run]) -> JSON:
    config = run.folder / records.CONFIG
    environment = run.folder / records.ENV
    return {
        "run": run,
        "anchor": _anchor(run, runs),
        "summary": _summary(run, runs),
        "charts": charts.of_run(run),
        "config": config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        "env": environment.read_text(encoding="utf-8", errors="replace") if environment.is_file() else "",
        "bad": run.part("data").get("bad") or [],
    }


def _samples(runs: list[Run]) -> dict[str, list[str]]:
    """Data URIs of the sample views with the names of the runs that saw them; equal pictures appear once."""
    found: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        path = run.folder / "samples.png"
        content = path.read_bytes() if path.is_file() else b""
        if content.startswith(PNG):
            found["data:image/png;base64," + base64.b64encode(content).decode()].append(run.name)
    return found


def hours(value: Any) -> str:
    """Hours in the unit a person would say; a dash for what was not recorded."""
    if not isinstance(value, int | float):
        return DASH
    seconds = value * 3600
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{value:.1f} h"


def moment(value: Any) -> str:
    """An ISO 8601 time in UTC as people write it, to the minute."""
    text = str(value)
    return f"{text[:10]} {text[11:16]} UTC" if text.endswith("+00:00") else text


def score(value: Any) -> str:
    """Three digits, or a dash."""
    return f"{value:.3f}" if isinstance(value, int | float) else DASH


def difference(value: float) -> str:
    """Signed, three digits, with a real minus sign."""
    return f"{value:+.3f}".replace("-", MINUS)


def interval(number: Any, form: Callable[[float], str]) -> str:
    """An estimate as `value (low to high)`; a dash for none."""
    if not isinstance(number, Estimate):
        return DASH
    between = (
        f" ({form(number.low)} to {form(number.high)})" if number.low is not None and number.high is not None else ""
    )
    return form(number.value) + between


def count(value: Any) -> str:
    """Whole number with thin spaces between thousands, or a dash."""
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}") if isinstance(value, int | float) else DASH
