"""What SIGTERM and SIGUSR1 do to a verb: they end it in good order, with exit code 75, wherever it stands."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cass_scale.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # Slurm sends USR1 before the time limit
ENDING = (signal.SIGTERM, signal.SIGUSR1)  # SIGINT is Python's own KeyboardInterrupt


class Ended(BaseException):
    """Raised by a signal, past everybody who catches any Exception; a verb raises Preempted for it."""


@contextmanager
def ending_in_order(*, for_good: bool = False) -> Iterator[None]:
    """Inside, the first such signal raises Ended and further ones do nothing: files are being put in order.

    What comes out is Preempted.

    A loop that can save takes the signals over while it runs. for_good: the process is about to end, and what
    its launcher sends it when another rank has gone shall not change its exit code.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        for one in ENDING:
            signal.signal(one, signal.SIG_IGN)
        name = signal.Signals(number).name
        raise Ended(f"{name}: ended outside of training, nothing is half written; run the same command again")

    before = {number: signal.signal(number, end) for number in ENDING}
    try:
        yield
    except Ended as ended:
        raise Preempted(str(ended)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if for_good else handler)


@contextmanager
def deaf() -> Iterator[None]:
    """Inside, such a signal does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
