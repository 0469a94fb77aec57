"""ZeRO 1, 2 and 3 by DeepSpeed, with float32 weights, gradients and statistics whatever autocast computes in."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cass_scale import dist
from cass_scale.backends.engine import Engine, on_main
from cass_scale.types import JSON, ArmOutput, Progress

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cass_scale.methods.base import Method


class Part(NamedTuple):
    """`length` elements of a parameter from `first` on lie in the tensor `flat` from `start` on."""

    flat: Tensor
    start: int
    first: int
    length: int


class Door(nn.Module):
    """What DeepSpeed wraps: a step with a batch, the method's answers without."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, views: list[Tensor], *step: Any) -> Any:
        """Loss, or features and outputs per arm."""
        return self.method(views, *step) if step else self.method.outputs(views)


class Zero(Engine):
    """DeepSpeed's engine around the method. Stage 1 shares out the optimizer's state, 2 gradients, 3 weights too."""

    def __init__(
        self, method: Method, optimizer: torch.optim.Optimizer, accelerator: Accelerator, *, stage: int, tuned: JSON
    ) -> None:
        self.stage, self.tuned = stage, tuned
        self.groups: list[list[Any]] = [list(group["params"]) for group in optimizer.param_groups]
        super().__init__(method, optimizer, accelerator)

    def _prepare(self) -> tuple[Any, Any]:
        # By default it takes a GPU that is there, its own launcher and MPI.
        os.environ["DS_ACCELERATOR"] = self.accelerator.device.type
        import deepspeed

        compile_nothing()
        warnings.filterwarnings(
            "ignore", r"`torch.distributed.\w+_tensor` is deprecated", FutureWarning
        )  # its own calls
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        config = settings(self.stage, self.accelerator.mixed_precision, self.tuned)
        model, zero, _, _ = deepspeed.initialize(
            model=Door(self.method), optimizer=self.optimizer, config=config, dist_init_required=False
        )
        model.set_gradient_accumulation_boundary(True)
        return model, zero

    def outputs(self, views: list[Tensor]) -> dict[str, ArmOutput]:
        """The method's answers, through DeepSpeed's door: in stage 3 it gathers the weights."""
        found: dict[str, ArmOutput] = self.model(views)
        return found

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Inside it, passes only add to the gradients."""
        self.model.set_gradient_accumulation_boundary(False)
        yield
        self.model.set_gradient_accumulation_boundary(True)

    def backward(self, loss: Tensor) -> None:
        """The backward pass; gradients go to the ranks that own them."""
        self.model.backward(loss)

    def step(self, clip: float | None, *, each: bool, clear: bool) -> None:
        """One optimizer step, gradients clipped to norm `clip`, all by one or each by its own."""
        from deepspeed.utils import safe_update_full_grad_vectorized

        if clip and each:
            most = clip
            ours = [p for group in self.groups for p in group]
            safe_update_full_grad_vectorized(ours, lambda g, _: g * (most / (g.norm() + 1e-6)).clamp(max=1.0))
        self._stepped.clip_grad = clip if clip and not each else 0.0
        self.model.step()

    def after_step(self, at: Progress) -> None:
        """The method's own hook, on the shards: what it does to weights is done element by element."""
        with self._shards():
            self.method.after_step(at)

    @contextmanager
    def _shards(self) -> Iterator[None]:
        if self.stage < 3:
            yield
            return
        kept = [(p, p.data) for _, p in self._named()]
        for p, _ in kept:
            p.data = p.ds_tensor.data
        yield
        for p, data in kept:
            p.data = data

    def _stored(self) -> Iterator[Tensor]:
        for _, p in self._named():
            yield p.ds_tensor if self.stage == 3 else p

    def _named(self) -> Iterator[tuple[str, Any]]:
        """Parameters with what DeepSpeed has hung on them."""
        return self.method.named_parameters()

    def model_state(self) -> JSON:
        """The whole model, on the main rank; of stage 3 gathered tensor by tensor."""
        if self.stage < 3:
            return self.method.state_dict()
        state: JSON = self.method.state_dict()
        for name, p in self._named():
            first = dist.rank() * p.ds_tensor.numel()
            state[name] = put_together(p.ds_shape, first, p.ds_tensor.data[: max(0, p.ds_numel - first)])
        return state

    def optimizer_state(self) -> JSON:
        """As a plain torch optimizer over whole parameters gives it, on the main rank; tensor by tensor."""
        places = _places(self.groups)
        groups = [
            {key: value for key, value in group.items() if key != "params"} | {"params": [places[p] for p in own]}
            for group, own in zip(self.optimizer.param_groups, self.groups, strict=True)
        ]
        return {"state": {place: self._whole(p) for p, place in places.items()}, "param_groups": groups}

    def _whole(self, p: Any) -> JSON:
        """One parameter's optimizer state, put together from all ranks."""
        shape = p.ds_shape if self.stage == 3 else p.shape
        part, found = self._part(p), {}
        for key, x in next(iter(self.optimizer.state.values())).items():
            if not x.ndim:  # Adam's count of steps: all parameters take all steps
                found[key] = x.to("cpu", copy=True)
                continue
            mine = self.optimizer.state[part.flat][key].narrow(0, part.start, part.length) if part else x[:0]
            found[key] = put_together(shape, part.first if part else 0, mine)
        return found

    def _part(self, p: Any) -> Part | None:
        """Where this rank keeps its elements of a parameter, if it has any."""
        if self.stage == 3:
            group, start, length = self._stepped.grad_position[self._stepped.get_param_id(p)]
            first = length * dist.rank()
            flat, length = self._stepped.fp32_partitioned_groups_flat[group], min(length, p.ds_numel - first)
            return Part(flat, start, first, length) if length > 0 else None
        if (ours := p._hp_mapping) is None:
            return None
        flat, at = self._stepped.single_partition_of_fp32_groups[ours.param_group_index], ours.hp_fragment_address
        return Part(flat, at.start, ours.lp_fragment_address.start, at.numel)

    def gradients(self) -> JSON:
        """None outlives a step."""
        return {}

    def load(self, model: JSON, optimizer: JSON, gradients: JSON) -> None:
        """Put back what any backend saved. Every rank has read all of it."""
        if self.stage < 3:
            self.method.load_state_dict(model)
            self._stepped.refresh_fp32_params()
        else:
            self._load_shards(model)
        for p, place in _places(self.groups).items():
            if part := self._part(p):
                state, fused = self.optimizer.state[part.flat], self.optimizer.defaults.get("fused")
                for key, x in optimizer["state"][place].items():
                    if not x.ndim:
                        state[key] = x.to(part.flat.device if fused else "cpu", copy=True)  # as torch keeps it
                        continue
                    mine = x.flatten().narrow(0, part.first, part.length)
                    flat = state.setdefault(key, torch.zeros_like(part.flat))
                    flat.narrow(0, part.start, part.length).copy_(mine)

    def _load_shards(self, model: JSON) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        for name, buffer in self.method.named_buffers():
            if name in model:
                buffer.copy_(model[name])
        for name, p in self._named():
            p.ds_tensor.data.copy_(share(model[name], p.ds_tensor.numel()))
            safe_set_local_fp32_param(p, p.ds_tensor)


