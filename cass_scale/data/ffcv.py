"""The ffcv stream: images out of one .beton by the plan, read and decoded by FFCV's compiled threads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cass_scale.data.betons import check_beton
from cass_scale.data.layouts import BETON
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.data.shards import read_header
from cass_scale.data.stream import Fields, close_at_exit
from cass_scale.errors import DataError, MissingExtra
from cass_scale.types import Batch

PATIENCE = 1.0  # seconds between looks at whether FFCV's thread still lives


def require() -> None:
    """Raise MissingExtra where FFCV is not installed, or cannot be loaded."""
    _ffcv()


class FFCVStream:
    """Batches of uint8 [B, 3, size, size] on `device`, by `plan`, in `workers` threads (0 = 1).

    Images stored in another size are squashed on the device, antialiased bilinear. The beton is held against its
    sha256 when the stream is made (see `check_beton`), its time and size at every epoch. Raises DataError
    where it is not what was made, MissingExtra without FFCV.
    """

    def __init__(
        self,
        manifest: Manifest,
        plan: Plan,
        *,
        size: int,
        workers: int,
        device: torch.device | str,
        with_labels: bool = False,
    ) -> None:
        self.batch_size, self.steps_per_epoch = plan.batch_size, plan.steps_per_epoch
        self.device, self.size, self.plan = torch.device(device), size, plan
        self._fields = Fields(manifest, with_labels, self.device)
        self.provides = self._fields.provides
        self._order = _Order(plan)
        self._running: Any = None
        require()
        self._path = manifest.root / BETON
        self._identity = _identity(self._path)
        if manifest.stored != "beton":
            what = f"stream=ffcv reads a beton, and data.path={manifest.root} holds {manifest.stored}"
            raise DataError(f"{what}; make one with `cass-scale shard source={manifest.root} format=ffcv`")
        check_beton(manifest, read_header(manifest.root))
        self._loader = _loader(self._path, self._identity, workers)
        close_at_exit(self)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's micro-batches of `epoch` from optimizer step `start` on. One epoch at a time."""
        self.close()
        _check(self._path, self._identity)
        self._order.epoch, self._order.start = epoch, start
        self._loader.batch_size, self._loader.traversal_order = self.batch_size, self._order
        running = self._running = iter(self._loader)
        try:
            for index in self.plan.batches(epoch, start):
                yield self._fields.batch(self._own(self._next(running)), index.tolist())
        finally:
            _stop(running)

    def close(self) -> None:
        """Stop FFCV's thread. Also done when an epoch ends or is left, and when the process ends."""
        if self._running is not None:
            _stop(self._running)
            self._running = None

    def _next(self, running: Any) -> Tensor:
        """[B, H, W, 3] in memory that FFCV will write over. Its own `next` would wait for ever for a dead thread."""
        while True:
            try:
                found: tuple[int, tuple[Tensor]] = running.output_queue.get(timeout=PATIENCE)
                return found[1][0]
            except Empty:
                if not running.is_alive() and running.output_queue.empty():
                    raise DataError(f"FFCV stopped reading {self._path}; what it said is above") from None

    def _own(self, images: Tensor) -> Tensor:
        """A copy [B, 3, size, size] on the device."""
        if self.device.type == "cuda":
            pinned = torch.empty(images.shape, dtype=images.dtype, pin_memory=True).copy_(images)
            images = pinned.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        else:
            images = images.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format).to(self.device)
        size = (self.size, self.size)
        if images.shape[2:] == size:
            return images
        if not images.is_cuda:  # as the folder's
            return F.interpolate(images, size, mode="bilinear", antialias=True)
        squashed = F.interpolate(images.float(), size, mode="bilinear", antialias=True)  # it has no filter for bytes
        return squashed.round_().clamp_(0, 255).to(torch.uint8)


class _Order:
    """A traversal order of FFCV's: the plan's of one rank, from (epoch, start) on."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.epoch, self.start = plan, 0, 0

    def sample_order(self, _: int) -> NDArray[np.int64]:
        """Rows of the beton. FFCV cuts them into batches, of which only the last is short, as in the plan."""
        ids = [torch.empty(0, dtype=torch.int64), *self.plan.batches(self.epoch, self.start)]
        return torch.cat(ids).numpy()


def _stop(running: Any) -> None:
    """End FFCV's thread: it looks at the event only when the queue is full, and waits for ever to say that it ended."""
    running.terminate_event.set()
    while running.is_alive():
        try:
            running.output_queue.get(timeout=0.01)
        except Empty:
            continue


@cache  # for good: numba cannot take back what it compiled without a word on the console
def _loader(path: Path, identity: tuple[int, ...], workers: int) -> Any:
    """FFCV's Loader of a file that is in this state, mapped into memory at once: later it may be another one.

    All streams of a process that read it share one, since it lists all samples and compiles its code anew.
    """
    ffcv = _ffcv()
    loader = ffcv.Loader(
        str(path),
        1,
        num_workers=min(max(1, workers), ffcv.most_threads),
        seed=0,  # else it draws from numpy's global state
        drop_last=False,
        pipelines={"image": [ffcv.SimpleRGBImageDecoder(), ffcv.ToTensor()], "label": None},
    )
    with loader.memory_manager.schedule_epoch([]):
        _check(path, identity)
        return loader


def _identity(path: Path) -> tuple[int, ...]:
    """What differs when the file was written into, or another one stands in its place."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _check(path: Path, identity: tuple[int, ...]) -> None:
    if _identity(path) != identity:
        raise DataError(f"{path} was changed under the running job; restore it, then run the command again")


@cache
def _ffcv() -> SimpleNamespace:
    """The parts of FFCV that are used. Raises MissingExtra."""
    before = torch.get_num_threads()
    try:
        import numba
        from ffcv.fields.decoders import SimpleRGBImageDecoder
        from ffcv.loader import Loader
        from ffcv.pipeline.compiler import Compiler
        from ffcv.transforms import ToTensor
    except ImportError as error:
        raise MissingExtra("ffcv", "ffcv", f"stream=ffcv ({error})") from error
    finally:
        torch.set_num_threads(before)

    def set_threads(number: int) -> None:
        """What FFCV does here, without setting torch's threads for the whole process."""
        Compiler.num_threads = number
        numba.set_num_threads(number)

    Compiler.set_num_threads = staticmethod(set_threads)
    parts = {"Loader": Loader, "SimpleRGBImageDecoder": SimpleRGBImageDecoder, "ToTensor": ToTensor}
    return SimpleNamespace(**parts, most_threads=vars(numba.config)["NUMBA_NUM_THREADS"])
