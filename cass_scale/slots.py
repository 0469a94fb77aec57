"""Several processes at once, one per slot: what a study's rows run in. Standard library only."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cass_scale.machine import cores

PAUSE = 0.1  # seconds between looks at the running processes
TAIL = 600  # characters of a failed process's last words
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: nothing may be, between fork and exec


@dataclass(frozen=True)
class Job:
    """A command, and the file that its output is added to."""

    name: str
    command: tuple[str, ...]
    log: Path


class Ended(NamedTuple):
    """How a job ended; `why` is empty when it ended well."""

    job: Job
    code: int
    seconds: float
    why: str


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    started: float
    said: int  # length of the log before


def work(
    jobs: Sequence[Job],
    slots: Sequence[str | None],
    ended: Callable[[Ended], None],
    stopping: Callable[[], bool],
) -> bool:
    """Run all jobs, one per slot: what CUDA_VISIBLE_DEVICES shall be, None: as it is. One that fails stops nothing.

    When `stopping()` turns true no other starts, SIGTERM goes to those that run, and they are waited for: False.
    They also get SIGTERM when this process is killed (on Linux).
    """
    waiting, running = deque(jobs), dict[int, _Running]()
    told = False
    try:
        while running or (waiting and not told):
            for slot in range(len(slots)):
                if slot not in running and waiting and not told:
                    running[slot] = _start(waiting.popleft(), slots[slot], len(slots))
            for slot in [slot for slot, one in running.items() if one.process.poll() is not None]:
                ended(_ended(running.pop(slot)))
            if not told and stopping():
                told = True
                _tell(running)
            time.sleep(PAUSE)
    finally:
        _tell(running)
    return not told


def _tell(running: dict[int, _Running]) -> None:
    for one in running.values():
        one.process.terminate()


def _start(job: Job, device: str | None, beside: int) -> _Running:
    environment = dict(os.environ)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    if beside > 1:  # else each would take all cores for itself
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // beside)))
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        said = log.tell()
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            preexec_fn=leave_with_parent,
        )
    return _Running(job, process, time.monotonic(), said)


def leave_with_parent() -> None:
    """For a child, between fork and exec: SIGTERM when its parent is killed (on Linux), and ears for it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a parent that ignores it would hand that down
    if _libc is not None:
        _libc.prctl(DIE_WITH_PARENT, signal.SIGTERM)


def _ended(one: _Running) -> Ended:
    code = one.process.returncode
    return Ended(one.job, code, time.monotonic() - one.started, _last_words(one, code) if code else "")


def _last_words(one: _Running, code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = ": out of memory, or killed by hand; the same command continues it" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    with one.job.log.open("rb") as log:
        log.seek(one.said)
        lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[-TAIL:] if lines else f"exit code {code}, no words"
