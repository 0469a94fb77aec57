"""Attention maps: equal to what timm's own unfused path computes, and only of networks that have such attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cass_scale.encoders import ArmSpec, Encoder, build
from cass_scale.insight.attention import Watch, attention, rollout, weights
from cass_scale.insight.unsuited import Unsuited

MODELS = {  # class token; registers; rotary embedding, mean of patches; relative bias in the mask
    "vit_tiny_patch16_224": 64,
    "vit_small_patch14_reg4_dinov2": 56,
    "eva02_tiny_patch14_224": 56,
    "vit_relpos_small_patch16_224": 64,
}


def make(model: str, size: int, **args: object) -> tuple[Encoder, Tensor]:
    encoder, _ = build(ArmSpec(model, args={"depth": 3, **args}), size, seed=0)
    return encoder.eval(), torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def unfused(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """What goes through the dropout of every attention in timm's own slow path: [B, heads, T, T] each."""
    seen: list[Tensor] = []
    for module in encoder.body.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
            module.attn_drop.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        encoder(images)
    return seen


@pytest.mark.parametrize("model", MODELS)
def test_maps_are_those_of_the_unfused_path(model: str) -> None:
    encoder, images = make(model, MODELS[model])
    found = attention(encoder, images)
    layers = unfused(encoder, images)
    prefix, side = encoder.body.num_prefix_tokens, 4
    asked = slice(0, 1) if encoder.body.global_pool == "token" else slice(prefix, None)
    expected = layers[-1][:, :, asked, prefix:].mean(dim=2).reshape(2, -1, side, side)
    torch.testing.assert_close(found.heads, expected, atol=1e-5, rtol=0)
    flow = torch.eye(side * side + prefix).expand(2, -1, -1)
    for layer in layers:
        flow = (0.5 * layer.mean(dim=1) + 0.5 * torch.eye(side * side + prefix)) @ flow
    torch.testing.assert_close(
        found.rollout, flow[:, asked, prefix:].mean(dim=1).reshape(2, side, side), atol=1e-5, rtol=0
    )


def test_a_fused_path_that_is_switched_off_is_left_as_it_was() -> None:
    encoder, images = make("vit_tiny_patch16_224", 64)
    expected = attention(encoder, images)
    for block in encoder.body.blocks:
        block.attn.fused_attn = False
    assert attention(encoder, images).heads.equal(expected.heads)
    assert not any(block.attn.fused_attn for block in encoder.body.blocks)


def test_rows_of_the_rollout_sum_to_one() -> None:
    encoder, images = make("vit_small_patch14_reg4_dinov2", 56)
    watch = Watch(batch=2, tokens=21)
    with torch.no_grad(), watch:
        encoder(images)
    flow = rollout(watch.means)
    assert flow.shape == (2, 21, 21) and (flow >= 0).all()
    torch.testing.assert_close(flow.sum(dim=2), torch.ones(2, 21))
    one = torch.softmax(torch.rand(1, 5, 5), dim=2)
    torch.testing.assert_close(rollout([one]), 0.5 * one + 0.5 * torch.eye(5))


def test_weights_know_masks_scales_and_shared_keys() -> None:
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    shared = weights(q, k)
    assert shared.equal(weights(q, torch.stack([k[:, 0], k[:, 0], k[:, 1], k[:, 1]], dim=1)))
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    assert (weights(q, k, causal)[..., ~causal] == 0).all()
    assert weights(q, k, torch.zeros(6, 6)).equal(shared)
    torch.testing.assert_close(weights(q, k, scale=0.0), torch.full((2, 4, 6, 6), 1 / 6))


@pytest.mark.parametrize(
    ("model", "size", "why"),
    [
        ("resnet10t", 64, "no Vision Transformer"),
        ("swin_tiny_patch4_window7_224", 64, "no blocks of attention among all patches"),
        ("cait_xxs24_224", 64, "24 blocks, of which 0 attend"),
    ],
)
def test_networks_without_attention_among_all_patches_are_refused(model: str, size: int, why: str) -> None:
    encoder, _ = build(ArmSpec(model), size, seed=0)
    with pytest.raises(Unsuited, match=why):
        attention(encoder, torch.rand(1, 3, size, size))
