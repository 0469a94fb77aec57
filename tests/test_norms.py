"""BatchNorm over ranks is BatchNorm over the whole batch: outputs, gradients and running statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch import distributed as td

from cass_scale import dist, norms
from cass_scale.encoders import ArmSpec, Encoder
from cass_scale.methods.base import Method

SHAPES = {"1d": (8, 6), "2d": (8, 6, 5, 4), "act": (8, 6, 5, 4)}


class Bare(Method):
    """Norms under one roof, some of them an encoder's."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def encoders(self) -> dict[str, Encoder]:
        return {str(i): part for i, part in enumerate(self.parts) if isinstance(part, Encoder)}


def norm(kind: str) -> nn.Module:
    made = {"1d": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "act": BatchNormAct2d}[kind](6)
    with torch.no_grad():
        made.weight.copy_(torch.linspace(0.5, 2, 6)), made.bias.copy_(torch.linspace(-1, 1, 6))
    return cast(nn.Module, made)


def images(kind: str) -> Tensor:
    x = torch.randn(SHAPES[kind], generator=torch.Generator().manual_seed(1))
    return 3 * x + 100 * torch.arange(8).view(8, *[1] * (x.ndim - 1)) / 8  # ranks differ, and means are large


def results(module: nn.Module, x: Tensor) -> dict[str, Any]:
    x = x.clone().requires_grad_()
    y = module(x)
    (y * torch.cos(torch.arange(y.numel()).view_as(y) + 100.0 * dist.rank())).sum().backward()
    return {"y": y.detach(), "x": x.grad, "w": module.weight.grad, "b": module.bias.grad, **module.state_dict()}


def half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for kind in SHAPES:
        module = norm(kind)
        norms.convert(Bare(module), "sync")
        found[kind] = results(module, images(kind)[4 * rank : 4 * rank + 4])
    buffers = [torch.full((3,), float(rank)), torch.tensor(rank), torch.tensor(5.0 + rank)]
    dist.from_main(buffers)
    found["buffers"] = [x.tolist() for x in buffers]
    torch.save(found, f"{folder}/{rank}.pt")
    td.destroy_process_group()


def whole(kind: str) -> dict[str, Any]:
    """One rank with all images; the weights of the loss are those of the two ranks."""
    module, x = norm(kind), images(kind).requires_grad_()
    y = module(x)
    size = y[:4].numel()
    mine = [torch.cos(torch.arange(size).view_as(y[:4]) + 100.0 * rank) for rank in (0, 1)]
    (y * torch.cat(mine)).sum().backward()
    return {"y": y.detach(), "x": x.grad, "w": module.weight.grad, "b": module.bias.grad, **module.state_dict()}


@pytest.mark.dist
def test_two_ranks_normalise_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(half, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for kind in SHAPES:
        expected, found = whole(kind), [rank[kind] for rank in ranks]
        close = torch.testing.assert_close
        for key in ("y", "x"):
            close(torch.cat([one[key] for one in found]), expected[key], rtol=1e-4, atol=1e-4)
        for key in ("w", "b"):
            close(found[0][key] + found[1][key], expected[key], rtol=1e-4, atol=1e-4)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            close(found[0][key], expected[key])
            close(found[1][key], found[0][key])
    assert ranks[1]["buffers"] == [[0.0] * 3, 1, 5.0], "floating-point ones only"


def test_without_ranks_it_is_plain_batchnorm_in_training_and_evaluation() -> None:
    for kind in SHAPES:
        plain, synced = norm(kind), norm(kind)
        norms.convert(Bare(synced), "sync")
        assert isinstance(synced, norms.Synced)
        for training in (True, False):
            plain.train(training), synced.train(training)
            assert torch.equal(plain(images(kind)), synced(images(kind)))
        assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), synced.buffers(), strict=True))


def test_global_frozen_keeps_the_statistics_of_encoders_and_synchronises_heads() -> None:
    encoder, head = Encoder(ArmSpec("resnet10t"), 32), nn.BatchNorm1d(encoder_dim := 512)
    norms.convert(Bare(encoder, head), "global_frozen")
    assert isinstance(head, norms.Synced) and encoder.dim == encoder_dim
    fixed = [m for m in encoder.modules() if isinstance(m, norms.Frozen)]
    before = [x.clone() for m in fixed for x in m.buffers()]
    batch = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        one, all_four = encoder.train()(batch[:2]), encoder(batch)
    torch.testing.assert_close(all_four[:2], one)
    assert fixed and all(
        torch.equal(a, b) for a, b in zip(before, (x for m in fixed for x in m.buffers()), strict=True)
    )
    names = timm.create_model("resnet10t", num_classes=0).state_dict().keys()
    assert encoder.body.state_dict().keys() == names