def compile_nothing() -> None:
    """DeepSpeed compiles a collective of its own for CPUs, which training never calls, at its first start.

    What it waits behind is a lock file, which a killed process leaves for ever to all later ones
    (torch.utils.file_baton). Raises RuntimeError when a later DeepSpeed has it elsewhere.
    """
    backend: Any = importlib.import_module("deepspeed.comm.torch")  # the attribute of that name is plain torch
    if not hasattr(backend, "build_shm_op"):
        raise RuntimeError("deepspeed.comm.torch.build_shm_op is gone: take the deepspeed of constraints.txt")
    backend.build_shm_op = lambda: None


def settings(stage: int, precision: str, tuned: JSON) -> JSON:
    """DeepSpeed's configuration; `tuned` is laid over its `zero_optimization`."""
    # Nothing stays gathered between steps: a teacher's weights change outside of DeepSpeed's sight.
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0} | tuned
    # Without the list it would also send the gradients of linear layers and convolutions in bfloat16.
    autocast = {"enabled": precision == "bf16", "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return {
        "train_micro_batch_size_per_gpu": 1,  # it asks, and reads it for its own reports only
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "torch_autocast": autocast,
    }


def put_together(shape: torch.Size, first: int, mine: Tensor) -> Tensor:
    """The whole tensor on the main rank; `mine` are this rank's elements from `first` on."""
    whole = mine.new_zeros(shape.numel())
    whole[first : first + len(mine)] = mine
    return on_main(dist.all_reduce_sum(whole).view(shape))


def share(x: Tensor, length: int) -> Tensor:
    """This rank's `length` elements of `x`, padded at the end as stage 3 does."""
    flat = F.pad(x.flatten(), (0, max(0, length * dist.world() - x.numel())))
    return flat.narrow(0, length * dist.rank(), length)


def _places(groups: list[list[Any]]) -> dict[Any, int]:
    """Each parameter's number in an optimizer's state."""
    return {p: number for number, p in enumerate(p for group in groups for p in group)}
