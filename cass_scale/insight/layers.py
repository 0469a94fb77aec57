"""How alike two networks see the same images, layer by layer: linear CKA from minibatches, without bias."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cass_scale.encoders import Encoder
from cass_scale.insight.listen import listening

LEAST = 4  # images of a batch: the estimator divides by n - 3
FEATURES = "features"  # what the encoder gives out, after its last layer


def layers(encoder: Encoder) -> list[str]:
    """Names of the layers that are compared: the blocks of the stages that timm names, then the features."""
    body: Any = encoder.body
    names: list[str] = []
    for stage in getattr(body, "feature_info", None) or ():
        part = body.get_submodule(stage["module"])
        blocks = [f"{stage['module']}.{name}" for name, _ in part.named_children()]
        names += blocks if isinstance(part, nn.Sequential) and len(blocks) > 1 else [stage["module"]]
    return [*names, FEATURES]


def grams(encoder: Encoder, batches: Iterable[Tensor]) -> list[Tensor]:
    """The layers' Gram matrices, float64 [L, n, n], for every batch of images float [n, 3, S, S] in [0, 1]; eval mode.

    Batches of 4 images or more. Outputs are flattened; their mean is taken off, which changes no CKA and keeps digits.
    """
    body, names = encoder.body.eval(), layers(encoder)
    made = []
    with torch.inference_mode(), listening({name: body.get_submodule(name) for name in names[:-1]}, _gram) as found:
        for images in batches:
            found[FEATURES] = _gram(encoder(images))
            made.append(torch.stack([found[name] for name in names]))
    return made


def _gram(output: Tensor) -> Tensor:
    rows = output.flatten(1).float()
    rows = rows - rows.mean(dim=0)
    return (rows @ rows.T).double().cpu()


def cka(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Linear CKA [Lx, Ly] of layers from the Gram matrices [Lx, n, n] and [Ly, n, n] of the same batches.

    Numerator and denominators are unbiased HSIC averaged over the batches: Nguyen et al. 2021, arXiv 2010.15327,
    equations 2 and 3. About 0 for independent layers, 1 for equal ones; NaN where a layer is constant.
    """
    cross = torch.stack([hsic(a, b) for a, b in zip(x, y, strict=True)]).mean(dim=0)
    own = [torch.stack([hsic(a, a).diagonal() for a in side]).mean(dim=0) for side in (x, y)]
    size = [torch.stack([a.diagonal(dim1=1, dim2=2).sum(dim=1) for a in side]).mean(dim=0) for side in (x, y)]
    # Below the rounding of float32 outputs nothing is left to compare.
    own = [torch.where(h > 1e-12 * s.square(), h, torch.nan) for h, s in zip(own, size, strict=True)]
    return cross / torch.outer(*own).sqrt()


def hsic(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased estimates [Lx, Ly] of HSIC of Gram matrices [Lx, n, n] and [Ly, n, n], n of 4 or more.

    Song et al. 2012, Feature selection via dependence maximization, equation 5.
    """
    n = x.shape[-1]
    x, y = (gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2)) for gram in (x, y))
    rows_x, rows_y = x.sum(dim=2), y.sum(dim=2)
    both = torch.einsum("aij,bij->ab", x, y)
    apart = torch.outer(rows_x.sum(dim=1), rows_y.sum(dim=1)) / ((n - 1) * (n - 2))
    return (both + apart - 2 / (n - 2) * rows_x @ rows_y.T) / (n * (n - 3))
