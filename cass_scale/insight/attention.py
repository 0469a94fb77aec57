"""Attention maps of timm's Vision Transformers: fused kernels keep the weights, so q and k give them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cass_scale.encoders import Encoder
from cass_scale.insight.unsuited import Unsuited


class Attention(NamedTuple):
    """Shares of attention that the patches of B images get; what class and register tokens get is missing."""

    heads: Tensor  # float32 [B, heads, h, w] of the last block
    rollout: Tensor  # float32 [B, h, w] through all blocks


def attention(encoder: Encoder, images: Tensor) -> Attention:
    """Maps of images float [B, 3, S, S] in [0, 1], in eval mode, asked by the tokens that the features are read from.

    That is the class token, or all patches where their mean is the feature. Raises Unsuited for what has no blocks of
    attention among all patches (Swin's windows, a CNN).
    """
    body, model = encoder.body.eval(), encoder.spec.model
    grid = getattr(getattr(body, "patch_embed", None), "grid_size", None)
    prefix, blocks = getattr(body, "num_prefix_tokens", None), getattr(body, "blocks", None)
    if not grid or prefix is None or blocks is None:
        raise Unsuited(f"{model} is no Vision Transformer: it has no blocks of attention among all patches")
    watch = Watch(len(images), prefix + grid[0] * grid[1])
    with torch.inference_mode(), _fused(body), watch:
        encoder(images)
    if watch.heads is None or len(watch.means) != len(blocks):
        raise Unsuited(
            f"{model} has {len(blocks)} blocks, of which {len(watch.means)} attend among all patches by a softmax of "
            "q and k; maps need all of them to"
        )
    asking = slice(0, 1) if prefix and getattr(body, "global_pool", "") == "token" else slice(prefix, None)

    def on_patches(shares: Tensor) -> Tensor:
        found: Tensor = shares[..., asking, prefix:].mean(dim=-2)
        return found.unflatten(-1, tuple(grid)).float()  # type: ignore[no-any-return]

    return Attention(on_patches(watch.heads), on_patches(rollout(watch.means)))


def rollout(means: Sequence[Tensor]) -> Tensor:
    """Attention [B, T, T] from the last layer's tokens to the first's; `means` are the layers' means over heads.

    Half of every layer passes it by (the residual connection). Abnar and Zuidema 2020, arXiv 2005.00928, section 3.
    """
    flow = torch.eye(means[0].shape[-1], dtype=means[0].dtype, device=means[0].device).expand_as(means[0])
    for mean in means:
        flow = 0.5 * (mean @ flow + flow)
    return flow


class Watch(TorchFunctionMode):
    """Looks at every attention among all tokens while it is active: all layers' means over heads, the last's heads.

    Listening at torch's function rather than at modules serves all of timm's attentions: query norms, rotary
    embeddings and biases are in q, k and the mask by then.
    """

    def __init__(self, batch: int, tokens: int) -> None:
        super().__init__()
        self.batch, self.tokens = batch, tokens
        self.means: list[Tensor] = []  # [B, T, T] each
        self.heads: Tensor | None = None  # [B, heads, T, T]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch in place of `func`."""
        if func is F.scaled_dot_product_attention:
            self._see(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _see(
        self, query: Tensor, key: Tensor, _: Tensor, attn_mask: Tensor | None = None, *__: Any, **more: Any
    ) -> None:
        if (len(query), query.shape[-2], key.shape[-2]) == (self.batch, self.tokens, self.tokens):
            self.heads = weights(query, key, attn_mask, more.get("scale"))
            self.means.append(self.heads.mean(dim=1))


def weights(query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(q k^T scale + mask) [B, heads, T, T] of q [B, heads, T, d] and k, which may have fewer heads (shared)."""
    key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1)


@contextmanager
def _fused(body: nn.Module) -> Iterator[None]:
    """Have all attentions go through torch's one function, whatever TIMM_FUSED_ATTN says."""
    flags = [(module, module.fused_attn) for module in body.modules() if hasattr(module, "fused_attn")]
    try:
        for module, _ in flags:
            module.fused_attn = True  # type: ignore[assignment]
        yield
    finally:
        for module, was in flags:
            module.fused_attn = was
