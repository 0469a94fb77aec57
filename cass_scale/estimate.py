"""What a run would cost, without running it: FLOPs and memory of one step, counted on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from cass_scale.methods.base import Method
from cass_scale.types import Batch, Progress, ViewSpec

FLOAT = 4  # bytes: weights, gradients and Adam's two moments are float32, also under 16-bit autocast
# How many of them a backend spreads over the ranks: moments, then gradients, then weights (the teacher's too).
#   Rajbhandari et al. 2020, arXiv 1910.02054, figure 1
SPREADS = {"single": 0, "ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp2": 3}
COPIES = ("zero1", "zero2", "zero3")  # DeepSpeed steps on a copy of its share, also where weights are float32 already


def held(trained: int, frozen: int, backend: str = "single", ranks: int = 1) -> dict[str, float]:
    """Bytes that a rank holds between two steps of Adam, by kind; `frozen` parameters are those of an EMA teacher.

    Left out is what comes and goes: buffers of a backend, and the layer that it has gathered.
    """
    moments, gradients, weights = (ranks if SPREADS[backend] > kind else 1 for kind in range(3))
    return {
        "weights": FLOAT * trained / weights,
        "gradients": FLOAT * trained / gradients,
        "moments": 2 * FLOAT * trained / moments,
        "copy": FLOAT * trained / ranks if backend in COPIES else 0.0,
        "teacher": FLOAT * frozen / weights,
    }


@dataclass(frozen=True)
class Estimate:
    """Of one micro-batch, forward and backward. FLOPs count a multiply-add as two."""

    flops_per_image: float
    parameters: int
    trained: int  # parameters that have a gradient
    buffer_bytes: int  # BatchNorm's statistics and the like
    activation_bytes: int  # kept from the forward pass for the backward pass

    @property
    def memory_bytes(self) -> int:
        """On one device: what is held, and activations; no allocator's and no buffers."""
        return int(sum(held(self.trained, self.parameters - self.trained).values())) + self.activation_bytes


def estimate(method: Method, views: ViewSpec, micro_batch: int, activation_bytes: int) -> Estimate:
    """Count the real step of `method`, whose parameters lie on the meta device.

    The optimizer's and an EMA's own arithmetic is left out, as everywhere: it is linear in the parameters.

    activation_bytes: per element of what the forward pass keeps, 2 under 16-bit autocast.
    """
    probe = max(2, min(micro_batch, 8))  # activations grow linearly in the batch; BatchNorm needs two
    crops = [torch.empty(probe, 3, size, size, device="meta") for size in views.sizes]
    rows = torch.zeros(probe, dtype=torch.int64, device="meta")
    batch = Batch(crops[0], rows, label=rows)
    own = {p.untyped_storage()._cdata for p in method.parameters()}
    saved: dict[int, float] = {}
    alive = []  # so that addresses stay distinct

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # views and in-place results of one activation count once
        if storage._cdata not in own:
            elements = storage.nbytes() / tensor.element_size()
            saved[storage._cdata] = elements * min(tensor.element_size(), activation_bytes)
            alive.append(storage)
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(note, lambda tensor: tensor):
        loss = method(crops, batch, Progress(0, 0, 0, 1)).loss
        loss.backward()
    return Estimate(
        flops_per_image=counter.get_total_flops() / probe,
        parameters=sum(p.numel() for p in method.parameters()),
        trained=sum(p.numel() for p in method.parameters() if p.requires_grad),
        buffer_bytes=sum(x.nbytes for x in method.buffers()),
        activation_bytes=int(sum(saved.values()) * micro_batch / probe),
    )
