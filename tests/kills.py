"""SIGKILL to a random rank at a random moment, again and again: nothing may be lost.

python -m tests.kills 50 [FOLDER] [key=value ...]

Runs are killed and continued until they end; each must end with the bits and the rows of one that was left alone,
and every rank that was not killed must end by itself, within a minute, saying which one was.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from safetensors.torch import load_file

from cass_scale import records
from tests.forked import FORKS, TOGETHER, Job

LIMIT = 60  # seconds
NOTE = "ranks_note_that_they_are_together"


def same_weights(one: Path, other: Path) -> None:
    for arm in ("cnn", "vit"):
        a, b = (load_file(run / "export" / f"{arm}.safetensors") for run in (one, other))
        assert a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a), f"{arm} of {other} differs"


def steps(run: Path) -> list[int]:
    return [row["step"] for row in records.read_metrics(run / records.METRICS)]


def storm(folder: Path, *words: str, kills: int, seed: int, say: Callable[[str], object] = print) -> None:
    """Raises AssertionError with what was lost."""
    imports = FORKS.Process(target=int)  # once for all: they are no part of how long a run lasts
    imports.start(), imports.join()
    dice, whole, began = random.Random(seed), folder / "whole", time.monotonic()
    assert (job := Job(whole, *words)).codes() == [0, 0], job.said(0)
    lasts, done = time.monotonic() - began, 0
    for number in count():
        run = folder / f"run{number}"
        while (job := Job(run, *words, sabotage=NOTE)) and done < kills:
            victim, pause = dice.randrange(2), dice.uniform(0.1, 0.8) * lasts
            time.sleep(pause)
            if not all(rank.is_alive() for rank in job.ranks):
                break
            done += 1
            say(f"kill {done} of {kills}: rank {victim} of run {number} after {pause:.1f} s, {kill(job, victim)}")
        assert job.codes() == [0, 0], job.said(0) + job.said(1)
        same_weights(whole, run)
        assert steps(run) == steps(whole), "rows are neither lost nor doubled"
        if done >= kills:
            say(f"{done} kills over {number + 1} runs: the bits and rows of the run that was left alone")
            return


def kill(job: Job, victim: int) -> str:
    """Kill one rank and see the other one end; how."""
    together = TOGETHER in job.said(0) and TOGETHER in job.said(1)
    job.send(victim)
    killed = time.monotonic()
    code = job.codes(LIMIT if together else 0)[1 - victim]
    if not together:
        return "before the ranks had met"
    said = job.said(1 - victim)
    assert code is not None, f"rank {1 - victim} did not end within {LIMIT} s: {said}"
    assert code == 0 or f"rank {victim}" in said, said
    step, seconds = max(steps(job.run), default=0), time.monotonic() - killed
    return f"at step {step}; the other ended {seconds:.0f} s later"


if __name__ == "__main__":
    where = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp(prefix="kills_"))
    where.mkdir(parents=True, exist_ok=True)
    storm(where, *sys.argv[3:], kills=int(sys.argv[1]), seed=0)
