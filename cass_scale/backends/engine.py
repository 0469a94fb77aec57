"""One process and DDP; and the face by which the loop knows every backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from cass_scale import dist
from cass_scale.optim import clip_each_
from cass_scale.types import JSON, ArmOutput, Batch, Progress, StepOutput

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cass_scale.methods.base import Method


class Engine:
    """Every rank holds everything; gradients are averaged by DDP. All ranks call everything here together.

    What it saves and loads is the same in every backend: the whole model, and the state of a plain torch optimizer.
    """

    def __init__(self, method: Method, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
        self.method, self.optimizer, self.accelerator = method, optimizer, accelerator
        self.model, self._stepped = self._prepare()

    def _prepare(self) -> tuple[Any, Any]:
        prepared: tuple[Any, Any] = self.accelerator.prepare(self.method, self.optimizer)
        return prepared  # never the stream: it shards itself

    def __call__(self, views: list[Tensor], batch: Batch, at: Progress) -> StepOutput:
        """The method's forward pass, in the run's precision."""
        return cast(StepOutput, self.model(views, batch, at))

    def outputs(self, views: list[Tensor]) -> dict[str, ArmOutput]:
        """The method's answers, in the run's precision: what the collapse monitor reads."""
        with self.accelerator.autocast():
            return self.method.outputs(views)

    def quiet(self) -> AbstractContextManager[Any]:
        """Inside it, passes only add to the gradients: another micro-batch of the same step follows."""
        return cast(AbstractContextManager[Any], self.accelerator.no_sync(self.model))

    def backward(self, loss: Tensor) -> None:
        """The backward pass."""
        self.accelerator.backward(loss)

    def step(self, clip: float | None, *, each: bool, clear: bool) -> None:
        """One optimizer step, gradients clipped to norm `clip`, all by one or each by its own."""
        if clip and each:
            self.accelerator.unscale_gradients()
            clip_each_(self.model.parameters(), clip)
        elif clip:
            self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
        self._stepped.step()
        if clear:
            self._stepped.zero_grad(set_to_none=True)

    def after_step(self, at: Progress) -> None:
        """The method's own hook."""
        self.method.after_step(at)

    def finite(self) -> bool:
        """Whether all weights are finite numbers, on every rank."""
        parts = torch.stack([local(p.detach()).isfinite().all() for p in self._stored()])
        return not dist.any_rank(not bool(parts.all()), self.accelerator.device)

    def _stored(self) -> Iterator[Tensor]:
        """What this rank keeps of the parameters."""
        return self.method.parameters()

    def model_state(self) -> JSON:
        """The whole model. Where it has to be put together, only the main rank has it."""
        return self.method.state_dict()

    def optimizer_state(self) -> JSON:
        """As a plain torch optimizer over whole parameters gives it; likewise."""
        return self.optimizer.state_dict()

    def gradients(self) -> JSON:
        """Gradients that outlive a step: there are none unless they are never cleared."""
        return {name: p.grad for name, p in self.method.named_parameters() if p.grad is not None}

    def load(self, model: JSON, optimizer: JSON, gradients: JSON) -> None:
        """Put back what the three above gave, in whichever backend."""
        self.method.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        for name, p in self.method.named_parameters():
            p.grad = gradients[name].to(p.device) if name in gradients else None


def local(x: Tensor) -> Tensor:
    """This rank's part of a tensor that is spread over ranks; any other as it is."""
    part: Tensor = x.to_local() if hasattr(x, "to_local") else x
    return part


def on_main(x: Tensor) -> Tensor:
    """A copy in host memory on the main rank, nothing elsewhere."""
    return x.detach().to("cpu", copy=True) if dist.rank() == 0 else x.new_empty(0, device="cpu")
