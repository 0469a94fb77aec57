"""`cass-scale report`: one page about the runs of a folder. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from cass_scale.console import Console
from cass_scale.page import report
from cass_scale.types import JSON, Call


def run(config: JSON, build: object, call: Call) -> JSON:
    """Write the page; returns where."""
    out = Path(config["out"])
    if call.dry_run:
        Console(quiet=call.quiet).say(f"would write {out} about the runs below {config['runs']} (--dry-run)")
        return {"out": str(out)}
    written = report(Path(config["runs"]), out)
    Console(quiet=call.quiet).say(f"report: {written}")
    return {"out": str(written)}
