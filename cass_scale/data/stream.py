"""What every stream shares: processes that read by the plan, decoded images kept in memory, errors with names."""

from __future__ import annotations

import atexit
import contextlib
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cass_scale.data.decode import BadImage, decode, decode_deep
from cass_scale.data.manifest import Manifest
from cass_scale.data.parts import plain
from cass_scale.data.pixels import PixelCache, fits
from cass_scale.data.plan import Plan
from cass_scale.data.window import stretch
from cass_scale.errors import DataError
from cass_scale.signals import SIGNALS
from cass_scale.types import Batch, Stream

CACHE_BYTES = 2 << 30  # decoding a small set anew every epoch is waste


class Source(Protocol):
    """Encoded images by row of a manifest; the part in which streams differ. Processes that read get a copy each."""

    def read(self, row: int) -> bytes:
        """The bytes of one image file. Raises BadImage when they are not what they were, DataError naming its place."""
        ...

    def name(self, row: int) -> str:
        """Where a person finds it."""
        ...


def gone_bad(source: Source, row: int, error: BadImage) -> str:
    """What to say of an image that could be read when the manifest was made."""
    return f"{source.name(row)}: {error}; it was good when it was scanned"


class Fields:
    """What batches carry beside images, by row of the manifest; `provides` names what there is."""

    def __init__(self, manifest: Manifest, with_labels: bool, device: torch.device) -> None:
        self._group = manifest.group_tensor() if any(manifest.groups) else None
        self._label = manifest.label_tensor() if with_labels else None
        self._device = device
        given = {"index": True, "group": self._group is not None, "label": with_labels}
        self.provides = frozenset(name for name, there in given.items() if there)

    def batch(self, images: Tensor, ids: list[int]) -> Batch:
        """`images`, which lie on the device already, with the fields of `ids`."""
        index = torch.tensor(ids)
        group, label = (t if t is None else t[index].to(self._device) for t in (self._group, self._label))
        return Batch(images, index.to(self._device), group, label)


class PlanStream:
    """Batches of uint8 [B, 3, size, size], squashed, on `device`, by `plan`; the same for any `workers`.

    uint16 where the manifest's depth is 16, stretched on the device so that its window fills 0..65535.
    Images stay decoded in memory when all of the plan's fit into `cache_bytes` and half the free memory (0
    = never). An image that cannot be read raises DataError with its name. `close` stops the workers; they
    start when needed.
    """

    def __init__(
        self,
        manifest: Manifest,
        plan: Plan,
        source: Source,
        *,
        size: int,
        workers: int,
        device: torch.device | str,
        with_labels: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.batch_size, self.steps_per_epoch = plan.batch_size, plan.steps_per_epoch
        self.device = torch.device(device)
        self._fields = Fields(manifest, with_labels, self.device)
        self.provides = self._fields.provides
        self._window, deep = manifest.window, manifest.depth > 8
        self._own_scale = torch.tensor([not plain(key) for key in manifest.keys]) if deep else None
        dtype = torch.uint16 if deep else torch.uint8
        fork = sys.platform == "linux"
        cached = fits(len(plan.ids), size, cache_bytes, plan.world, dtype) and (fork or workers == 0)
        self._cache = PixelCache(plan.ids, len(manifest), size, dtype) if cached else None
        self._order = _Order(plan)
        self._loader: DataLoader[_Read] = DataLoader(
            _Reader(source, len(manifest), size, dtype, self._cache),  # type: ignore[arg-type]
            batch_sampler=self._order,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="fork" if fork and workers else None,
            generator=torch.Generator(),  # else each epoch draws from the global state: resume would differ
        )
        close_at_exit(self)

    @property
    def cached(self) -> bool:
        """Whether decoded images are kept in memory."""
        return self._cache is not None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's micro-batches of `epoch` from optimizer step `start` on. One epoch at a time."""
        self._order.epoch, self._order.start = epoch, start
        with _signals_held():
            batches = iter(self._loader)
        while True:
            try:
                read = next(batches)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
                # All but the first: it died while it handed over a batch.
                if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                    raise
                why = str(error) or type(error).__name__
                raise DataError(
                    f"a process that reads images died ({why}); try fewer stream.workers, or 0 to see more"
                ) from error
            if read.error:
                raise DataError(read.error)
            yield self._fields.batch(self._shown(read), read.ids)

    def _shown(self, read: _Read) -> Tensor:
        """On the device, 16 bit windowed there."""
        images = read.images.to(self.device, non_blocking=True)
        if self._own_scale is None:
            return images
        return stretch(images, self._window, self._own_scale[torch.tensor(read.ids)].to(self.device))

    def close(self) -> None:
        """Stop the workers. Also done when the stream is collected and when the process ends."""
        batches = getattr(self._loader, "_iterator", None)  # torch offers no public way
        if batches is None:
            return
        batches._shutdown_workers()
        for worker in batches._workers:
            if worker.is_alive():
                worker.kill()  # SIGTERM does not reach them
        self._loader._iterator = None


class _Read(NamedTuple):
    ids: list[int]
    images: Tensor
    error: str


class _Reader:
    """A map-style dataset that reads a whole batch at once."""

    def __init__(self, source: Source, rows: int, size: int, dtype: torch.dtype, cache: PixelCache | None) -> None:
        self.source, self.rows, self.size, self.dtype, self.cache = source, rows, size, dtype, cache
        self.decode = decode if dtype == torch.uint8 else decode_deep

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, ids: list[int]) -> _Read:
        images = torch.empty(len(ids), 3, self.size, self.size, dtype=self.dtype)
        for place, index in enumerate(ids):
            known = self.cache.get(index) if self.cache else None
            if known is not None:
                images[place] = known
                continue
            try:
                images[place] = torch.from_numpy(self.decode(self.source.read(index), self.size)).permute(2, 0, 1)
            except BadImage as error:
                return _Read(ids, images, gone_bad(self.source, index, error))
            except DataError as error:  # it names its place; raised in a worker, a traceback would become part of it
                return _Read(ids, images, str(error))
            if self.cache:
                self.cache.put(index, images[place])
        return _Read(ids, images, "")


class _Order:
    """The batch sampler: points at (epoch, start)."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.epoch, self.start = plan, 0, 0

    def __iter__(self) -> Iterator[list[int]]:
        return (ids.tolist() for ids in self.plan.batches(self.epoch, self.start))


def _as_it_is(read: Any) -> Any:
    return read


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Workers started inside never see SIGINT, SIGTERM or SIGUSR1, from their first instruction on.

    A scheduler sends them to every process of a job; the main one still has to finish its step and save.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(SIGNALS))
    of_children = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if of_children is not None and threading.current_thread() is threading.main_thread():
            # torch's handler would raise wherever the process happens to be; `next` finds a dead worker by itself.
            signal.signal(signal.SIGCHLD, of_children)


_open: weakref.WeakSet[Stream] = weakref.WeakSet()


def close_at_exit(stream: Stream) -> None:
    """See to it that what works for the stream in the background ends before the interpreter does."""
    _open.add(stream)


@atexit.register
def _close_all() -> None:
    """Before multiprocessing's own exit, which would send SIGTERM to the workers and wait for ever."""
    for stream in list(_open):
        with contextlib.suppress(Exception):
            stream.close()
