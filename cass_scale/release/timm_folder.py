"""A folder as timm's hub has it: `timm.create_model("local-dir:FOLDER", pretrained=True)` gives the encoder."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save

from cass_scale.encoders import Encoder, timm_args
from cass_scale.errors import CassScaleError
from cass_scale.records import atomic_write_bytes, write_json
from cass_scale.release.check import probe, same_features
from cass_scale.types import JSON

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write(encoder: Encoder, folder: Path) -> JSON:
    """Write both files into `folder`, load them by timm, and compare; returns what was counted.

    Raises CassScaleError when a tensor or a feature is another one.
    """
    state = {key: x.detach().cpu().contiguous() for key, x in encoder.body.state_dict().items()}
    # No metadata of ours: the specification may name a file of this machine.
    atomic_write_bytes(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
    write_json(folder / CONFIG, config(encoder))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    loaded = model.state_dict()
    good = [key for key in state if key in loaded and torch.equal(state[key], loaded[key])]
    if len(good) != len(state) or len(loaded) != len(state):
        raise CassScaleError(
            f"timm loads {len(good)} of {len(state)} tensors of {encoder.spec.model} as they are, and has "
            f"{len(loaded)}: nothing was written"
        )
    images = probe(encoder, 2)
    with torch.inference_mode():
        features = model((images - encoder.mean) / encoder.std)
    off = same_features(f"timm {timm.__version__}", encoder, images, features)
    return {"tensors": len(state), "difference": off}


def config(encoder: Encoder) -> JSON:
    """What timm writes into config.json (timm/models/_hub.py: save_config_for_hf), for these weights.

    Nothing is taken over from the configuration of the initial weights but what describes the architecture.
    """
    spec, body = encoder.spec, encoder.body
    known: JSON = dict(getattr(body, "pretrained_cfg", None) or {})
    return {
        "architecture": spec.model,
        "num_classes": 0,
        "num_features": int(body.num_features),  # type: ignore[arg-type]
        "model_args": timm_args(spec, encoder.image_size),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, encoder.image_size, encoder.image_size],
            "fixed_input_size": bool(known.get("fixed_input_size", False)),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": encoder.spec.mean,
            "std": encoder.spec.std,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }
