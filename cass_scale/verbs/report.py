"""`cass-scale report`: one page about the runs of a folder. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from cass_scale import records
from cass_scale.console import Console
from cass_scale.errors import Problems
from cass_scale.page import report
from cass_scale.types import JSON, Call


def run(config: JSON, build: object, call: Call) -> JSON:
    """Write the page; returns where."""
    problems = Problems()
    for key, what in (("runs", "the folder of the runs"), ("out", "the file to write")):
        problems.check(isinstance(config[key], str) and config[key] != "", f"{key}={config[key]}: {what} is needed")
    problems.raise_if_any()
    runs, out = Path(config["runs"]), Path(config["out"])
    if call.dry_run:
        found = len(records.find_runs(runs))
        Console(quiet=call.quiet).say(f"would write {out} about the {found} runs below {runs} (--dry-run)")
        return {"out": str(out)}
    written = report(runs, out)
    Console(quiet=call.quiet).say(f"report: {written}")
    return {"out": str(written)}
