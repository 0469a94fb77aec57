"""Stochastic weight averaging, as CASS's text asks for (section 4.1): torch's own, BatchNorm refreshed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from cass_scale.methods.base import Method
from cass_scale.types import Progress


class Average:
    """Running mean of the weights from `start` (fraction of the run) on, one sample every `every` steps.

    The paper states neither; the authors' notebook creates the averager and never updates it.
    """

    def __init__(self, method: Method, *, start: float, every: int) -> None:
        self.mean = AveragedModel(method)
        self.start, self.every = start, every

    def update(self, method: Method, at: Progress) -> None:
        """Take in the weights after step `at` when it is due."""
        if at.fraction >= self.start and at.step % self.every == 0:
            self.mean.update_parameters(method)

    def finish(self, method: Method, views: Iterable[list[Tensor]]) -> None:
        """Put the mean into `method` and estimate its BatchNorm statistics anew over `views` (one epoch)."""
        if int(self.mean.n_averaged) == 0:
            return
        method.load_state_dict(self.mean.module.state_dict())
        update_bn(((v,) for v in views), _Outputs(method))

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return dict(self.mean.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.mean.load_state_dict(state)


class _Outputs(nn.Module):
    """What `update_bn` calls: a forward pass without a loss."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, views: list[Tensor]) -> None:
        self.method.outputs(views)
