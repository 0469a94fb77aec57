"""One heartbeat per rank: who is alive, who has failed and why, who has not finished a step.

Two threads beside the training: one talks to the board and may be held up by the network, the other judges and
never waits. A rank that no exception can reach, inside a collective that never ends, is ended from there.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import torch

from cass_scale import dist
from cass_scale.board import Board
from cass_scale.errors import EXIT_FAILED, CassScaleError, Preempted, RankLost
from cass_scale.heartbeat import HEARTBEAT
from cass_scale.meter import Meter
from cass_scale.signals import Ended, deaf
from cass_scale.types import JSON

PERIOD = 1.0  # seconds between beats
SILENT = 35.0  # seconds without a beat: dead or cut off; a library may keep Python from running for a while
BROKEN = 4.0  # the same once a collective has failed somewhere
GRACE = 8.0  # seconds for a rank to end by itself when another one has failed
HEARTBEAT_EVERY = 5.0  # seconds between its writes
ORDER = ("data", "views", "step")  # what a step consists of: all others wait for the rank furthest behind
AGAIN = "run the same command again to continue from the last checkpoint"


class Pulse:
    """A context around all that ranks do together; `step` is called with the number of every step, then with None.

    hang: seconds that a step may take. Once there is a run, `folder` gets heartbeat.json from rank 0, `log` the
    stacks of a rank that hangs, and `on_end` is told when a process is ended from here.
    """

    def __init__(self, meter: Meter, *, hang: float, board: Board | None = None) -> None:
        self.meter, self.hang = meter, hang
        self.rank, self.world = dist.rank(), dist.world()
        self.board = board or Board(self.rank, self.world, dist.store())
        self.folder: Path | None = None
        self.log: IO[str] | None = None
        self.on_end: Callable[[str], None] = lambda text: None
        self._about = {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid()}
        self._thread = threading.get_ident()  # whose stack is shown
        self._step = 0
        self._since: float | None = None
        self._beats, self._written = 0, 0.0
        self._broken = self._leaving = self._bye = self._cut = False
        self._deaf = ExitStack()
        self._found: JSON | None = None  # this rank's own verdict, or why it fails itself
        self._told_at: float | None = None
        self._wake, self._over = threading.Event(), threading.Event()
        self._talking = threading.Thread(target=self._talk, name="pulse", daemon=True)
        self._watching = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Pulse:
        self._talking.start()
        self._watching.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._bye = True
        self._wake.set()
        self._talking.join(GRACE)
        self._watching.join()
        if self.log:
            faulthandler.cancel_dump_traceback_later()
        deadline = time.monotonic() + GRACE
        while dist.holds_store() and not self._cut and time.monotonic() < deadline and not self._all_left():
            time.sleep(PERIOD / 4)  # the others still have to read why
        self._deaf.close()

    def _all_left(self) -> bool:
        with suppress(RuntimeError):
            self.board.exchange(self.beat())
        return all(heard.beat.get("bye") or heard.age > BROKEN for heard in self.board.heard.values())

    def step(self, number: int | None) -> None:
        """Step `number` begins, and the one before it has ended; None: no step is under way any more.

        0: what comes before the first step of this process, and is watched as a step is.
        """
        self._since = None if number is None else time.monotonic()
        self._step = number or self._step

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """What ends this rank is told to the others; what another one ended is raised as RankLost, with its reason."""
        try:
            yield
        except BaseException as error:
            self.step(None)
            self._deaf.enter_context(deaf())  # launchers end all ranks soon after the first: order comes before
            broke = self.world > 1 and isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
            if broke and (words := self._who_broke()):
                self._leaving = True
                raise RankLost(words["text"], words["code"]) from error
            if isinstance(error, Ended):
                error = Preempted(str(error))
            self._leaving = True
            self._leave(error)
            raise error

    def _who_broke(self) -> JSON | None:
        """Last words, waited for as long as a dead rank takes to be noticed: a collective has failed."""
        self._broken = True
        deadline = time.monotonic() + BROKEN + 4 * PERIOD
        while self._words() is None and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(PERIOD / 4)
        return self._words()

    def _leave(self, error: BaseException) -> None:
        text = str(error) if isinstance(error, CassScaleError) else f"{type(error).__name__}: {error}"
        code = getattr(error, "exit_code", EXIT_FAILED)
        self._found = self._found or {"text": f"rank {self.rank} ended: {text}", "code": code}
        deadline = time.monotonic() + 3 * PERIOD
        while self.board.words is None and not self._cut and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(PERIOD / 20)

    def beat(self) -> JSON:
        """What this rank says of itself."""
        self._beats += 1
        late = time.monotonic() - self._since if self._since else 0.0
        own = {"beat": self._beats, "step": self._step, "late_s": late, "doing": self.meter.now, "where": self._where()}
        return self._about | own | self.meter.pace() | {"broken": self._broken, "bye": self._bye}

    def _where(self) -> str:
        """The innermost line of this package that the main thread is in."""
        frame = sys._current_frames().get(self._thread)
        while frame and Path(__file__).parent not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else "?"

    def _talk(self) -> None:
        while True:
            last = self._bye
            self._wake.clear()
            try:
                self.board.exchange(self.beat())
                if self._found:
                    self.board.leave(self._found)
            except (RuntimeError, OSError):
                self._cut = True
                return
            self._write(force=last)
            if last:
                return
            self._wake.wait(PERIOD)

    def _write(self, *, force: bool) -> None:
        """heartbeat.json: every rank's last beat, and how long ago it came."""
        if self.folder is None or self.rank or (time.monotonic() - self._written < HEARTBEAT_EVERY and not force):
            return
        self._written = time.monotonic()
        others = [heard.beat | {"age_s": heard.age} for heard in self.board.heard.values() if heard.beat]
        text = json.dumps({"time": time.time(), "ranks": [self.beat() | {"age_s": 0.0}, *others]})
        with suppress(OSError):  # a full disk is the checkpoint's to report
            partial = self.folder / f".{HEARTBEAT}.tmp"
            partial.write_text(text)
            partial.replace(self.folder / HEARTBEAT)

    def _words(self) -> JSON | None:
        return self.board.words or self._found

    def _watch(self) -> None:
        while not self._over.wait(PERIOD / 2):
            if self._leaving:
                return
            if self.log:  # a library that holds Python itself: its stack, and the end
                faulthandler.dump_traceback_later(self.hang + SILENT, exit=True, file=self.log)
            self._found = self._found or self._verdict()
            if words := self._words():
                self._told_at = self._told_at or time.monotonic()
                if time.monotonic() - self._told_at > GRACE:
                    self._end(words)

    def _verdict(self) -> JSON | None:
        """Why the job cannot go on, as far as this rank can see."""
        if self._cut and not self.board.heard[0 if self.rank else 1].beat.get("bye"):
            return _judged(f"the store of the process group, on rank 0's side, is gone; {AGAIN}")
        quiet = self.board.silent(BROKEN if self._broken or self.board.broken else SILENT)
        if quiet:
            rank, beat, age = quiet[0], self.board.heard[quiet[0]].beat, self.board.heard[quiet[0]].age
            whose = f"rank {rank} (process {beat.get('pid', '?')} on {beat.get('host', '?')})"
            last = f"its last sign came {age:.0f} s ago, in step {beat.get('step', 0)}"
            return _judged(f"{whose} died or was cut off: {last}; see logs/rank_{rank}.log; {AGAIN}")
        late = time.monotonic() - self._since if self._since else 0.0
        if late > self.hang + (5 * PERIOD if self.rank else 0):  # rank 0, who knows all, first
            text = _hung([self.beat(), *(heard.beat for heard in self.board.heard.values() if heard.beat)], late)
            return _judged(f"{text} (train.hang_minutes; stacks are in logs/); {AGAIN}")
        return None

    def _end(self, words: JSON) -> None:
        """End this process from outside its main thread, which hangs."""
        for place in filter(None, (self.log, sys.__stderr__)):
            with suppress(OSError, ValueError):
                faulthandler.dump_traceback(place, all_threads=True)
                place.write(f"rank {self.rank}, waiting in step {self._step}, is ended: {words['text']}\n")
                place.flush()  # last, where a launcher or a study looks for the reason
        with suppress(Exception):  # whatever else is broken, the process has to end
            self.on_end(words["text"])
        os._exit(words["code"])


