"""Exported encoders come back bit-equal, load in plain timm, and are never half written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cass_scale import encoders
from cass_scale.encoders import IMAGENET_MEAN, IMAGENET_STD, ArmSpec
from cass_scale.errors import DataError, StorageError

HALF = (0.5, 0.5, 0.5)


def images(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", ["resnet10t", "vit_tiny_patch16_224"])
def test_an_export_comes_back_bit_equal_and_loads_in_plain_timm(tmp_path: Path, model: str) -> None:
    spec = ArmSpec(model, outputs=7, mean=HALF, std=(0.1, 0.2, 0.3), args={"drop_rate": 0.1})
    encoder = encoders.build(spec, 32, seed=0)[0]
    encoder.train()(images(32))  # BatchNorm's statistics are part of it
    path = tmp_path / "arm.safetensors"
    encoders.export(encoder, path, {"data": "phantom"})
    again = encoders.load_export(path)
    args = {"img_size": again.image_size} if model.startswith("vit") else {}
    plain = timm.create_model(model, num_classes=0, **args)
    plain.load_state_dict(load_file(path), strict=True)
    x = images(32)
    with torch.no_grad():
        wanted = encoder.eval()(x)
        assert torch.equal(again.eval()(x), wanted)
        assert torch.equal(plain.eval()((x - again.mean) / again.std), wanted)
    assert again.spec == encoder.spec
    assert [p.name for p in tmp_path.iterdir()] == ["arm.safetensors"]


def test_an_export_says_how_to_build_and_feed_it(tmp_path: Path) -> None:
    encoders.export(encoders.build(ArmSpec("resnet10t"), 32, seed=0)[0], tmp_path / "a.safetensors", {"data": "x"})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        meta = file.metadata()
    assert (meta["timm"], meta["image_size"], meta["data"]) == ("resnet10t", "32", "x")
    assert json.loads(meta["mean"]) == list(IMAGENET_MEAN)
    assert json.loads(meta["std"]) == list(IMAGENET_STD)


def test_an_export_that_fails_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "arm.safetensors"
    encoders.export(encoders.build(ArmSpec("resnet10t"), 32, seed=0)[0], path, {})
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"arm\.safetensors.*No space left on device.*free some space"):
        encoders.export(encoders.build(ArmSpec("resnet10t"), 32, seed=1)[0], path, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_export_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no .*cnn\.safetensors: the run has not finished"):
        encoders.load_export(tmp_path / "cnn.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "cnn.safetensors")
    with pytest.raises(DataError, match="not exported by a run of cass-scale"):
        encoders.load_export(tmp_path / "cnn.safetensors")
