"""Whether what was written gives the features of the encoder that it was written from."""

from __future__ import annotations

import torch
from torch import Tensor

from cass_scale.encoders import Encoder
from cass_scale.errors import CassScaleError

TOLERANCE = 1e-4  # of the largest feature: other kernels add float32 numbers in another order


def probe(encoder: Encoder, batch: int) -> Tensor:
    """Images of noise, float [batch, 3, S, S] in [0, 1], the same ones at every call."""
    shape = (batch, 3, encoder.image_size, encoder.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(batch))


def same_features(what: str, encoder: Encoder, images: Tensor, found: Tensor) -> float:
    """The largest difference to the encoder's own features of `images`, as a share of the largest of these.

    Raises CassScaleError, naming `what` gave them, above TOLERANCE or with another shape.
    """
    with torch.inference_mode():
        wanted: Tensor = encoder.eval()(images)
    if wanted.shape != found.shape:
        raise CassScaleError(
            f"{what} gives features {list(found.shape)}, not {list(wanted.shape)}: nothing was written"
        )
    off = float((wanted - found).abs().max() / wanted.abs().max().clamp_min(1e-30))
    if not off <= TOLERANCE:
        raise CassScaleError(
            f"{what} gives other features: they differ by {off:.2g} of the largest one, {TOLERANCE:g} is allowed; "
            "nothing was written"
        )
    return off
