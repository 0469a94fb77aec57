"""What convolutional networks see: the maps of their first convolutions, and Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cass_scale.encoders import Encoder
from cass_scale.insight.listen import listening
from cass_scale.insight.unsuited import Unsuited


def first_convolutions(encoder: Encoder, images: Tensor, number: int = 5) -> dict[str, Tensor]:
    """Name -> map [B, h, w] of the first `number` convolutions that images float [B, 3, S, S] in [0, 1] go through.

    A map is the mean size (absolute value) over channels. CASS, appendix C.3, figures 5 and 6. Raises Unsuited where
    there are fewer.
    """
    parts = {name: part for name, part in encoder.body.eval().named_modules() if isinstance(part, nn.Conv2d)}
    with torch.inference_mode(), listening(parts, lambda output: output.abs().mean(dim=1).float()) as found:
        encoder(images)
    if len(found) < number:
        raise Unsuited(f"{encoder.spec.model} is no CNN of {number} convolutions or more: it has {len(found)}")
    return dict(list(found.items())[:number])


def grad_cam(encoder: Encoder, images: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Where `score` (features [B, dim] -> [B]) comes from in images float [B, 3, S, S]: [B, h, w], 0 to 1 in each.

    On the last maps before pooling; in eval mode. Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2. Raises
    Unsuited where there are no such maps.
    """
    body: Any = encoder.body.eval()
    with torch.no_grad():
        maps = body.forward_features(encoder.normalise(images))
    if maps.ndim != 4 or maps.shape[1] != body.num_features:
        raise Unsuited(f"{encoder.spec.model} ends in tokens, not in maps [channels, height, width] as a CNN does")
    with torch.enable_grad():
        maps = maps.float().requires_grad_()
        slope = torch.autograd.grad(score(body.forward_head(maps, pre_logits=True)).sum(), maps)[0]
    with torch.no_grad():
        heat = F.relu((slope.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1))
    top: Tensor = heat.amax(dim=(1, 2), keepdim=True)
    return heat / top.clamp(min=torch.finfo(heat.dtype).tiny)


def towards(features: Tensor, members: Sequence[int]) -> Tensor:
    """The direction [dim] from the mean of all features [N, dim] to the mean of the rows `members`.

    After pretraining there is no classifier. A projection on this direction is what a nearest-class-mean classifier
    judges by: nothing is fitted, so a map shows the encoder and not a probe. (The gradient of a cosine stands at right
    angles to the feature itself: it shows what an image lacks.)
    """
    return F.normalize(features[list(members)].mean(dim=0) - features.mean(dim=0), dim=0)
