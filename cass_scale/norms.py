"""BatchNorm over several ranks: statistics of each rank's own images, of all ranks' images, or fixed ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from cass_scale import dist
from cass_scale.methods.base import Method

KINDS = ("local", "sync", "global_frozen")


class Synced(_BatchNorm):
    """Statistics of the micro-batch of all ranks, which hold equally many images each.

    torch's own refuses a CPU, and its converter drops the activation that timm keeps inside some norms.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        if not (self.training and dist.active()):
            return _rest(self, _fixed(self, x, self.training))
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        if x.is_cuda:
            running = self.running_mean, self.running_var
            world = dist.world()
            found = SyncBatchNorm.apply(x, self.weight, self.bias, *running, self.eps, self.momentum, None, world)
        else:
            found = self._normalise(x)
        return _rest(self, found)

    def _normalise(self, x: Tensor) -> Tensor:
        dims = [d for d in range(x.ndim) if d != 1]
        with torch.autocast(x.device.type, enabled=False):
            own = torch.stack(torch.var_mean(x.float(), dims, correction=0))
            # Of means and variances, not of sums of squares: those cancel where the mean is large.
            variances, means = dist.gather_with_grad(own[None]).unbind(dim=1)
            mean, var = means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)
            self._remember(mean.detach(), var.detach(), x.numel() // x.shape[1] * dist.world())
            shape = [1, -1] + [1] * (x.ndim - 2)
            scale = self.weight * (var + self.eps).rsqrt()
            return (x.float() * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)

    def _remember(self, mean: Tensor, var: Tensor, n: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * n / max(1, n - 1), self.momentum)


class Frozen(_BatchNorm):
    """The statistics that the weights were loaded with, in training too; scale and shift are trained."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        return _rest(self, _fixed(self, x, False))


def convert(method: Method, kind: str) -> None:
    """Give every BatchNorm of `method` its behaviour in place; parameters, buffers and their names stay.

    global_frozen: the encoders' rest, those of the heads, which are fresh, are synchronised.
    """
    if kind == "local":
        return
    bodies = method.encoders().values() if kind == "global_frozen" else ()
    fixed = {id(norm) for body in bodies for norm in body.modules()}
    for norm in method.modules():
        if isinstance(norm, _BatchNorm):
            norm.__class__ = Frozen if id(norm) in fixed else Synced


def _fixed(norm: _BatchNorm, x: Tensor, training: bool) -> Tensor:
    if training:
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    momentum = norm.momentum if norm.momentum is not None else 0.0
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training, momentum, norm.eps)


def _rest(norm: nn.Module, x: Tensor) -> Tensor:
    """What timm keeps inside a norm of its own kind (BatchNormAct2d)."""
    for name in ("drop", "act"):
        if name in norm._modules:
            x = getattr(norm, name)(x)
    return x
