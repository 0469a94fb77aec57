"""What a run would cost, without running it: FLOPs and memory of one step, counted on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cass_scale.methods.base import Method
from cass_scale.types import Batch, Progress


@dataclass(frozen=True)
class Estimate:
    """Of one micro-batch, forward and backward. FLOPs count a multiply-add as two."""

    flops_per_image: float
    parameters: int
    memory_bytes: int  # weights, gradients, two Adam moments and saved activations; allocator overhead not included


def estimate(method: Method, image_size: int, micro_batch: int, views: int, activation_bytes: int) -> Estimate:
    """Count the real step of `method`, whose parameters lie on the meta device; `activation_bytes` per element."""
    probe = max(2, min(micro_batch, 8))  # activations grow linearly in the batch; BatchNorm needs two
    images = torch.empty(probe, 3, image_size, image_size, device="meta")
    batch = Batch(images, torch.zeros(probe, dtype=torch.int64, device="meta"))
    saved: dict[int, Tensor] = {}
    own = {id(p) for p in method.parameters()}

    def note(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            saved[id(tensor)] = tensor  # kept alive, so that ids stay distinct
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = method([images] * views, batch, Progress(0, 0, 0, 1)).loss
        loss.backward()
    parameters = sum(p.numel() for p in method.parameters())
    activations = sum(t.numel() * min(t.element_size(), activation_bytes) for t in saved.values())
    memory = 16 * parameters + activations * micro_batch // probe
    return Estimate(counter.get_total_flops() / probe, parameters, int(memory))
