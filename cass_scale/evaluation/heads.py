"""What an evaluation leaves so that new images can be answered: linear heads, each for one encoder, as safetensors."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy.special import expit, softmax

from cass_scale import checkpoint, encoders
from cass_scale.encoders import Encoder
from cass_scale.errors import DataError
from cass_scale.evaluation.metrics import Array, Floats, finite
from cass_scale.records import atomic_write_bytes

HEAD, BODY = ".head.safetensors", ".safetensors"
Link = Literal["softmax", "sigmoid", "shares"]  # shares: sigmoids, scaled to sum to one
LINKS = get_args(Link)


@dataclass(frozen=True)
class Head:
    """Features [N, D] -> probabilities [N, C]: link((features - mean) @ weight.T + bias), in float64."""

    mean: Floats  # [D]; taken off first: what is left of nearly constant features would drown in a bias
    weight: Floats  # [C, D]
    bias: Floats  # [C]; -inf or inf where the answer is always no or yes
    link: Link

    def __call__(self, features: Array) -> Floats:
        """Probabilities [N, C]. Raises ValueError when features are not finite."""
        finite("features", features)
        logits = (features - self.mean) @ self.weight.T + self.bias
        if self.link == "softmax":
            return np.asarray(softmax(logits, axis=1))
        each: Floats = expit(logits)
        return each / each.sum(axis=1, keepdims=True) if self.link == "shares" else each


@dataclass(frozen=True)
class Kept:
    """A head, the classes in the order of its answers, and the digest of the encoder that it belongs to."""

    head: Head
    classes: tuple[str, ...]
    multilabel: bool
    encoder: str


def keep(folder: Path, arm: str, encoder: Encoder, head: Head, classes: tuple[str, ...], multilabel: bool) -> None:
    """Write the head of the arm `encoder` into `folder`."""
    about = {
        "link": head.link,
        "classes": json.dumps(classes),
        "multilabel": json.dumps(multilabel),
        "encoder": encoders.digest(encoder),
    }
    arrays = {name: np.ascontiguousarray(getattr(head, name)) for name in ("mean", "weight", "bias")}
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / f"{arm}{HEAD}", save(arrays, metadata=about))


def keep_tuned(
    folder: Path, arm: str, encoder: Encoder, best: Path, link: Link, classes: tuple[str, ...], multilabel: bool
) -> None:
    """Write the encoder and the head of the checkpoint `best` of a fine-tuning; `encoder` says how it is built."""
    state, body = checkpoint.load(best)["model"], f"arms.{arm}.encoder."
    own = copy.deepcopy(encoder)
    own.load_state_dict({k.removeprefix(body): x for k, x in state.items() if k.startswith(body)})
    weight, bias = (state[f"arms.{arm}.head.{name}"].double().numpy() for name in ("weight", "bias"))
    encoders.export(own, folder / f"{arm}{BODY}", {})
    keep(folder, arm, own, Head(np.zeros(weight.shape[1]), weight, bias, link), classes, multilabel)


def kept(run: Path) -> dict[str, list[str]]:
    """Evaluations of a run that left heads, with the arms of each."""
    found: dict[str, list[str]] = {}
    for path in sorted((run / "evaluate").glob(f"*/*{HEAD}")):
        found.setdefault(path.parent.name, []).append(path.name.removesuffix(HEAD))
    return found


def load(run: Path, evaluation: str, arm: str) -> tuple[Encoder, Kept]:
    """The encoder and the head that `keep` wrote. Raises DataError when they are broken or of different weights."""
    folder = run / "evaluate" / evaluation
    own = folder / f"{arm}{BODY}"
    encoder = encoders.load_export(own if own.is_file() else run / "export" / f"{arm}{BODY}")
    found = _read(folder / f"{arm}{HEAD}")
    if found.encoder != encoders.digest(encoder):
        raise DataError(
            f"{folder / f'{arm}{HEAD}'} was trained on other weights than the run has now: evaluate the run again"
        )
    return encoder, found


def _read(path: Path) -> Kept:
    try:
        with safe_open(path, framework="numpy") as file:
            mean, weight, bias = (file.get_tensor(name) for name in ("mean", "weight", "bias"))
            about = file.metadata()
        classes = tuple(json.loads(about["classes"]))
        shapes = [x.shape for x in (mean, weight, bias)]
        if shapes != [(weight.shape[1],), (len(classes), len(mean)), (len(classes),)] or about["link"] not in LINKS:
            raise ValueError("its parts do not fit")
        return Kept(Head(mean, weight, bias, about["link"]), classes, json.loads(about["multilabel"]), about["encoder"])
    except (OSError, SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no whole head ({error}): evaluate the run again") from error
