"""Maps of convolutions, and Grad-CAM on a planted square."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cass_scale.encoders import ArmSpec, Encoder, build
from cass_scale.insight.convolutions import first_convolutions, grad_cam, towards
from cass_scale.insight.unsuited import Unsuited

SIZE, SIDE, PLACES = 96, 32, ((0, 0), (0, 64), (64, 0), (64, 64), (32, 32))


def network(model: str, seed: int = 0, size: int = SIZE) -> Encoder:
    return build(ArmSpec(model), size, seed)[0].eval()


def squares() -> tuple[Tensor, list[int]]:
    """Dim noise, and in every second image a bright square at one of PLACES; the numbers of those images."""
    images = torch.rand(20, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.2
    bright = list(range(1, 20, 2))
    for number, i in enumerate(bright):
        top, left = PLACES[number % len(PLACES)]
        images[i, :, top : top + SIDE, left : left + SIDE] = 1.0
    return images, bright


@pytest.mark.parametrize("seed", [0, 1])
def test_grad_cam_finds_a_bright_square(seed: int) -> None:
    encoder, (images, bright) = network("resnet10t", seed), squares()
    with torch.no_grad():
        direction = towards(encoder(images), bright)
    maps = grad_cam(encoder, images[bright], lambda features: features @ direction)
    assert maps.shape == (10, 3, 3) and maps.amin() >= 0 and maps.amax(dim=(1, 2)).allclose(torch.ones(10))
    for number, heat in enumerate(maps):
        top, left = PLACES[number % len(PLACES)]
        assert heat.argmax().item() == top // SIDE * 3 + left // SIDE


def test_grad_cam_of_a_linear_score_weighs_the_maps_by_it() -> None:
    """Where the features are the mean of the maps, Zhou's class activation map is the same."""
    encoder, (images, _) = network("resnet10t"), squares()
    direction = torch.randn(encoder.dim, generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = grad_cam(encoder, images[:4], lambda features: features @ direction)
    with torch.no_grad():
        heat = F.relu(
            torch.einsum("d,bdhw->bhw", direction, encoder.body.forward_features(encoder.normalise(images[:4])))
        )
    torch.testing.assert_close(found, heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30))
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())


def test_nothing_that_speaks_for_the_class_is_a_dark_map() -> None:
    encoder, (images, _) = network("resnet10t"), squares()
    assert grad_cam(encoder, images[:2], lambda features: -features.sum(dim=1)).equal(torch.zeros(2, 3, 3))


def test_towards_points_from_the_mean_of_all_to_the_mean_of_the_class() -> None:
    features = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    torch.testing.assert_close(towards(features, [1, 3]), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_transformers_are_refused(model: str) -> None:
    encoder, images = network(model, size=64), torch.rand(1, 3, 64, 64)
    with pytest.raises(Unsuited, match="tokens, not in maps"):
        grad_cam(encoder, images, lambda features: features.sum(dim=1))
    with pytest.raises(Unsuited, match="no CNN of 5 convolutions or more: it has 1"):
        first_convolutions(encoder, images)


def test_the_first_five_convolutions_in_the_order_of_the_image() -> None:
    encoder, images = network("resnet18"), torch.rand(2, 3, SIZE, SIZE)
    found = first_convolutions(encoder, images)
    assert list(found) == ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"]
    body: torch.nn.Module = encoder.body
    with torch.no_grad():
        first = body.conv1(encoder.normalise(images))
        second = body.layer1[0].conv1(body.maxpool(body.act1(body.bn1(first))))
    torch.testing.assert_close(found["conv1"], first.abs().mean(dim=1))
    torch.testing.assert_close(found["layer1.0.conv1"], second.abs().mean(dim=1))
    assert not any(module._forward_hooks for module in body.modules())
