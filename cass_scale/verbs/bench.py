"""`cass-scale bench`: one measurement of this machine, shown as a table and left as a record."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path

from cass_scale import evidence, hardware
from cass_scale.console import Console
from cass_scale.errors import Problems
from cass_scale.types import JSON, Call
from cass_scale.verbs import settings
from cass_scale.verbs.bench_rules import BENCH
from cass_scale.verbs.wire import Build


def run(config: JSON, build: Build, call: Call) -> JSON:
    """Measure; returns question, table and figures, and the record's folder if there is one."""
    name, out = config["bench"]["name"], config["out"]
    problems = Problems()
    settings.check_values(config, BENCH[name], problems)
    problems.found += hardware.problems(config["hardware"], "auto", "")
    problems.check(out is None or settings.writable(Path(out)), f"out={out}: not writable; choose another folder")
    problems.raise_if_any()
    console = Console(quiet=call.quiet)
    module = import_module(f"cass_scale.measure.{name}")
    if call.dry_run:
        sides = module.dry_run(config, build, console) if hasattr(module, "dry_run") else None
        console.say(f"would run {name}: {config['bench']}\nnothing was started (--dry-run)")
        return {"name": name} | ({"sides": sides} if sides else {})
    found: evidence.Finding = module.run(config | {"bench": left_of(config["bench"], call)}, build, console.say)
    console.say(f"\n{found.table}")
    if out is not None:
        limits = hardware.read(config["hardware"])
        machine = evidence.machine() + (f", emulating: {limits.shown}" if limits else "")
        evidence.write_record(Path(out), found, command=call.command, options=config, machine=machine)
        console.say(f"record: {out}")
    return {"question": found.question, "table": found.table, "figures": found.figures, "out": out}


def left_of(options: JSON, call: Call) -> JSON:
    """The options with what is left of `bench.limit`, which counts from the start of the process, imports included."""
    limit = options.get("limit")
    if limit is None or call.born is None:
        return options
    return options | {"limit": max(0.0, limit - (time.time() - call.born))}
