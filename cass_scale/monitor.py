"""Collapse monitor: does a network still give different images different outputs?

What is read was chosen on collapsed and healthy runs: standard deviation and between-image cosine of the outputs,
RankMe of uncentred features, the loss on true against shuffled pairs. Not centred effective rank (it stays high on
residual noise); CKA between the arms is written down but never judged (it rises while both collapse).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cass_scale.losses.cosine import cosine
from cass_scale.types import ArmOutput

PAIR = "the pair"  # stands where an arm's name stands, when the verdict is about both


def output_std(outputs: Tensor) -> Tensor:
    """Std over images of L2-normalised outputs [B, K], mean over K, times sqrt(K): 1 isotropic, 0 constant.

    Chen and He 2021 (SimSiam), arXiv 2011.10566, figure 2.
    """
    rows = F.normalize(outputs.double(), dim=1)
    return rows.std(dim=0, correction=0).mean() * math.sqrt(rows.shape[1])


def between_cosine(outputs: Tensor) -> Tensor:
    """Mean cosine between outputs [B, K] of two different images: 1 when all are the same; B of 2 or more."""
    rows = F.normalize(outputs.double(), dim=1)
    n = len(rows)
    return ((rows.sum(dim=0).square().sum() - rows.square().sum()) / (n * (n - 1))).clamp(max=1.0)


def rankme(features: Tensor, *, most: int = 512) -> Tensor:
    """Effective rank of the uncentred features [B, D], 1 .. min(B, D), of the first `most` rows.

    exp of the entropy of p_k = s_k / sum(s) + 1e-7 with singular values s; Garrido et al. 2023, arXiv
    2210.02885, equation 1. NaN where a feature is not finite (the decomposition would raise).
    """
    if not features[:most].isfinite().all():
        return torch.tensor(math.nan)
    s: Tensor = torch.linalg.svdvals(features[:most].double())
    p = s / s.sum().clamp(min=1e-30) + 1e-7
    return (-(p * p.log()).sum()).exp()


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA of features [B, D1] and [B, D2] of the same images, 0..1 (0 where one of them is constant).

    Kornblith et al. 2019, arXiv 1905.00414, equation 4, by way of the B x B Gram matrices.
    """
    grams = [z @ z.T for z in (v.double() - v.double().mean(dim=0) for v in (x, y))]
    norm: Tensor = grams[0].norm() * grams[1].norm()
    return (grams[0] * grams[1]).sum() / norm.clamp(min=1e-30)


