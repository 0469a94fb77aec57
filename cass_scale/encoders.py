"""Encoders are timm bodies with a `.dim`; their weights come by explicit tag, from a local file, or at random."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from cass_scale.errors import ConfigError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ArmSpec:
    """One arm: a timm model, where its weights come from, and what its classifier or fresh head puts out."""

    model: str  # timm architecture without tag: resnet50
    weights: str = "random"  # random | a timm tag such as a1_in1k | a .safetensors file
    outputs: int = 1000  # width of the outputs that the objective compares (ImageNet's classes in the paper)
    optimizer: str | None = None  # adam | sgd; null takes optim.name (Table 10 mixes them)
    mean: tuple[float, float, float] | None = None  # null: what the weights were trained with
    std: tuple[float, float, float] | None = None
    args: Mapping[str, Any] = field(default_factory=dict)  # passed to timm.create_model


class Encoder(nn.Module):
    """A timm body: images [B, 3, S, S], normalised here as its weights expect -> features [B, dim]."""

    def __init__(self, spec: ArmSpec, image_size: int) -> None:
        super().__init__()
        self.spec, self.image_size = spec, image_size
        self.body = _create(spec, image_size, num_classes=0)
        self.dim: int = int(self.body.num_features if not hasattr(self.body, "head_hidden_size") else self.body.head_hidden_size)
        mean, std = _normalisation(spec)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [B, 3, S, S] in [0, 1] -> features [B, dim]."""
        normal = (images - self.mean) / self.std
        features: Tensor = self.body.forward_head(self.body.forward_features(normal), pre_logits=True)
        return features


def _normalisation(spec: ArmSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    name = spec.model if _is_file(spec.weights) or spec.weights == "random" else f"{spec.model}.{spec.weights}"
    config = get_pretrained_cfg(name) if spec.weights != "random" else None
    mean = spec.mean or (config.mean if config else IMAGENET_MEAN)
    std = spec.std or (config.std if config else IMAGENET_STD)
    return tuple(mean), tuple(std)


def _is_file(weights: str) -> bool:
    return weights.endswith(".safetensors") or "/" in weights


def _create(spec: ArmSpec, image_size: int, num_classes: int) -> nn.Module:
    args = dict(spec.args)
    config = get_pretrained_cfg(spec.model)
    if config is not None and config.fixed_input_size:
        args.setdefault("img_size", image_size)
    try:
        model: nn.Module = timm.create_model(spec.model, pretrained=False, num_classes=num_classes, **args)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"arms: timm cannot build {spec.model} with {args}: {error}") from error
    return model


