"""Ranks of a job without a launcher, forked from a process that has imported everything once.

What torchrun gives in the environment they are given here; nothing watches them and nothing ends them but
themselves. `sabotage` names a function of this module that runs first, in every rank.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.data.stores import free_port

WORDS = (
    "method=cass_contrast", "data.images=28", "data.scale=0.2", "arms.image_size=32", "arms.vit.args.depth=1",
    "train.batch_size=8", "train.device=cpu", "train.precision=fp32", "stream.workers=0", "monitor.images=8",
    "monitor.every=50", "train.log_every=1", "train.count_flops=false", "train.save_every=2", "train.epochs=6",
)  # fmt: skip
TOGETHER = "all ranks are here"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["cass_scale.verbs.pretrain", "accelerate", "timm", __name__])


class Job:
    """`world` ranks of `cass-scale pretrain`; what rank r says is in `said(r)`."""

    def __init__(self, run: Path, *words: str, world: int = 2, sabotage: str = "") -> None:
        self.run, self.logs = run, run.parent / f"{run.name}-said"
        self.logs.mkdir(exist_ok=True)
        chosen = {word.split("=")[0]: word for word in [*WORDS, *words]}
        command, port = ["pretrain", *chosen.values(), f"run.dir={run}"], free_port()
        self.ranks = [
            FORKS.Process(target=_rank, args=(rank, world, port, command, sabotage, self.logs / str(rank)))
            for rank in range(world)
        ]
        for rank in self.ranks:
            rank.start()

    def send(self, rank: int, number: int = signal.SIGKILL) -> None:
        pid = self.ranks[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def wait_for(self, file: str, text: str, seconds: float = 100) -> None:
        """Until `file` of the run folder holds `text`, or a rank has ended."""
        deadline, path = time.monotonic() + seconds, self.run / file
        while time.monotonic() < deadline and all(rank.is_alive() for rank in self.ranks):
            if path.exists() and text in path.read_text():
                return
            time.sleep(0.02)

    def codes(self, seconds: float = 250) -> list[int | None]:
        """Exit codes; a rank that has not ended by then is killed: None."""
        deadline = time.monotonic() + seconds
        for rank in self.ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
        codes = [rank.exitcode for rank in self.ranks]
        for rank in (rank for rank in self.ranks if rank.is_alive()):
            rank.kill()
            rank.join()
        return codes

    def said(self, rank: int) -> str:
        return (self.logs / str(rank)).read_text()


def _rank(rank: int, world: int, port: int, command: Sequence[str], sabotage: str, said: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if sabotage:
        globals()[sabotage](rank)
    from cass_scale.cli import main

    sys.exit(main(command))


def rank_1_hangs(rank: int) -> None:
    """In its third step, while it makes views."""
    from cass_scale import train

    real, calls = train.make_views, []

    def views(*args: Any, **keys: Any) -> Any:
        calls.append(1)
        if rank == 1 and len(calls) == 3:
            time.sleep(1000)
        return real(*args, **keys)

    train.make_views = views  # type: ignore[assignment]


def rank_1_hangs_at_the_start(rank: int) -> None:
    """Before it takes part in the first exchange of weights."""
    from cass_scale.verbs import spread

    real = spread.start

    def start(*args: Any) -> Any:
        if rank == 1:
            time.sleep(1000)
        return real(*args)

    spread.start = start


def rank_1_sees_nan(rank: int) -> None:
    """In its third step."""
    from cass_scale import train

    real, calls = train.make_views, []

    def views(*args: Any, **keys: Any) -> Any:
        calls.append(1)
        made = real(*args, **keys)
        return [view * float("nan") for view in made] if rank == 1 and len(calls) == 3 else made

    train.make_views = views  # type: ignore[assignment]


def the_disk_fills_up(rank: int) -> None:
    """With the checkpoint of step 4."""
    import torch

    real = torch.save

    def full(state: Any, file: Any, *args: Any, **keys: Any) -> None:
        if rank == 0 and isinstance(state, dict) and state.get("at", {}).get("step") == 4:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(state, file, *args, **keys)

    torch.save = full


def the_folder_turns_read_only(rank: int) -> None:
    """With the checkpoint of step 4, for everything that is written from then on."""
    real, turned = Path.open, []

    def opened(path: Path, mode: str = "r", *args: Any, **keys: Any) -> Any:
        if path.name.startswith(".step_00000004."):
            turned.append(path)
        if turned and mode[0] in "wa":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, mode, *args, **keys)

    Path.open = opened  # type: ignore[method-assign, assignment]


def rank_1_is_cut_off(rank: int) -> None:
    """From its third step on: it hangs, and hears and says nothing. Patience is short."""
    from cass_scale import pulse

    pulse.SILENT, pulse.GRACE = 6.0, 2.0
    rank_1_hangs(rank)
    real = pulse.Pulse.step

    def step(self: pulse.Pulse, number: int | None) -> None:
        real(self, number)
        if rank == 1 and number == 3:
            self.board.exchange = self.board.leave = lambda said: None  # type: ignore[method-assign]

    pulse.Pulse.step = step  # type: ignore[method-assign]


def rank_0_is_slow_to_begin(rank: int) -> None:
    """Between its first and its second file."""
    from cass_scale import records

    real = records.env

    def env() -> Any:
        time.sleep(5)
        return real()

    records.env = env


def ranks_note_that_they_are_together(rank: int) -> None:
    """From then on they have to see to each other's end; before, a launcher has to."""
    from cass_scale import pulse

    real = pulse.Pulse.__enter__

    def enter(self: pulse.Pulse) -> pulse.Pulse:
        print(TOGETHER, flush=True)
        return real(self)

    pulse.Pulse.__enter__ = enter  # type: ignore[method-assign]
