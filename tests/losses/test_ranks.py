"""Two ranks with half a batch each train as one rank with the whole: the same loss and the same gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as td
from torch.nn.parallel import DistributedDataParallel

from cass_scale.losses import barlow, cosine, infonce, sinkhorn, vicreg

OBJECTIVES = {f.__name__: f for f in (cosine, infonce, vicreg, barlow, sinkhorn)}


class Pair(nn.Module):
    """Two linear arms with the objective inside `forward`, as a method has it."""

    def __init__(self, objective: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 5), nn.Linear(6, 5)
        self.objective = objective

    def forward(self, images: Tensor) -> Tensor:
        return self.objective(self.one(images), self.two(images))


def images() -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def gradient(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    loss = model(batch)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, objective in OBJECTIVES.items():
        loss, grad = gradient(DistributedDataParallel(Pair(objective)), images()[4 * rank : 4 * rank + 4])
        td.all_reduce(loss)
        found[name] = (loss / 2, grad)
    if rank == 1:
        torch.save(found, f"{folder}/found.pt")
    td.destroy_process_group()


@pytest.mark.dist
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(half, args=(str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, objective in OBJECTIVES.items():
        loss, grad = gradient(Pair(objective), images())
        torch.testing.assert_close(found[name][0], loss, msg=lambda m, n=name: f"{n}, loss: {m}")
        torch.testing.assert_close(found[name][1], grad, msg=lambda m, n=name: f"{n}, gradient: {m}")
