"""Work that threads do ahead of its use, handed over in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


@contextmanager
def threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """That many threads; at the end, also one in the middle, what nobody has begun is left undone."""
    pool = ThreadPoolExecutor(number)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Done], items: Iterator[Item], ahead: int
) -> Iterator[Done]:
    """`work` of every item, in order, at most `ahead` of them at a time: memory stays bounded."""
    waiting: deque[Future[Done]] = deque(pool.submit(work, item) for item in islice(items, ahead))
    while waiting:
        done = waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in islice(items, 1))
        yield done
