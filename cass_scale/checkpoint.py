"""Atomic checkpoints, their retention, and the signals that ask for one."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from cass_scale import dist
from cass_scale.errors import DataError, StorageError
from cass_scale.signals import SIGNALS

WHICH = 128  # above any signal's number: a rank and a signal in one integer
PARTIAL = ".partial"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that a reader or a crash sees the old file or the new one, never a part.

    Raises StorageError when the disk is full or not writable; the file that was there stays whole.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError on a full disk
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StorageError(
            f"checkpoint {path} could not be written ({_why(error)}); the one before it is whole: "
            "free some space or mend the folder, then run the same command again"
        ) from error


def _why(error: BaseException | None) -> str:
    """The file system's own words, where torch's zip writer has buried them under its own error."""
    last = error
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__context__
    return str(last)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it. Raises DataError naming the file it cannot read."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler, zip reader and file system each raise their own types
        # torch's text on refused pickles advises to load them unsafely: not repeated here.
        foreign = isinstance(error, pickle.UnpicklingError)
        why = "it holds more than tensors and plain values, and was not opened" if foreign else error
        raise DataError(f"checkpoint {path} cannot be read ({why}); delete it to resume from the one before") from error
    return state


class Checkpoints:
    """`step_00000100.pt` files of a folder: the newest `keep` stay, and `best.pt` beside them."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step_*.pt"))

    def latest(self) -> Path | None:
        """The newest, or None."""
        return next(reversed(self.all()), None)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step`, then drop the oldest beyond `keep`.

        What killed processes left half written goes first: it can fill a disk. Only one process saves here.
        """
        for half in self.folder.glob(f".*{PARTIAL}"):
            half.unlink(missing_ok=True)
        path = self.folder / f"step_{step:08d}.pt"
        save(path, state)
        for old in self.all()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def save_best(self, state: dict[str, Any]) -> None:
        """Replace best.pt."""
        save(self.folder / "best.pt", state)


class StopSignal:
    """Inside `with`, SIGTERM, SIGINT and SIGUSR1 are noted and end nothing; `asked` makes ranks agree on one."""

    def __init__(self) -> None:
        self.name = ""  # of the signal that was noted here, or agreed on
        self._number = 0
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._last: Callable[[], int] | None = None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._group = dist.host_group()
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name, self._number = signal.Signals(number).name, number

    def asked(self) -> bool:
        """Whether any rank was asked to stop; `name` says by what, and which rank.

        Of several ranks the answer is that of the call before: they agree while the step between the calls is
        computed, and nobody waits.
        """
        if self._group is None:
            return bool(self.name)
        now = dist.highest_later(self._group, dist.rank() * WHICH + self._number if self._number else 0)
        found, self._last = self._last() if self._last else 0, now
        if found:
            rank, number = divmod(found, WHICH)
            self.name = f"{signal.Signals(number).name} to rank {rank}"
        return bool(found)