def _judged(text: str) -> JSON:
    return {"text": text, "code": EXIT_FAILED}


def _hung(beats: list[JSON], late: float) -> str:
    """Which ranks are furthest behind, and where: before the first step that may not tell them apart."""
    least = min(map(_progress, beats))
    places: dict[str, list[int]] = {}
    for beat in (beat for beat in beats if _progress(beat) == least):
        places.setdefault(f"{beat['doing'] or 'between'}, {beat['where']}", []).append(beat["rank"])
    behind = sorted(rank for ranks in places.values() for rank in ranks)
    what = f"finished step {least[0]}" if least[0] else "begun the first step"
    if len(places) == 1:
        where = f"{'they are' if len(behind) > 1 else 'it is'} in {next(iter(places))}"
    else:
        few_first = sorted(places.items(), key=lambda item: (len(item[1]), item[1]))
        where = "; ".join(f"{_ranks(ranks)} {'are' if len(ranks) > 1 else 'is'} in {at}" for at, ranks in few_first)
    return f"{_ranks(behind)} {'have' if len(behind) > 1 else 'has'} not {what} for {late:.0f} s: {where}"


def _ranks(numbers: list[int], most: int = 8) -> str:
    """For a message."""
    shown = ", ".join(map(str, numbers[:most])) + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"


def _progress(beat: JSON) -> tuple[int, int]:
    doing = beat["doing"]
    return beat["step"], ORDER.index(doing) if doing in ORDER else len(ORDER)
