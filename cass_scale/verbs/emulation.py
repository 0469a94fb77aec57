"""A run under the limits of the paper's card: what of it is not the paper's, and what the card itself would take."""

from __future__ import annotations

import torch

from cass_scale.forecast import on_card
from cass_scale.hardware import Limits
from cass_scale.measure import peaks
from cass_scale.types import JSON
from cass_scale.verbs.wire import Place

MODELS = ("resnet50", "vit_base_patch16_384")
IMAGE_SIZE, BATCH_SIZE, METHODS = 384, 16, ("cass", "cass_paper", "cass_official")


def words(node: JSON) -> list[str]:
    """The node `hardware` as overrides, for a process of its own."""
    return [
        f"hardware={node['name']}",
        *(f"hardware.{key}={node[key]}" for key in ("mode", "memory_gb", "cores") if key in node),
    ]


def differs(config: JSON) -> list[str]:
    """Where a configuration of pretrain leaves what the hours of Table 2 for CASS are of."""
    arms = config["arms"]
    models = tuple(str(arm["model"]) for arm in arms.values() if isinstance(arm, dict))
    pairs = (
        ("arms", models, MODELS),
        ("arms.image_size", arms["image_size"], IMAGE_SIZE),
        ("train.batch_size", config["train"]["batch_size"], BATCH_SIZE),
    )
    found = [f"{key}: {_text(own)}, the paper {_text(theirs)}" for key, own, theirs in pairs if own != theirs]
    name = config["method"]["name"]
    return found if name in METHODS else [*found, f"method: {name}, the paper's CASS"]


def _text(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def predicted(limits: Limits, precision: str, flops_per_image: float, images_per_s: float, peak: float) -> JSON | None:
    """What the card itself would do, from a rate and the FLOP/s of a matrix product that were measured here.

    None in a precision that the card has not.
    """
    card = peaks.peak(limits.card, precision)
    return {"precision": precision, **on_card(flops_per_image, images_per_s, peak, card)} if card else None


def prediction(place: Place, record: JSON) -> JSON | None:
    """For run.json of a finished run; None where its FLOPs were not counted."""
    flops, seconds = record["flops_per_image"], 3600 * record["device_hours"]["train"]
    if place.limits is None or not flops or not seconds:
        return None
    peak = peaks.matrix_product(place.device, place.precision.autocast_dtype or torch.float32)
    return predicted(place.limits, place.precision.name, flops, record["images_seen"] / seconds, peak)
