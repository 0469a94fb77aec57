"""The published objective of CASS, its ablations, and its noise rule."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cass_scale import rng
from cass_scale.errors import ConfigError
from cass_scale.losses.fp32 import fp32

Activation = Literal["none", "softmax", "sigmoid"]


@fp32
def cosine(x: Tensor, y: Tensor, *, activation: Activation = "none") -> Tensor:
    """Cosine distance between the arms: mean over i of 2 - 2 <a(x_i), a(y_i)> / (|a(x_i)| |a(y_i)|).

    x, y: outputs of the two arms [B, K], logits; i: image; a: `activation`. Gradients flow through both arms.
    A constant output of both arms is a global optimum (0): this objective collapses, see the monitor.

    CASS, arXiv 2301.12025, equation 1, read as the BYOL loss it says it is (as printed, the equation
    multiplies two sums); softmax and sigmoid: table 11.

    Raises:
        ConfigError: unknown activation.
    """
    if activation == "softmax":
        x, y = x.softmax(dim=1), y.softmax(dim=1)
    elif activation == "sigmoid":
        x, y = x.sigmoid(), y.sigmoid()
    elif activation != "none":
        raise ConfigError(f"activation={activation} of the objective cosine: none, softmax and sigmoid work")
    return (2.0 - 2.0 * (F.normalize(x, dim=1) * F.normalize(y, dim=1)).sum(dim=1)).mean()


@fp32
def noise_rule(x: Tensor, y: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """If x equals y bit for bit, add N(1e-6, 1e-9) to x and N(1e-10, 1e-15) to y; else return both unchanged.

    x, y: [B, K]; the second number is read as a standard deviation (the paper does not say). The noise is a
    function of (seed, step), and the test stays on the device.

    Inert, by arithmetic: the rule tilts x by an angle of at most 1e-6 sqrt(K) / |x|, and 2 - 2 cos is the
    square of that angle: 1e-12 for outputs of order one, while float32 resolves 2 - 2 cos to 2.4e-7. So the
    loss it should make "non-zero" stays what it was. And collapsed arms agree in direction, not bit for bit.

    CASS, arXiv 2301.12025, algorithm 1; absent from the authors' code.
    """
    ids = torch.arange(len(x), device=x.device)
    noise = [rng.normal(seed, step, ids, rng.NOISE + arm, x.shape[1]) for arm in (1, 2)]
    same = (x == y).all()
    return (
        torch.where(same, x + (1e-6 + 1e-9 * noise[0]), x),
        torch.where(same, y + (1e-10 + 1e-15 * noise[1]), y),
    )
