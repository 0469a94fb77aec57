"""One run folder: its record, metrics, checkpoints, meter and console."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cass_scale import records
from cass_scale.checkpoint import Checkpoints
from cass_scale.console import Console
from cass_scale.errors import StorageError
from cass_scale.meter import Meter
from cass_scale.types import JSON

Track = Callable[[JSON, int], None]


class Run:
    """Everything a loop leaves behind. Only the main rank writes; the others keep clocks and stay silent."""

    def __init__(self, folder: Path, meter: Meter, console: Console, *, keep: int = 2, main: bool = True) -> None:
        self.folder, self.meter, self.console, self.main = folder, meter, console, main
        self.checkpoints = Checkpoints(folder / "checkpoints", keep)
        self.metrics = records.MetricsLog(folder / records.METRICS, repair=main)
        self.track: Track = lambda row, step: None
        self.before_step: Callable[[int | None], None] = lambda step: None  # every step's number; None: all done
        self.collapse: list[JSON] = list(records.read(folder)["collapse"]) if main else []
        self.last: JSON = {}

    def log(self, row: JSON, total: int) -> None:
        """Append one metrics row, show it, and send it to the trackers."""
        self.last = row
        if self.main:
            with storing(self.metrics.path):
                self.metrics.append(row)
            self.track(row, row["step"])
        self.console.row(row, total)

    def update(self, **fields: Any) -> None:
        """Set fields of run.json, with the meter's state as of now."""
        if self.main:
            with storing(self.folder / records.RUN):
                records.update(self.folder, **self.meter.report(), **fields)

    def note_collapse(self, step: int, found: list[tuple[str, str]]) -> None:
        """Record and announce arms that were seen collapsed for the first time."""
        known = {entry["arm"] for entry in self.collapse}
        new = [{"step": step, "arm": arm, "why": why} for arm, why in found if arm not in known]
        self.collapse += new
        for entry in new:
            self.console.warn(f"COLLAPSE at step {step}, {entry['arm']}: {entry['why']}")
        if new:
            self.update(collapse=self.collapse)

    def rewind(self, step: int, meter_state: JSON | None) -> None:
        """Go back to the checkpoint of `step`; time worked after it is billed as lost, its rows dropped.

        Without a meter's state to the very beginning: an earlier process was killed before its first checkpoint, maybe
        with no row but that of step 0, which has no time.
        """
        rows = records.read_metrics(self.metrics.path)
        self.meter.load(meter_state, lost_until=rows[-1].get("seconds", 0.0) if rows else 0.0)
        self.last = next((row for row in reversed(rows) if row["step"] <= step), {})
        kept = [entry for entry in self.collapse if entry["step"] <= step]
        if kept != self.collapse:
            self.collapse = kept
            self.update(collapse=kept)
        if self.main:
            with storing(self.metrics.path):
                self.metrics.truncate(step)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what the file system says while `path` is written into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} could not be written ({error.strerror}); the last checkpoint is whole: "
            "free some space or mend the folder, then run the same command again"
        ) from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two resolved configurations, as `key: old -> new`."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        was, now, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found += differences(was, now, f"{name}.")
        elif was != now:
            found.append(f"{name}: {was} -> {now}")
    return found
