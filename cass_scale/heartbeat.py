"""Where a run stands, read from its folder alone: its record, last rows, checkpoints and heartbeat. No torch."""

from __future__ import annotations

import time
from pathlib import Path

from cass_scale import records
from cass_scale.errors import DataError
from cass_scale.locks import busy
from cass_scale.types import JSON

HEARTBEAT = "heartbeat.json"  # rank 0's thread writes it every few seconds
RECENT = 5  # rows whose median rate is taken


def look(folder: Path) -> JSON:
    """Raises DataError when the folder holds no run or the record cannot be read."""
    record, held = records.read(folder), busy(folder)
    rows = [row for row in records.read_metrics(folder / records.METRICS) if "loss" in row]
    last = rows[-1] if rows else {}
    beats = _beats(folder)
    step = max([last.get("step", 0), record.get("steps", 0), *(max(0, b["step"] - 1) for b in beats["ranks"] if held)])
    rates = sorted(row["images_per_s"] for row in rows[-RECENT:])
    rate = rates[len(rates) // 2] if rates else None
    total, batch = record.get("total_steps", 0), record.get("batch_size", 0)
    return {
        "run": str(folder),
        "status": record["status"],
        "held": held,
        "state": _state(record["status"], held),
        "step": step,
        "total_steps": total,
        "epoch": last.get("epoch"),
        "epochs": record.get("epochs"),
        "images_per_s": rate,
        "data_wait": last.get("data_wait"),
        "hours_left": max(0, total - step) * batch / rate / 3600 if rate else None,
        "loss": last.get("loss"),
        "collapse": record.get("collapse", []),
        "checkpoint": _checkpoint(folder),
        "device_hours": record.get("device_hours", {}).get("total"),
        "error": record.get("error"),
        "heartbeat_s": beats["age_s"],
        "ranks": beats["ranks"],
    }


def _state(status: str, held: bool) -> str:
    """In words, where the record alone would mislead."""
    if status == "running":
        return "running" if held else "dead: no process holds the folder; run the same command again to continue"
    return "ending or starting again" if held else status


def _checkpoint(folder: Path) -> JSON | None:
    """Step and age in seconds of the newest."""
    saved = sorted((folder / "checkpoints").glob("step_*.pt"))
    if not saved:
        return None
    return {"step": int(saved[-1].stem.removeprefix("step_")), "age_s": time.time() - saved[-1].stat().st_mtime}


def _beats(folder: Path) -> JSON:
    """Every rank's last beat with its age in seconds, and the age of the file itself."""
    try:
        found = records.read_json(folder / HEARTBEAT)
    except DataError:
        return {"age_s": None, "ranks": []}
    age = max(0.0, time.time() - found["time"])
    return {"age_s": age, "ranks": [beat | {"age_s": beat["age_s"] + age} for beat in found["ranks"]]}


def when(seconds: float) -> str:
    """An age as people say it."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
