"""Sides of a comparison in processes of their own, in turns, so that drift of the machine hits them all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from cass_scale.slots import leave_with_parent
from cass_scale.types import JSON

TAIL = 400  # characters of a failed side's last words


def in_turns(sides: Mapping[str, Sequence[str]], turns: int, say: Callable[[str], None]) -> dict[str, list[JSON]]:
    """Run every side once a turn, in an order that alternates; a side is what follows `python -m`.

    Each prints one JSON object as its last line. One that fails is `{"error": its last words}`, and is not
    tried again.
    """
    found: dict[str, list[JSON]] = {name: [] for name in sides}
    for turn in range(turns):
        for name in sorted(sides, reverse=bool(turn % 2), key=list(sides).index):
            if not any("error" in result for result in found[name]):
                found[name].append(answer(sides[name]))
                say(f"turn {turn + 1}/{turns}  {name}: {found[name][-1].get('error', 'done')}")
    return found


def answer(words: Sequence[str]) -> JSON:
    """What `python -m` with these words prints as its last line; it gets SIGTERM when this process is killed."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=leave_with_parent)
    if done.returncode == 0 and (lines := done.stdout.strip().splitlines()):
        try:
            result: JSON = json.loads(lines[-1])
            return result
        except ValueError:
            return {"error": f"its last line is no JSON: {lines[-1][:TAIL]}"}
    said = done.stderr.strip().splitlines()
    return {"error": (said[-1] if said else f"exit code {done.returncode}")[-TAIL:]}


def failed(results: Sequence[JSON]) -> str:
    """Why a side failed, else ''."""
    return next((str(result["error"]) for result in results if "error" in result), "")


def spread(values: Sequence[float], digits: int = 0) -> str:
    """`median (least to most)`."""
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over turns of ours / theirs, turn by turn."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))
