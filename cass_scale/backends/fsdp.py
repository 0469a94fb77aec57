"""FSDP2: parameters, gradients and optimizer state in shards, by torch itself; on GPUs and on CPUs alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from cass_scale import dist
from cass_scale.backends.engine import Engine, local, on_main
from cass_scale.encoders import Encoder
from cass_scale.types import JSON, Batch, Progress, StepOutput

LEAST = 100_000  # parameters of a part that is gathered on its own; what is smaller goes with the whole


class Sharded(Engine):
    """Every part of a body is gathered when it computes. Everything is float32 but what autocast computes."""

    def _prepare(self) -> tuple[Any, Any]:
        # Its advice is not to change what a module returns in place: the loop divides the loss into a new tensor.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        names = {p: name for name, p in self.method.named_parameters()}
        shard = partial(fully_shard, mesh=init_device_mesh(self.accelerator.device.type, (dist.world(),)))
        for body in [m.body for m in self.method.modules() if isinstance(m, Encoder)]:
            for part in parts(body):
                shard(part)
        shard(self.method)
        register_fsdp_forward_method(self.method, "outputs")  # what the monitor calls
        sharded = dict(self.method.named_parameters())
        for group in self.optimizer.param_groups:
            group["params"] = [sharded[names[p]] for p in group["params"]]
        self._unfuse()
        return self.method, self.optimizer

    def __call__(self, views: list[Tensor], batch: Batch, at: Progress) -> StepOutput:
        """The method's forward pass, in the run's precision."""
        with self.accelerator.autocast():
            return super().__call__(views, batch, at)

    def _unfuse(self) -> None:
        """torch's fused SGD knows nothing of shards; its fused Adam does."""
        for group in self.optimizer.param_groups:
            group["fused"] = group.get("fused") and "betas" in group

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Inside it, gradients are not reduced; they are kept whole until they are."""
        self.model.set_requires_gradient_sync(False)
        yield
        self.model.set_requires_gradient_sync(True)

    def step(self, clip: float | None, *, each: bool, clear: bool) -> None:
        """One optimizer step, gradients clipped to norm `clip`, all by one or each by its own."""
        if clip:
            self._clip(clip, each)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _clip(self, most: float, each: bool) -> None:
        gradients = [local(p.grad) for p in self.method.parameters() if p.grad is not None]
        squares = dist.all_reduce_sum(torch.stack(torch._foreach_norm(gradients)).square())
        norms = squares.sqrt() if each else squares.sum().sqrt().expand(len(gradients))
        torch._foreach_mul_(gradients, list((most / (norms + 1e-6)).clamp(max=1.0)))

    def model_state(self) -> JSON:
        """The whole model, on the main rank."""
        return _whole(self.method.state_dict())

    def optimizer_state(self) -> JSON:
        """As a plain torch optimizer over whole parameters gives it, on the main rank."""
        return _whole(self.optimizer.state_dict())

    def load(self, model: JSON, optimizer: JSON, gradients: JSON) -> None:
        """Put back what any backend saved."""
        buffers = dict(self.method.named_buffers())
        with torch.no_grad():
            for name, value in model.items():
                mine = self.method.get_parameter(name) if name not in buffers else buffers[name]
                local(mine).copy_(local(_like(mine, value)))
        self.optimizer.load_state_dict(optimizer)
        self._unfuse()
        for one in getattr(self.optimizer, "parts", [self.optimizer]):
            for p, state in one.state.items():
                state |= {key: _like(p, x) if x.shape == p.shape else x for key, x in state.items()}


def parts(body: nn.Module) -> Iterator[nn.Module]:
    """What of a timm body is gathered on its own: the blocks of its stages, where they are large."""
    for stage in body.children():
        for block in stage.children() if isinstance(stage, nn.Sequential | nn.ModuleList) else ():
            if sum(p.numel() for p in block.parameters()) >= LEAST:
                yield block


def _whole(state: JSON) -> JSON:
    """Every rank gives its shards, one tensor after the other; the main rank keeps the result."""
    found: JSON = tree_map_only(DTensor, lambda x: on_main(x.full_tensor()), state)
    return found


def _like(mine: Tensor, value: Tensor) -> Tensor:
    """`value`, which every rank holds, spread as `mine` is; nothing is sent."""
    if not isinstance(mine, DTensor):
        return value
    value = value.to(mine.device, mine.dtype)
    return distribute_tensor(value, mine.device_mesh, mine.placements, src_data_rank=None)
