"""Encoders are timm bodies with a `.dim`; weights come by explicit tag, from a local file, or at random."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from cass_scale.errors import ConfigError, DataError, StorageError
from cass_scale.machine import cache_folder
from cass_scale.records import atomic_write_bytes

RGB = tuple[float, ...]
T = TypeVar("T")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ArmSpec:
    """One arm: a timm model, where its weights come from, and what its classifier or fresh head puts out."""

    model: str  # timm architecture without tag: resnet50
    weights: str = "random"  # random | a timm tag such as a1_in1k | a .safetensors file
    outputs: int = 1000  # width of the outputs that the objective compares (ImageNet's classes in the paper)
    optimizer: str | None = None  # adam | sgd; null takes optim.name (Table 10 mixes them)
    mean: RGB | None = None  # null: what the weights were trained with
    std: RGB | None = None
    args: Mapping[str, Any] = field(default_factory=dict)  # passed to timm.create_model


class Encoder(nn.Module):
    """A timm body: images [B, 3, S, S], normalised here as its weights expect -> features [B, dim]."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ArmSpec, image_size: int) -> None:
        super().__init__()
        mean, std = _normalisation(spec)
        self.spec, self.image_size = replace(spec, mean=mean, std=std), image_size
        body = _create(spec, image_size)
        self.body: nn.Module = body
        self.dim = int(getattr(body, "head_hidden_size", None) or body.num_features)
        self.memory_format: torch.memory_format = torch.contiguous_format
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [B, 3, S, S] in [0, 1] -> features [B, dim]."""
        features: Tensor = self.body(self.normalise(images))
        return features

    def normalise(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [0, 1] as the body takes them."""
        return ((images - self.mean) / self.std).contiguous(memory_format=self.memory_format)

    def steady(self) -> Encoder:
        """Its equal without dropout, stochastic depth or gradients: a teacher."""
        args = {key: value for key, value in self.spec.args.items() if "drop" not in key}
        twin = Encoder(replace(self.spec, args=args), self.image_size)
        twin.load_state_dict(self.state_dict())
        return twin.requires_grad_(False)

    def use_channels_last(self) -> None:
        """Lay a convolutional body out in channels_last order, which GPUs prefer; a Transformer stays as it is."""
        if not is_transformer(self.spec.model):
            self.memory_format = torch.channels_last
            self.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def use_recompute(self) -> None:
        """Keep little for the backward pass and compute the rest again, where that changes no result.

        A body with BatchNorm stays as it is: a second forward pass would move its running statistics twice.
        Raises ConfigError for a model that timm cannot do it with.
        """
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.body.modules()):
            return
        try:
            self.body.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AssertionError, AttributeError) as error:
            raise ConfigError(
                f"train.recompute=true: timm's {self.spec.model} cannot do it; set it to false"
            ) from error

    def use_compile(self, mode: str) -> None:
        """Compile the body in place, its parameters' names unchanged; `reduce-overhead` uses CUDA graphs."""
        self.body.compile(mode=mode)


def is_transformer(model: str) -> bool:
    """Whether a timm model is built for one size of images."""
    config = get_pretrained_cfg(model)
    return config is not None and bool(config.fixed_input_size)


def _normalisation(spec: ArmSpec) -> tuple[RGB, RGB]:
    """Mean and std as the arm says, else as its file says, else as timm says of the weights' tag."""
    if spec.mean and spec.std:
        return spec.mean, spec.std
    mean, std = _trained_with(spec)
    return spec.mean or mean, spec.std or std


def _trained_with(spec: ArmSpec) -> tuple[RGB, RGB]:
    if spec.weights == "random":
        return IMAGENET_MEAN, IMAGENET_STD
    tag = spec.weights
    if _is_file(spec.weights):
        path = find_file(spec.weights, weights_dir())
        meta = _metadata(path) if path else {}
        if {"mean", "std"} <= meta.keys():  # one of our exports
            return tuple(json.loads(meta["mean"])), tuple(json.loads(meta["std"]))
        tag = _tag_in_name(spec)
    config = get_pretrained_cfg(f"{spec.model}.{tag}" if tag else spec.model)
    return (config.mean, config.std) if config else (IMAGENET_MEAN, IMAGENET_STD)


def _tag_in_name(spec: ArmSpec) -> str:
    """The timm tag that a file named `model.tag*.safetensors` begins with; '' when there is none."""
    rest = Path(spec.weights).name.removeprefix(f"{spec.model}.")
    return next((t for t in _tags(spec.model) if re.match(rf"{re.escape(t)}(?![a-zA-Z0-9])", rest)), "")


