"""`cass-scale doctor`: what this machine has and lacks."""

from __future__ import annotations

from cass_scale.checkup import doctor
from cass_scale.console import Console
from cass_scale.types import JSON, Call


def run(config: JSON, build: object, call: Call) -> JSON:
    """Print the findings; `exit_code` is 0 when the main job can run here."""
    seconds = 0 if call.dry_run else config["seconds"]
    return {"exit_code": doctor(seconds=seconds, out=Console(quiet=call.quiet).say)}
