"""`cass-scale doctor`: what this machine has and lacks."""

from __future__ import annotations

from cass_scale.checkup import doctor
from cass_scale.console import Console
from cass_scale.errors import ConfigError
from cass_scale.types import JSON, Call


def run(config: JSON, build: object, call: Call) -> JSON:
    """Print the findings; `exit_code` is 0 when the main job can run here."""
    seconds = config["seconds"]
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds >= 0:
        raise ConfigError(f"seconds={seconds}: a number of at least 0 is needed; 0 skips the self-test")
    seconds = 0 if call.dry_run else seconds
    return {"exit_code": doctor(seconds=seconds, out=Console(quiet=call.quiet).say)}
