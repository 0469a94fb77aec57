"""What a run would cost, without running it: FLOPs and memory of one step, counted on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from cass_scale.methods.base import Method
from cass_scale.types import Batch, Progress, ViewSpec


@dataclass(frozen=True)
class Estimate:
    """Of one micro-batch, forward and backward. FLOPs count a multiply-add as two."""

    flops_per_image: float
    parameters: int
    memory_bytes: int  # weights, of trained ones gradients and two Adam moments, saved activations; no allocator's


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
    parameters = sum(p.numel() for p in method.parameters())
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    memory = 4 * parameters + 12 * trained + sum(saved.values()) * micro_batch / probe
    return Estimate(counter.get_total_flops() / probe, parameters, int(memory))
