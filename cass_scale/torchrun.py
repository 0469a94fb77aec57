"""torchrun whose exit code is that of its ranks: `python -m cass_scale.torchrun` takes torchrun's own words.

torchrun ends with 1 whatever its ranks ended with, and kills them 30 s after a SIGTERM. Here SIGTERM, SIGINT and
SIGUSR1 are handed to the ranks, which save in their own time and exit 75. So a scheduler can tell preempted (75: run
again) from a wrong configuration or wrong data (2, 3: no use to run again).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

import psutil

from cass_scale.errors import EXIT_FAILED, EXIT_OK, EXIT_PREEMPTED
from cass_scale.signals import SIGNALS

LOOK = 20.0  # seconds between looks; torchrun itself looks ten times a second


def main(words: Sequence[str]) -> int:
    """Start the ranks of this host and wait for them; returns the exit code of the one that failed first."""
    asked: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        ranks = psutil.Process().children()
        if not ranks:  # none yet, or all are done
            raise SystemExit(EXIT_PREEMPTED)
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, hand_on)
    threading.Thread(target=_watch, args=(asked,), daemon=True).start()
    from torch.distributed import run  # after the handlers: it takes seconds
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(["--signals-to-handle", "SIGHUP,SIGQUIT", *words])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _ended(f"rank {rank}", failure.exitcode, asked)
    return EXIT_OK


def _watch(asked: Sequence[int]) -> None:
    """End this process for a torchrun that does not see the end of its ranks.

    Cut off from the host of the rendezvous, it waits for an answer for as long as TCP does.
    """
    dead: set[int] = set()
    while True:
        time.sleep(LOOK)
        ranks = psutil.Process().children()
        before, dead = dead, {rank.pid for rank in ranks if rank.status() == psutil.STATUS_ZOMBIE}
        if unseen := sorted(before & dead):
            for rank in ranks:
                rank.kill()
            code = os.waitstatus_to_exitcode(os.waitpid(unseen[0], 0)[1])
            os._exit(_ended(f"process {unseen[0]}", code, asked))


def _ended(who: str, code: int, asked: Sequence[int]) -> int:
    """Say how the first rank ended, and give the exit code for that."""
    if code == EXIT_PREEMPTED or -code in asked:  # killed by what was handed on: it had not begun to train
        names = " and ".join(dict.fromkeys(signal.Signals(number).name for number in asked))
        print(f"cass-scale: stopped{f' by {names}' if names else ''}; the same command goes on", file=sys.stderr)
        return EXIT_PREEMPTED
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    print(f"cass-scale: {who} {how}, and so did the job", file=sys.stderr)
    return EXIT_FAILED if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
