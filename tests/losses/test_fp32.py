"""Losses compute in float32 whatever comes in and whatever autocast says around them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cass_scale.losses import barlow, cosine, focal, fp32, infonce, sinkhorn, vicreg

OBJECTIVES = {f.__name__: f for f in (cosine, infonce, vicreg, barlow, sinkhorn, focal)}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_under_autocast_equals_float32(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 32).to(dtype), torch.rand(8, 32).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = OBJECTIVES[name](x, y)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, OBJECTIVES[name](x.float(), y.float()))


def test_gradient_comes_back_in_the_dtype_of_the_output() -> None:
    x = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    infonce(x, torch.randn(4, 8)).backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert x.grad.abs().sum() > 0


def test_arguments_given_by_name_are_raised_too_and_autocast_comes_back() -> None:
    seen: list[torch.dtype] = []

    @fp32
    def product(a: Tensor, *, b: Tensor, factor: int) -> Tensor:
        seen.extend([a.dtype, b.dtype])
        return a @ b * factor

    a = torch.eye(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(a=a.bfloat16(), b=a.half(), factor=2).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
    assert seen == [torch.float32, torch.float32]
    assert product(a.long(), b=a.long(), factor=1).dtype == torch.int64


def test_large_outputs_stay_finite() -> None:
    huge = torch.randn(8, 32, dtype=torch.float16) * 1e4  # squares overflow float16
    for loss in (cosine, infonce, sinkhorn, barlow):
        assert torch.isfinite(loss(huge, huge.roll(1, 0)))