def matched_and_shuffled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine loss of outputs [B, K] on true pairs, and on pairs whose images are rolled by one.

    Equal numbers mean that the arms agree on something, but on nothing about the image.
    """
    return cosine(x.double(), y.double()), cosine(x.double(), y.double().roll(1, dims=0))


class Monitor:
    """Measures the arms on the same probe images again and again; the first row is the baseline.

    A run that resumes sets `baseline` from its record, or the collapsed state would become the normal one.
    """

    def __init__(
        self, probe: Tensor, *, spread: float = 0.05, fraction: float = 0.1, gap: float = 0.1, chunk: int = 32
    ) -> None:
        """See `verdict` for `spread`, `fraction` and `gap`.

        probe: view-like images, float in [0, 1], [P, 3, S, S] on the device, P of 2 or more; chunk: per pass.
        """
        self.probe, self.chunk = probe, chunk
        self.spread, self.fraction, self.gap = spread, fraction, gap
        self.baseline: dict[str, float] | None = None

    def __call__(self, arms: Callable[[Tensor], dict[str, ArmOutput]], module: nn.Module) -> dict[str, float]:
        """One row of numbers, keys `probe/...`; `arms` maps images [B, 3, S, S] to each arm's answer.

        `module` is what `arms` runs: it is put into eval mode and given back as it was (every training flag,
        BatchNorm's statistics, the global random state). The caller's autocast holds. No collectives, but
        under ZeRO-3 all ranks must call. One copy to the host is the only synchronisation.
        """
        with _undisturbed(module, self.probe.device):
            parts = [arms(images) for images in torch.split(self.probe, self.chunk)]
        row = _row(_to_host(parts))
        if self.baseline is None:
            self.baseline = row
        return row

    def verdict(self, row: dict[str, float]) -> list[tuple[str, str]]:
        """Which arms have collapsed, and why in words; empty when none, or when there is no baseline yet."""
        return verdict(row, self.baseline or row, spread=self.spread, fraction=self.fraction, gap=self.gap)


def verdict(
    row: dict[str, float], baseline: dict[str, float], *, spread: float, fraction: float, gap: float
) -> list[tuple[str, str]]:
    """Pairs (arm or "the pair", why in words) of what has collapsed in `row`.

    An arm has collapsed when its spread, 1 - between_cosine, is under `spread` and under `fraction` of its
    own at the baseline (a random ViT starts at 0.009: the first alone would flag the null control). This also
    finds constant outputs that do not agree (infonce), and a single arm.

    The pair has collapsed when the loss on shuffled pairs is under half of the baseline's (the null control's
    stays), exceeds that on true pairs by less than `gap` of itself, and an arm's spread is under half of its
    own at the baseline (sinkhorn and vicreg from random weights turn the arms towards each other before they
    learn: there spread grows). This finds what starts with a tiny spread.
    """
    found, shrunk = [], False
    for key in (k for k in row if k.endswith("/between_cosine")):
        if math.isnan(row[key]):
            found.append((key.split("/")[1], "its outputs are not finite numbers (NaN or infinity)"))
        now, first = 1.0 - row[key], 1.0 - baseline[key]
        limit = min(spread, fraction * first)
        shrunk = shrunk or now < 0.5 * first
        if now < limit:
            found.append((key.split("/")[1], _why_arm(row[key], baseline[key], 1.0 - limit)))
    if shrunk and "probe/shuffled" in row:
        matched, shuffled = row["probe/matched"], row["probe/shuffled"]
        if shuffled - matched < gap * shuffled and shuffled < 0.5 * baseline["probe/shuffled"]:
            found.append((PAIR, _why_pair(row, baseline)))
    return found


def _why_arm(now: float, first: float, limit: float) -> str:
    return (
        f"all images get the same output: cosine between different images {now:.4f}, at the start {first:.4f}"
        f" (1 is no difference at all; warning above {limit:.4f})"
    )


def _why_pair(row: dict[str, float], baseline: dict[str, float]) -> str:
    return (
        "the two networks agree, but not about the image: loss when both see the same image"
        f" {row['probe/matched']:.3g}, when they see different images {row['probe/shuffled']:.3g},"
        f" at the start {baseline['probe/matched']:.3g} and {baseline['probe/shuffled']:.3g}"
        " (learning makes the second clearly larger than the first)"
    )


@contextmanager
def _undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode without gradients; afterwards every training flag and the random states are as before."""
    flags = [(part, part.training) for part in module.modules()]
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            module.eval()
            yield
    finally:
        for part, training in flags:
            part.training = training


def _to_host(parts: list[dict[str, ArmOutput]]) -> dict[str, ArmOutput]:
    """Answers of all chunks, joined, as float32 on the CPU by one copy for all arms."""
    joined = {a: [torch.cat([p[a][i] for p in parts]).float() for i in (0, 1)] for a in parts[0]}
    flat = torch.cat([t.reshape(-1) for pair in joined.values() for t in pair]).cpu()
    pieces = iter(torch.split(flat, [t.numel() for pair in joined.values() for t in pair]))
    return {a: ArmOutput(*(next(pieces).view_as(t) for t in pair)) for a, pair in joined.items()}


def _row(arms: dict[str, ArmOutput]) -> dict[str, float]:
    numbers: dict[str, Tensor] = {}
    for name, (features, outputs) in arms.items():
        numbers[f"probe/{name}/output_std"] = output_std(outputs)
        numbers[f"probe/{name}/between_cosine"] = between_cosine(outputs)
        numbers[f"probe/{name}/rankme_outputs"] = rankme(outputs)
        numbers[f"probe/{name}/rankme_features"] = rankme(features)
    if len(arms) == 2:
        x, y = arms.values()
        numbers["probe/cka"] = linear_cka(x.features, y.features)
        if x.outputs.shape == y.outputs.shape:
            numbers["probe/matched"], numbers["probe/shuffled"] = matched_and_shuffled(x.outputs, y.outputs)
    return {key: value.item() for key, value in numbers.items()}
