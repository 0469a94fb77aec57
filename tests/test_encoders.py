"""Encoders: real weights land where timm itself puts them, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cass_scale import encoders
from cass_scale.encoders import IMAGENET_MEAN, ArmSpec
from cass_scale.errors import ConfigError

HALF = (0.5, 0.5, 0.5)
RESNET = ("resnet18", "resnet18.tv_in1k_nofc.safetensors", 64)
DINOV2 = ("vit_small_patch14_reg4_dinov2", "vit_small_patch14_reg4_dinov2.mr_tuned.safetensors", 98)
LITE = ("tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k.safetensors", 64)


@pytest.fixture
def weights(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of real weights, as CASS_SCALE_WEIGHTS names it."""
    if not (shared / "weights").is_dir():
        pytest.skip("needs ../shared (or CASS_SCALE_SHARED)")
    monkeypatch.setenv("CASS_SCALE_WEIGHTS", str(shared / "weights"))
    return shared / "weights"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights folder, and a hub that cannot be reached."""
    monkeypatch.setenv("CASS_SCALE_WEIGHTS", str(tmp_path))
    real = timm.create_model

    def offline(name: str, pretrained: bool = False, **args: Any) -> Any:
        if pretrained:
            raise OSError("network is unreachable")
        return real(name, pretrained=False, **args)

    monkeypatch.setattr(timm, "create_model", offline)
    return tmp_path


def images(size: int, n: int = 2) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def full_state(model: str, **args: Any) -> dict[str, Tensor]:
    return {k: v.contiguous() for k, v in timm.create_model(model, **args).state_dict().items()}


@pytest.mark.parametrize(("model", "file", "size"), [RESNET, DINOV2, LITE])
def test_a_real_file_gives_what_timms_own_loader_gives(weights: Path, model: str, file: str, size: int) -> None:
    encoder, head = encoders.build(ArmSpec(model, file), size, seed=0)
    args = {"img_size": size} if model == DINOV2[0] else {}
    classes = 1000 if model == LITE[0] else 0
    theirs = timm.create_model(
        model, pretrained=True, pretrained_cfg_overlay={"file": weights / file}, num_classes=classes, **args
    )
    x = images(size)
    with torch.no_grad():
        features = encoder.eval()(x)
        got = head(features) if classes else features
        mean, std = (torch.tensor(theirs.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
        wanted = theirs.eval()((x - mean) / std)
    assert features.shape == (2, encoder.dim)
    # They resize the position embeddings of half precision files in half precision.
    torch.testing.assert_close(got, wanted, rtol=2e-2 if args else 1e-5, atol=2e-2 if args else 1e-5)


def test_every_tensor_of_a_file_is_in_the_encoder_or_its_head(weights: Path) -> None:
    model, file, size = LITE
    encoder, head = encoders.build(ArmSpec(model, file), size, seed=0)
    own = encoder.body.state_dict() | {f"classifier.{k}": v for k, v in head.state_dict().items()}
    stored = load_file(weights / file)
    assert stored.keys() == own.keys()
    assert all(torch.equal(own[key], value.float()) for key, value in stored.items())


def test_position_embeddings_are_resized_from_518_to_98_px(weights: Path) -> None:
    model, file, size = DINOV2
    stored = load_file(weights / file)["pos_embed"].float()
    body: Any = encoders.build(ArmSpec(model, file), size, seed=0)[0].body
    assert stored.shape[1] == 37 * 37
    assert body.pos_embed.shape[1] == 7 * 7
    torch.testing.assert_close(body.pos_embed.mean(1), stored.mean(1), atol=0.02, rtol=0)


def test_a_head_of_another_width_starts_fresh_on_the_files_body(weights: Path) -> None:
    model, file, size = LITE
    encoder, head = encoders.build(ArmSpec(model, file, outputs=10), size, seed=0)
    _, fresh = encoders.build(ArmSpec(model, outputs=10), size, seed=0)
    assert torch.equal(head.weight, fresh.weight)
    assert torch.equal(
        encoder.body.state_dict()["conv_stem.weight"], load_file(weights / file)["conv_stem.weight"].float()
    )


VIT = "vit_small_patch16_224"


@pytest.mark.parametrize(
    ("spec", "mean"),
    [
        (ArmSpec(LITE[0]), IMAGENET_MEAN),
        (ArmSpec(VIT, "augreg_in21k_ft_in1k"), HALF),
        (ArmSpec(VIT, "dino"), IMAGENET_MEAN),
        (ArmSpec(VIT, f"{VIT}.dino.safetensors"), IMAGENET_MEAN),
        (ArmSpec(VIT, f"some/where/{VIT}.dino_half.safetensors"), IMAGENET_MEAN),
        (ArmSpec(VIT, f"{VIT}.augreg_in21k_ft_in1k.safetensors"), HALF),
        (ArmSpec(VIT, f"{VIT}.dinosaur.safetensors"), HALF),
        (ArmSpec(VIT, "mine.safetensors"), HALF),
        (ArmSpec(LITE[0], LITE[1]), HALF),
        (ArmSpec(VIT, "augreg_in21k_ft_in1k", mean=(0.1, 0.2, 0.3)), (0.1, 0.2, 0.3)),
    ],
    ids=lambda value: value.weights if isinstance(value, ArmSpec) else "",
)
def test_normalisation_is_what_the_weights_were_trained_with(
    folder: Path, spec: ArmSpec, mean: tuple[float, ...]
) -> None:
    with torch.device("meta"):
        encoder = encoders.Encoder(spec, 32)
    assert encoder.spec.mean == mean


def test_normalisation_is_applied_before_the_body(folder: Path) -> None:
    spec = ArmSpec("resnet10t", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    encoder = encoders.build(spec, 32, seed=0)[0].eval()
    x = images(32)
    by_hand = torch.stack([(x[:, c] - m) / s for c, (m, s) in enumerate(((0.1, 0.5), (0.2, 0.6), (0.3, 0.7)))], 1)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), encoder.body(by_hand))


def test_an_export_used_as_weights_keeps_its_normalisation(folder: Path) -> None:
    first = encoders.build(ArmSpec("resnet10t", mean=(0.1, 0.2, 0.3), std=HALF), 32, seed=0)[0]
    encoders.export(first, folder / "cnn.safetensors", {})
    second = encoders.build(ArmSpec("resnet10t", "cnn.safetensors"), 32, seed=1)[0]
    assert (second.spec.mean, second.spec.std) == ((0.1, 0.2, 0.3), HALF)
    with torch.no_grad():
        assert torch.equal(first.eval()(images(32)), second.eval()(images(32)))


def test_weights_of_another_architecture_are_refused_with_counts(weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"resnet34 weights=resnet18.*another architecture: \d+ of 216 tensors fit"):
        encoders.build(ArmSpec("resnet34", RESNET[1]), 64, seed=0)
    with pytest.raises(ConfigError, match=r"another architecture: 0 of \d+ tensors fit"):
        encoders.build(ArmSpec("vit_tiny_patch16_224", RESNET[1]), 64, seed=0)


def test_kernels_of_another_patch_size_are_refused_not_resized(folder: Path) -> None:
    save_file(full_state("vit_tiny_patch16_224", patch_size=8), folder / "vit.safetensors")
    with pytest.raises(ConfigError, match=r"149 of 150 tensors.*patch_embed\.proj\.weight"):
        encoders.build(ArmSpec("vit_tiny_patch16_224", "vit.safetensors"), 32, seed=0)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x08\0\0\0\0\0\0\0{}      cut"])
def test_a_file_that_is_not_safetensors_is_one_clear_message(folder: Path, content: bytes) -> None:
    (folder / "broken.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.safetensors: not a whole safetensors file"):
        encoders.build(ArmSpec("resnet10t", "broken.safetensors"), 32, seed=0)


def test_an_absent_file_says_where_it_was_looked_for(folder: Path) -> None:
    spec = ArmSpec("resnet10t", "absent.safetensors")
    with pytest.raises(ConfigError) as raised:
        encoders.build(spec, 32, seed=0)
    for text in (str(raised.value), *encoders.check("cnn", spec, 32, folder)):
        assert "absent.safetensors: no such file" in text
        assert str(folder) in text
        assert "CASS_SCALE_WEIGHTS" in text


def test_an_unreachable_tag_says_what_to_download_and_following_it_works(folder: Path) -> None:
    spec = ArmSpec("resnet10t", "c3_in1k")
    with pytest.raises(ConfigError, match=r"hub repository timm/resnet10t\.c3_in1k and put it at") as raised:
        encoders.build(spec, 32, seed=0)
    place = Path(str(raised.value).split("put it at ")[1])
    assert place.parent == folder
    state = full_state("resnet10t")
    save_file(state, place)
    encoder, head = encoders.build(spec, 32, seed=0)
    assert torch.equal(encoder.body.state_dict()["conv1.0.weight"], state["conv1.0.weight"])
    assert torch.equal(head.weight, state["fc.weight"])
    assert encoders.check("cnn", spec, 32, folder) == []


def test_the_weights_folder_is_under_the_cache_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CASS_SCALE_WEIGHTS", raising=False)
    monkeypatch.setenv("CASS_SCALE_CACHE", "~/somewhere")
    assert encoders.weights_dir() == Path.home() / "somewhere" / "weights"


@pytest.mark.parametrize(
    ("spec", "size", "words"),
    [
        (ArmSpec("resnet5O"), 64, ["arms.cnn.model=resnet5O", "did you mean", "resnet50"]),
        (ArmSpec("resnet50.a1_in1k"), 64, ["arms.cnn.model=resnet50 arms.cnn.weights=a1_in1k"]),
        (ArmSpec("resnet50", "a1_in2k"), 64, ["no such tag", "a1_in1k", "random"]),
        (ArmSpec("resnet200", "a1_in1k"), 64, ["no such tag; it has: none"]),
        (ArmSpec("vit_tiny_patch16_224"), 98, ["patches of 16 px; use 96 or 112"]),
        (ArmSpec("vit_tiny_patch16_224"), 8, ["use 16 or 32"]),
    ],
)
def test_a_wrong_arm_is_told_what_would_work(spec: ArmSpec, size: int, words: list[str]) -> None:
    (problem,) = encoders.check("cnn", spec, size, Path("nowhere"))
    assert all(word in problem for word in words), problem


def test_arguments_that_timm_refuses_are_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"timm cannot build resnet10t with .*colour"):
        encoders.Encoder(ArmSpec("resnet10t", args={"colour": "blue"}), 32)


def test_random_weights_depend_on_the_seed_alone() -> None:
    def weights_of(seed: int) -> Tensor:
        torch.rand(7)  # what was drawn before does not matter
        encoder, head = encoders.build(ArmSpec("resnet10t", outputs=8), 32, seed)
        return torch.cat([p.flatten() for p in (*encoder.parameters(), *head.parameters())])

    before = torch.get_rng_state()
    assert torch.equal(weights_of(0), weights_of(0))
    assert not torch.equal(weights_of(0), weights_of(1))
    torch.set_rng_state(before)
    encoders.build(ArmSpec("resnet10t"), 32, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


MODELS = {
    "resnet10t": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "mobilenetv3_small_050": 64,  # a head layer wider than its last feature map
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 48,
    "swin_tiny_patch4_window7_224": 64,
    "deit_tiny_distilled_patch16_224": 32,
}


@pytest.mark.parametrize(("model", "size"), MODELS.items())
def test_dim_is_the_width_and_timms_own_checkpoint_fits(folder: Path, model: str, size: int) -> None:
    state = full_state(model)  # at the model's native size, classifier included
    save_file(state, folder / f"{model}.safetensors")
    encoder, head = encoders.build(ArmSpec(model, f"{model}.safetensors"), size, seed=0)
    with torch.no_grad():
        assert encoder.eval()(images(size)).shape == (2, encoder.dim)
    assert any(torch.equal(head.weight, value.flatten(1)) for value in state.values() if value.ndim > 1)


def test_a_model_of_fixed_size_is_built_for_the_arms_image_size() -> None:
    with torch.device("meta"):
        body: Any = encoders.Encoder(ArmSpec("vit_tiny_patch16_224"), 48).body
        larger: Any = encoders.Encoder(ArmSpec("vit_tiny_patch16_224", args={"img_size": 64}), 48).body
    assert body.patch_embed.img_size == (48, 48)
    assert larger.patch_embed.img_size == (64, 64)


@pytest.mark.parametrize(("model", "changes"), [("resnet10t", True), ("vit_tiny_patch16_224", False)])
def test_channels_last_is_for_the_cnn_and_changes_the_layout_only(model: str, changes: bool) -> None:
    plain, other = (encoders.build(ArmSpec(model), 64, seed=0)[0].eval() for _ in range(2))
    other.use_channels_last()
    widest = max((p for p in other.parameters() if p.ndim == 4), key=lambda p: p.shape[1])
    assert widest.is_contiguous(memory_format=torch.channels_last) is changes
    torch.testing.assert_close(other(images(64)), plain(images(64)), rtol=1e-4, atol=1e-4)
