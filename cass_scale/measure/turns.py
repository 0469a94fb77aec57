"""Sides of a comparison in processes of their own, in turns, so that drift of the machine hits them all."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from statistics import median
from tempfile import TemporaryFile

from cass_scale.slots import leave_with_parent
from cass_scale.types import JSON

TAIL = 400  # characters of a failed side's last words


UNFINISHED: JSON = {"error": "its time was up", "unfinished": True}
NEVER = math.inf  # on the clock of time.monotonic


def end_of(seconds: float | None) -> float:
    """When so many seconds from now are over, on the clock of time.monotonic; None: never."""
    return NEVER if seconds is None else time.monotonic() + seconds


def in_turns(
    sides: Mapping[str, Sequence[str]],
    turns: int,
    say: Callable[[str], None],
    *,
    stay: bool = False,
    until: float = NEVER,
) -> dict[str, list[JSON]]:
    """Run every side once a turn, in an order that alternates; a side is what follows `python -m`.

    Each prints one JSON object as its last line. One that fails is `{"error": why}`, as it printed it, else with its
    last words; it is not tried again. With `stay` a side is started in its first turn only, and prints an object for
    every line it reads. At `until` the side under way is stopped: whole turns count, and when there is none, the sides
    that it lacks are UNFINISHED.
    """
    found: dict[str, list[JSON]] = {name: [] for name in sides}
    with ExitStack() as stack:
        asks: dict[str, Callable[[], JSON]] = {
            name: stack.enter_context(staying(words, until)) if stay else partial(answer, words, until)
            for name, words in sides.items()
        }
        for turn in range(turns):
            for name in sorted(sides, reverse=bool(turn % 2), key=list(sides).index):
                if not failed(found[name]):
                    found[name].append(asks[name]() if time.monotonic() < until else dict(UNFINISHED))
                    say(f"turn {turn + 1}/{turns}  {name}: {found[name][-1].get('error', 'done')}")
    return _whole_turns(found)


def _whole_turns(found: dict[str, list[JSON]]) -> dict[str, list[JSON]]:
    """As many turns of each as all have finished, but one at least: turns are paired. What failed stays as it is."""
    late = [len(results) - 1 for results in found.values() if results and results[-1].get("unfinished")]
    if not late:
        return found
    whole = max(1, min(late))
    return {
        name: results if failed(results) and not results[-1].get("unfinished") else results[:whole]
        for name, results in found.items()
    }


def answer(words: Sequence[str], until: float = NEVER) -> JSON:
    """What `python -m` with these words prints as its last line; it gets SIGTERM when this process is killed."""
    command = [sys.executable, "-m", *words]
    left = None if until == NEVER else max(0.0, until - time.monotonic())
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, preexec_fn=leave_with_parent, timeout=left
        )
    except subprocess.TimeoutExpired:
        return dict(UNFINISHED)
    if done.returncode == 0 and (lines := done.stdout.strip().splitlines()):
        try:
            result: JSON = json.loads(lines[-1])
            return result
        except ValueError:
            return {"error": f"its last line is no JSON: {lines[-1][:TAIL]}"}
    return _last_words(done.stdout, done.stderr, done.returncode)


def _last_words(shown: str, said: str, code: int) -> JSON:
    told = next((line for line in shown.splitlines() if line.startswith('{"error"')), None)
    lines = [json.loads(told)["error"]] if told else said.strip().splitlines()
    return {"error": (lines[-1] if lines else f"exit code {code}")[-TAIL:]}


@contextmanager
def staying(words: Sequence[str], until: float = NEVER) -> Iterator[Callable[[], JSON]]:
    """Asks a process for an object, again and again; it starts when first asked and ends with the context.

    It is killed when it is asked beyond `until`.
    """
    started: list[subprocess.Popen[str]] = []
    with TemporaryFile("w+", errors="replace") as said, ExitStack() as alive:

        def ask() -> JSON:
            if not started:
                process = subprocess.Popen(
                    [sys.executable, "-m", *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    text=True,
                    preexec_fn=leave_with_parent,
                )
                started.append(alive.enter_context(process))
            (process,) = started
            with _killed_at(until, process):
                if result := _next_object(process):
                    return result
                code = process.wait()
            if time.monotonic() >= until:
                return dict(UNFINISHED)
            said.seek(0)
            return _last_words("", said.read(), code)

        yield ask


@contextmanager
def _killed_at(until: float, process: subprocess.Popen[str]) -> Iterator[None]:
    if until == NEVER:
        yield
        return
    timer = threading.Timer(max(0.0, until - time.monotonic()), process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _next_object(process: subprocess.Popen[str]) -> JSON | None:
    """What it prints when asked by an empty line; None when it has ended."""
    assert process.stdin and process.stdout
    with suppress(BrokenPipeError):  # it has ended: there will be no line to read either
        os.write(process.stdin.fileno(), b"\n")  # its buffer would be flushed once more at the end
    for line in process.stdout:
        if line.startswith("{"):  # libraries may print as well
            result: JSON = json.loads(line)
            return result
    return None


def failed(results: Sequence[JSON]) -> str:
    """Why a side failed, else ''."""
    return next((str(result["error"]) for result in results if "error" in result), "")


def told(results: Sequence[JSON]) -> str:
    """For a cell of a table, what became of a side that has no figures; '' when it has."""
    why = failed(results)
    unfinished = any(result.get("unfinished") for result in results)
    return f"{'unfinished' if unfinished else 'failed'}: {why.replace('|', '/')}" if why else ""


def spread(values: Sequence[float], digits: int = 0) -> str:
    """`median (least to most)`."""
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over turns of ours / theirs, turn by turn."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))
