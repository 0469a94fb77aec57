"""The dali stream: encoded bytes by the plan, decoded by NVIDIA DALI with nvJPEG on a GPU, or with its CPU decoders."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cass_scale.data.ahead import in_order, threads
from cass_scale.data.decode import BadImage, decode, unambiguous
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.data.stream import Fields, gone_bad
from cass_scale.data.webdataset import REMOTE_CACHE_BYTES, source_of
from cass_scale.errors import DataError, MissingExtra
from cass_scale.types import Batch

AHEAD = 2  # batches decoded, and beyond the readers' own read, before they are asked for


def require() -> None:
    """Raise MissingExtra where DALI is not installed."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise MissingExtra("nvidia-dali-cuda130", "dali", "stream=dali") from error


class DaliStream:
    """Batches of uint8 [B, 3, size, size], squashed, on `device`, by `plan`, from files or tars as the manifest says.

    `workers` threads read and as many decode. DALI takes images that every decoder understands alike; all others, and
    those that it refuses, are decoded as the folder stream does. A pixel depends on its image and the kind of device,
    never on the images around it. An image that cannot be read raises DataError with its name. Raises MissingExtra.
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
        remote_cache_bytes: int = REMOTE_CACHE_BYTES,
    ) -> None:
        require()
        self.batch_size, self.steps_per_epoch = plan.batch_size, plan.steps_per_epoch
        self.device = torch.device(device)
        self.source = source_of(manifest, remote_cache_bytes)
        self._fields = Fields(manifest, with_labels, self.device)
        self.provides = self._fields.provides
        self._plan, self._lengths, self._size, self._threads = plan, manifest.sizes, size, max(1, workers)
        # The training's own CUDA stream is queued full: copies that waited there would be late.
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._pipeline: Any = None
        self._lock = threading.Lock()  # of the pipeline, should two epochs be read at once

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's micro-batches of `epoch` from optimizer step `start` on."""
        rows = (ids.tolist() for ids in self._plan.batches(epoch, start))
        with threads(self._threads) as readers, threads(1) as decoder:
            reads = in_order(readers, self._read, rows, self._threads + AHEAD)
            for ids, images in in_order(decoder, self._decode, reads, AHEAD):
                if images.is_cuda:  # its memory must outlive the work that is queued with it
                    images.record_stream(torch.cuda.current_stream(self.device))
                yield self._fields.batch(images, ids)

    def close(self) -> None:
        """Free the decoder; it is made again when needed."""
        with self._lock:
            self._pipeline = None

    def _read(self, ids: list[int]) -> _Read | DataError:
        try:
            return self._fetch(ids)
        except DataError as error:  # waits for its turn: the batches before it are good
            return error

    def _fetch(self, ids: list[int]) -> _Read:
        read = _Read(ids, {}, {})
        for place, row in enumerate(ids):
            try:
                data = self.source.read(row)
            except BadImage as error:
                raise DataError(gone_bad(self.source, row, error)) from error
            # Of an image that was cut off since, nvJPEG would make a picture.
            if len(data) == self._lengths[row] and unambiguous(data):
                read.encoded[place] = data
            else:
                read.images[place] = self._ours(row, data)
        return read

    def _decode(self, read: _Read | DataError) -> tuple[list[int], Tensor]:
        if isinstance(read, DataError):
            raise read
        with self._lock, torch.cuda.stream(self._copies):
            places = list(read.encoded)
            images = self._by_dali([read.ids[place] for place in places], list(read.encoded.values()))
            if read.images:
                some, images = images, self._empty(len(read.ids))
                images[places] = some
                for place, image in read.images.items():
                    images[place] = image
            if self._copies is not None:
                self._copies.synchronize()
        return read.ids, images

    def _by_dali(self, rows: list[int], encoded: list[bytes]) -> Tensor:
        """[n, 3, size, size] in memory of its own, of n >= 0 images."""
        from nvidia.dali.plugin.pytorch import feed_ndarray

        images = self._empty(len(rows))
        if not rows:
            return images
        self._pipeline = self._pipeline or _pipeline(self._plan.batch_size, self._size, self._threads, self.device)
        try:
            (decoded,) = self._pipeline.run(self._copies, encoded=[np.frombuffer(data, np.uint8) for data in encoded])
        except RuntimeError as error:
            if "decoders" not in str(error):
                raise
            self._pipeline = None  # it is broken, and does not say by which image
            if len(rows) == 1:
                return self._ours(rows[0], encoded[0])[None].to(self.device)
            return torch.cat([self._by_dali([row], [data]) for row, data in zip(rows, encoded, strict=True)])
        feed_ndarray(decoded.as_tensor(), images, cuda_stream=self._copies)
        return images

    def _ours(self, row: int, data: bytes) -> Tensor:
        try:
            return torch.from_numpy(decode(data, self._size)).permute(2, 0, 1)
        except BadImage as error:
            raise DataError(gone_bad(self.source, row, error)) from error

    def _empty(self, images: int) -> Tensor:
        return torch.empty(images, 3, self._size, self._size, dtype=torch.uint8, device=self.device)


class _Read(NamedTuple):
    """One micro-batch: by place in it, bytes that DALI decodes, and images uint8 [3, size, size] that are decoded."""

    ids: list[int]
    encoded: dict[int, bytes]
    images: dict[int, Tensor]


def _pipeline(batch_size: int, size: int, workers: int, device: torch.device) -> Any:
    from nvidia.dali import Pipeline, fn, types

    gpu = device.type == "cuda"
    place = (torch.cuda.current_device() if device.index is None else device.index) if gpu else None
    pipeline = Pipeline(batch_size, workers, place, prefetch_queue_depth=1)
    with pipeline:
        images = fn.decoders.image(
            fn.external_source(name="encoded", dtype=types.UINT8, ndim=1),
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,  # as on the CPU
            hw_decoder_load=0.0,  # which images the hardware engine takes depends on the batch, and so would the pixels
        )
        images = fn.resize(images, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(fn.transpose(images, perm=[2, 0, 1]))
    pipeline.build()
    return pipeline
