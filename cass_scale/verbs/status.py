"""`cass-scale status`: where a running or dead run stands. Needs no torch, and no right to write."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cass_scale.console import Console
from cass_scale.errors import Problems
from cass_scale.heartbeat import look, when
from cass_scale.types import JSON, Call


def run(config: JSON, build: object, call: Call) -> JSON:
    """Print what is known; returns it."""
    folder, problems = config["run"]["dir"], Problems()
    problems.check(isinstance(folder, str) and folder != "", f"run.dir={folder}: the folder of a run is needed")
    problems.check(isinstance(config["json"], bool), f"json={config['json']}: true or false is needed")
    problems.raise_if_any()
    found = look(Path(folder))
    console = Console(quiet=call.quiet)
    if config["json"]:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return found
    for name, text in lines(found):
        console.say(f"{name:<12}{text}")
    return found


def lines(found: JSON) -> list[tuple[str, str]]:
    """Name and value of everything that is known."""
    saved, left = found["checkpoint"], found["hours_left"]
    collapse = "; ".join(f"{entry['arm']} at step {entry['step']}" for entry in found["collapse"])
    rate = (
        f"{found['images_per_s']:.1f} images/s, data wait {100 * found['data_wait']:.0f} %" if left is not None else ""
    )
    shown = [
        ("run", f"{found['run']}: {found['state']}"),
        ("step", f"{found['step']} of {found['total_steps']}"),
        ("epoch", f"{found['epoch']} of {found['epochs']}" if found["epoch"] is not None else ""),
        ("rate", rate),
        ("left", when(3600 * left) if left else ""),
        ("loss", f"{found['loss']:.4f}" if found["loss"] is not None else ""),
        ("collapse", collapse or "none seen"),
        ("saved", f"step {saved['step']}, {when(saved['age_s'])} ago" if saved else "nothing yet"),
        ("heartbeat", f"{when(found['heartbeat_s'])} ago" if found["heartbeat_s"] is not None else ""),
        ("error", found["error"] or ""),
    ]
    return [(name, text) for name, text in shown if text] + [(f"rank {b['rank']}", beat(b)) for b in found["ranks"]]


def beat(found: JSON) -> str:
    """One rank's last sign of life."""
    pace = f"{found['step_s']:.3f} s per step and {found['data_s']:.3f} s waiting for data"
    place = f"step {found['step']}, {found['doing'] or 'between'}, {found['where']}"
    return f"{when(found['age_s'])} ago in {place}; {pace} (process {found['pid']} on {found['host']})"