def check(name: str, spec: ArmSpec, image_size: int, weights_dir: Path) -> list[str]:
    """What is wrong with an arm, found without building it: unknown model or tag, missing file, image size."""
    bare = spec.model.split(".")[0]
    if not timm.is_model(bare):
        near = difflib.get_close_matches(bare, timm.list_models(), n=3)
        return [f"arms.{name}.model={spec.model}: timm has no such model" + (f"; did you mean {', '.join(near)}?" if near else "")]
    if bare != spec.model:
        return [f"arms.{name}.model={spec.model}: put the tag into weights: arms.{name}.model={bare} arms.{name}.weights={spec.model.partition('.')[2]}"]
    problems = []
    patch = _patch_size(spec.model)
    if image_size % patch:
        good = max(patch, image_size // patch * patch)
        problems.append(f"arms.image_size={image_size}: {spec.model} has patches of {patch} px; use {good} or {good + patch}")
    if spec.weights == "random":
        return problems
    if _is_file(spec.weights):
        if not find_file(spec.weights, weights_dir):
            problems.append(
                f"arms.{name}.weights={spec.weights}: no such file, here or in the weights folder {weights_dir}; "
                "put it there, or set CASS_SCALE_WEIGHTS to the folder that holds it"
            )
        return problems
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{spec.model}.*")]
    if spec.weights not in tags:
        problems.append(f"arms.{name}.weights={spec.weights}: {spec.model} has no such tag; it has: {', '.join(tags) or 'none'}; or random, or a .safetensors file")
    return problems


def _patch_size(model: str) -> int:
    parts = [p for p in model.split("_") if p.startswith("patch") and p[5:].isdigit()]
    config = get_pretrained_cfg(model)
    return int(parts[0][5:]) if parts and config is not None and config.fixed_input_size else 1


def weights_dir() -> Path:
    """Where weights by file name or tag are looked for: CASS_SCALE_WEIGHTS, else the cache folder."""
    cache = os.environ.get("CASS_SCALE_CACHE", "~/.cache/cass_scale")
    return Path(os.environ.get("CASS_SCALE_WEIGHTS", f"{cache}/weights")).expanduser()


def find_file(weights: str, folder: Path) -> Path | None:
    """The weights file, as given or inside the weights folder; None when neither exists."""
    return next((p for p in (Path(weights).expanduser(), folder / weights) if p.is_file()), None)


def build(spec: ArmSpec, image_size: int, seed: int, *, load: bool = True) -> tuple[Encoder, nn.Linear]:
    """An encoder and the linear head of `spec.outputs` logits: the weights' own classifier where they have one.

    Random parts depend on `seed` alone. `load=False` skips reading weights (for estimates on the meta device).
    Raises ConfigError when weights are missing, unreachable, or of another architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(spec, image_size)
        head = nn.Linear(encoder.dim, spec.outputs)
    if load and spec.weights != "random":
        state = _read_weights(spec)
        _load_head(head, state, spec)
        load_body(encoder.body, state, f"{spec.model} weights={spec.weights}")
    return encoder, head


def _read_weights(spec: ArmSpec) -> dict[str, Tensor]:
    folder = weights_dir()
    by_file = spec.weights if _is_file(spec.weights) else f"{spec.model}.{spec.weights}.safetensors"
    path = find_file(by_file, folder)
    if path is not None:
        return {key: value.float() for key, value in load_file(path).items()}
    config = get_pretrained_cfg(f"{spec.model}.{spec.weights}")
    try:
        return dict(timm.create_model(f"{spec.model}.{spec.weights}", pretrained=True).state_dict())
    except Exception as error:  # a hub raises anything from OSError to its own types; all mean "not reachable"
        where = config.hf_hub_id if config else spec.model
        raise ConfigError(
            f"weights {spec.model}.{spec.weights} are not in {folder} and the model hub cannot be reached ({type(error).__name__}). "
            f"On a machine with network, download model.safetensors of the hub repository {where} and put it at {folder / by_file}"
        ) from error


def _load_head(head: nn.Linear, state: dict[str, Tensor], spec: ArmSpec) -> None:
    config = get_pretrained_cfg(spec.model)
    name = config.classifier if config else None
    if not isinstance(name, str) or f"{name}.weight" not in state:
        return
    weight, bias = state.pop(f"{name}.weight"), state.pop(f"{name}.bias")
    weight = weight.flatten(1)  # some timm classifiers are 1x1 convolutions
    if weight.shape == head.weight.shape:
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)


def load_body(body: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load every tensor or refuse: position embeddings are resized as timm does, nothing else is forgiven."""
    adapt = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    try:
        fitted = adapt(state, body) if adapt else state
    except (KeyError, RuntimeError, AttributeError, IndexError):
        fitted = state  # the comparison below says what does not fit
    own = body.state_dict()
    good = {k for k, v in fitted.items() if k in own and v.shape == own[k].shape}
    wrong = sorted((own.keys() ^ fitted.keys()) | (own.keys() & fitted.keys()) - good)
    wrong = [k for k in wrong if not k.endswith("num_batches_tracked")]
    if wrong:
        raise ConfigError(
            f"{what}: weights of another architecture: {len(good)} of {len(own)} tensors fit; "
            f"first that do not: {', '.join(wrong[:4])}. Check that model and weights belong together"
        )
    body.load_state_dict(fitted, strict=False)


def export(encoder: Encoder, path: Path, extra: Mapping[str, str]) -> None:
    """Write one encoder as safetensors with timm's own keys; metadata say how to build and feed it."""
    spec = asdict(encoder.spec) | {"args": dict(encoder.spec.args)}
    meta = {"spec": json.dumps(spec), "image_size": str(encoder.image_size), "timm": encoder.spec.model, **extra}
    mean, std = _normalisation(encoder.spec)
    meta |= {"mean": json.dumps(mean), "std": json.dumps(std)}
    partial = path.with_suffix(".partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in encoder.body.state_dict().items()}, partial, metadata=meta)
    os.replace(partial, path)


def load_export(path: Path) -> Encoder:
    """Read back what `export` wrote; every tensor is counted."""
    with safe_open(path, framework="pt") as file:
        meta = file.metadata()
    spec = json.loads(meta["spec"]) | {"mean": tuple(json.loads(meta["mean"])), "std": tuple(json.loads(meta["std"]))}
    encoder = Encoder(ArmSpec(**spec), int(meta["image_size"]))
    load_body(encoder.body, load_file(path), str(path))
    return encoder
