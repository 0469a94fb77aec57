"""CKA: 1 for equal and rotated layers, about 0 for unrelated ones, without the bias of small batches."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from cass_scale.encoders import ArmSpec, build
from cass_scale.insight.layers import cka, grams, hsic, layers
from cass_scale.monitor import linear_cka


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(rows: Tensor) -> Tensor:
    return (rows @ rows.T)[None]


def slow_hsic(k: Tensor, m: Tensor) -> float:
    """The U-statistic: mean over all ordered fours of different images (Song et al. 2012, equation 4)."""
    total, count = 0.0, 0
    for i, j, q, r in permutations(range(len(k)), 4):
        total += (k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])).item()
        count += 1
    return total / count


def test_hsic_is_the_mean_over_all_fours() -> None:
    x, y = normal(7, 3), normal(7, 5, seed=1)
    found = hsic(gram(x), gram(y)).item()
    assert abs(found - slow_hsic(x @ x.T, y @ y.T)) < 1e-10
    moved = hsic(gram(x - 3.0), gram(y + 5.0)).item()
    assert abs(found - moved) < 1e-9


def test_equal_and_rotated_layers_have_one() -> None:
    batches = [normal(16, 10, seed=seed) for seed in range(3)]
    turn = torch.linalg.qr(normal(10, 10, seed=9))[0]
    x, y = [gram(b) for b in batches], [gram(3.0 * b @ turn) for b in batches]
    assert abs(cka(x, x).item() - 1) < 1e-12 and abs(cka(x, y).item() - 1) < 1e-9


def test_unrelated_layers_have_about_nothing_where_the_plain_estimate_has_much() -> None:
    batches = 40
    x = [normal(16, 30, seed=seed) for seed in range(batches)]
    y = [normal(16, 300, seed=1000 + seed) for seed in range(batches)]
    found = cka([gram(b) for b in x], [gram(b) for b in y]).item()
    assert abs(found) < 0.05
    assert linear_cka(x[0], y[0]).item() > 0.5


def test_many_small_batches_say_what_one_large_one_does() -> None:
    x = normal(480, 12)
    y = x @ normal(12, 20, seed=1) + 2.0 * normal(480, 20, seed=2)
    whole = cka([gram(x)], [gram(y)]).item()
    parts = cka([gram(b) for b in x.split(16)], [gram(b) for b in y.split(16)]).item()
    assert abs(whole - parts) < 0.05 and 0.2 < whole < 0.9


def test_a_constant_layer_is_not_compared() -> None:
    x, flat = gram(normal(8, 4)), gram(torch.zeros(8, 4, dtype=torch.float64))
    found = cka([torch.cat([x, flat])], [x])
    assert found[0].isfinite().all() and found[1].isnan().all()


def test_layers_of_a_network_are_its_blocks_and_its_features() -> None:
    cnn, vit = (build(ArmSpec(model), 64, seed=0)[0] for model in ("resnet18", "vit_tiny_patch16_224"))
    assert layers(cnn) == ["act1", *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)), "features"]
    assert layers(vit) == [*(f"blocks.{i}" for i in range(12)), "features"]
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    made = {name: grams(encoder, images.split(4)) for name, encoder in (("cnn", cnn), ("vit", vit))}
    assert [g.shape for g in made["cnn"]] == [(10, 4, 4), (10, 4, 4)]
    assert cka(made["cnn"], made["vit"]).shape == (10, 13)
    with torch.no_grad():
        features = cnn(images[:4]).double()
    features = features - features.mean(dim=0)
    torch.testing.assert_close(made["cnn"][0][-1], features @ features.T, rtol=1e-4, atol=1e-8)


def test_every_network_equals_itself_layer_by_layer() -> None:
    encoder, _ = build(ArmSpec("swin_tiny_patch4_window7_224"), 64, seed=0)
    made = grams(encoder, [torch.rand(6, 3, 64, 64)])
    torch.testing.assert_close(cka(made, made).diagonal(), torch.ones(5, dtype=torch.float64))