def _tags(model: str) -> list[str]:
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{model}.*")]


def _is_file(weights: str) -> bool:
    return weights.endswith(".safetensors") or "/" in weights


def timm_args(spec: ArmSpec, image_size: int) -> dict[str, Any]:
    """What `timm.create_model` takes beside the model's name."""
    return ({"img_size": image_size} if is_transformer(spec.model) else {}) | dict(spec.args)


def _create(spec: ArmSpec, image_size: int) -> Any:
    args = timm_args(spec, image_size)
    try:
        return timm.create_model(spec.model, pretrained=False, num_classes=0, **args)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"arms: timm cannot build {spec.model} with {args}: {error}") from error


def check(name: str, spec: ArmSpec, image_size: int, folder: Path) -> list[str]:
    """What is wrong with an arm, found without building it: unknown model or tag, absent file, image size."""
    arm = f"arms.{name}"
    bare, _, tag = spec.model.partition(".")
    if not timm.is_model(bare):
        near = difflib.get_close_matches(bare, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        return [f"{arm}.model={spec.model}: timm has no such model{hint}"]
    if tag:
        return [f"{arm}.model={spec.model}: put the tag into weights: {arm}.model={bare} {arm}.weights={tag}"]
    problems = check_size(spec, "arms.image_size", image_size)
    if _is_file(spec.weights):
        if not find_file(spec.weights, folder):
            problems.append(f"{arm}.weights={_absent(spec.weights, folder)}")
    elif spec.weights not in ("random", *_tags(spec.model)):
        tags = ", ".join(_tags(spec.model)) or "none"
        problems.append(
            f"{arm}.weights={spec.weights}: {spec.model} has no such tag; it has: {tags}; "
            "or random, or a .safetensors file"
        )
    return problems


def check_size(spec: ArmSpec, key: str, size: int, image_size: int | None = None) -> list[str]:
    """What is wrong with images of `size` px, set by `key`, for a body built for `image_size` px (default: `size`)."""
    patch = _patch_size(spec.model)
    if size % patch:
        low = max(patch, size // patch * patch)
        return [f"{key}={size}: {spec.model} has patches of {patch} px; use {low} or {low + patch}"]
    if size != (image_size or size) and is_transformer(spec.model) and not spec.args.get("dynamic_img_size"):
        return [f"{key}={size}: {spec.model} is built for {image_size} px; use that, or args.dynamic_img_size=true"]
    return []


def _absent(weights: str, folder: Path) -> str:
    return (
        f"{weights}: no such file, here or in the weights folder {folder}; "
        "put it there, or set CASS_SCALE_WEIGHTS to the folder that holds it"
    )


def _patch_size(model: str) -> int:
    parts = [p for p in model.split("_") if p.startswith("patch") and p[5:].isdigit()]
    return int(parts[0][5:]) if parts and is_transformer(model) else 1


def weights_dir() -> Path:
    """Where weights by file name or tag are looked for: CASS_SCALE_WEIGHTS, else the cache folder."""
    return Path(os.environ.get("CASS_SCALE_WEIGHTS") or cache_folder() / "weights").expanduser()


def find_file(weights: str, folder: Path) -> Path | None:
    """The weights file, as given or inside the weights folder; None when neither exists."""
    return next((p for p in (Path(weights).expanduser(), folder / weights) if p.is_file()), None)


def build(spec: ArmSpec, image_size: int, seed: int, *, load: bool = True) -> tuple[Encoder, nn.Linear]:
    """An encoder and its linear head of `spec.outputs` logits: the weights' classifier if it fits.

    Random parts depend on `seed` alone. `load=False` reads no weights (for estimates on the meta device).
    Raises ConfigError when weights are missing, unreachable, damaged, or of another architecture.
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
    folder, tagged = weights_dir(), f"{spec.model}.{spec.weights}"
    by_file = spec.weights if _is_file(spec.weights) else f"{tagged}.safetensors"
    path = find_file(by_file, folder)
    if path is not None:
        return {key: x.float() if x.is_floating_point() else x for key, x in _tensors(path).items()}
    if _is_file(spec.weights):
        raise ConfigError(f"weights {_absent(spec.weights, folder)}")
    try:
        return dict(timm.create_model(tagged, pretrained=True).state_dict())
    except Exception as error:  # a hub raises anything, its own types included; all mean "not reachable"
        config = get_pretrained_cfg(tagged)
        where = config.hf_hub_id if config else spec.model
        raise ConfigError(
            f"weights {tagged} are not in {folder} and the model hub cannot be reached "
            f"({type(error).__name__}). On a machine with network, download model.safetensors of the hub "
            f"repository {where} and put it at {folder / by_file}"
        ) from error


def _read(path: Path, get: Callable[[Any], T]) -> T:
    try:
        with safe_open(path, framework="pt") as file:
            return get(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"weights {path}: not a whole safetensors file ({error}); download it again, or convert it"
        ) from error


def _tensors(path: Path) -> dict[str, Tensor]:
    return _read(path, lambda file: {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118


def _metadata(path: Path) -> dict[str, str]:
    return _read(path, lambda file: dict(file.metadata() or {}))


def _load_head(head: nn.Linear, state: dict[str, Tensor], spec: ArmSpec) -> None:
    """Take the classifier out of `state`, and into `head` where the widths agree."""
    config = get_pretrained_cfg(spec.model)
    named = config.classifier if config else None
    names = [named] if isinstance(named, str) else list(named or ())  # distilled models name two
    found = [(state.pop(f"{n}.weight"), state.pop(f"{n}.bias")) for n in names if f"{n}.weight" in state]
    if not found:
        return
    weight, bias = found[0][0].flatten(1), found[0][1]  # some timm classifiers are 1x1 convolutions
    if weight.shape == head.weight.shape:
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)


def load_body(body: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load every tensor or refuse: position embeddings are resized as timm does, nothing else is forgiven."""
    adapt = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    try:
        fitted = adapt(state, body) if adapt else state
    except Exception:  # timm's filters meet a stranger's keys in many ways; below is said what does not fit
        fitted = state
    own = body.state_dict()
    # timm would also resize the kernels of another patch size: that is another architecture.
    resized = {k for k in state.keys() & fitted.keys() if state[k].numel() != fitted[k].numel() and "pos" not in k}
    good = {k for k, v in fitted.items() if k in own and v.shape == own[k].shape} - resized
    wrong = sorted(k for k in (own.keys() | fitted.keys()) - good if not k.endswith("num_batches_tracked"))
    if wrong:
        raise ConfigError(
            f"{what}: weights of another architecture: {len(good)} of {len(own)} tensors fit; "
            f"first that do not: {', '.join(wrong[:4])}. Check that model and weights belong together"
        )
    body.load_state_dict(fitted, strict=False)


def export(encoder: Encoder, path: Path, extra: Mapping[str, str], body: Mapping[str, Tensor] | None = None) -> None:
    """Write one encoder as safetensors with timm's own keys; metadata say how to build and feed it.

    body: its tensors, where the encoder itself holds shards of them. Atomic.
    Raises StorageError when the disk is full or not writable.
    """
    spec = encoder.spec
    meta = {
        "spec": json.dumps(asdict(spec) | {"args": dict(spec.args)}),
        "timm": spec.model,
        "image_size": str(encoder.image_size),
        "mean": json.dumps(spec.mean),
        "std": json.dumps(spec.std),
        **extra,
    }
    tensors = body or encoder.body.state_dict()
    state = {key: x.detach().cpu().contiguous() for key, x in tensors.items()}
    try:
        atomic_write_bytes(path, save(state, metadata=meta))
    except OSError as error:
        raise StorageError(
            f"export {path} could not be written ({error}): "
            "free some space or mend the folder, then run the same command again"
        ) from error


def digest(encoder: Encoder) -> str:
    """16 hex digits of everything that decides an encoder's features: its specification and every tensor."""
    found = hashlib.sha256(repr((encoder.spec, encoder.image_size)).encode())
    for key, x in sorted(encoder.body.state_dict().items()):
        found.update(key.encode() + x.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def load_export(path: Path) -> Encoder:
    """Read back what `export` wrote, every tensor counted. Raises DataError when there is no such export."""
    if not path.is_file():
        raise DataError(f"no {path}: the run has not finished; repeat its command to continue it")
    meta = _metadata(path)
    if not {"spec", "image_size"} <= meta.keys():
        raise DataError(f"{path} holds weights, but was not exported by a run of cass-scale; name its own arms")
    spec = json.loads(meta["spec"])
    spec |= {"mean": tuple(spec["mean"]), "std": tuple(spec["std"])}
    encoder = Encoder(ArmSpec(**spec), int(meta["image_size"]))
    load_body(encoder.body, _tensors(path), str(path))
    return encoder
