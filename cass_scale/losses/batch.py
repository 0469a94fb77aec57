"""The global batch, as the objectives that compare images with each other need it."""

from __future__ import annotations

from torch import Tensor

from cass_scale import dist
from cass_scale.errors import ConfigError


def whole_batch(x: Tensor, objective: str) -> Tensor:
    """Rows of all ranks [B, K] -> [world * B, K], with gradients.

    Raises:
        ConfigError: fewer than two images in all, so that there is nothing to compare an image with.
    """
    rows = dist.gather_with_grad(x)
    if len(rows) < 2:
        raise ConfigError(
            f"the objective {objective} compares images with each other and got {len(rows)} per step:"
            " train.batch_size of 2 or more works (16 or more is sensible), or the objective cosine"
        )
    return rows
