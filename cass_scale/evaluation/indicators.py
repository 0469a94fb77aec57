"""What can be said of encoders without a label: which arm to pick, and whether two arms see the same."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch

from cass_scale.evaluation.metrics import Array, Floats
from cass_scale.monitor import linear_cka, rankme
from cass_scale.types import JSON

MOST = 2048  # images that indicators are computed on; spread over the set
RANKS = (11, 100)  # of the eigenvalues that the power law is fitted to: past the first, before the noise
FEWEST = 20  # eigenvalues; a line through fewer says nothing
NEIGHBOURS = 10


def indicators(by_arm: Mapping[str, Array]) -> JSON:
    """`arms`: RankMe and alpha-ReQ of each arm's features [N, dim]; `pairs`: agreement of every two arms."""
    some = {arm: spread(features) for arm, features in by_arm.items()}
    return {
        "arms": {arm: {"rankme": effective_rank(x), "alpha_req": alpha_req(x)} for arm, x in some.items()},
        "pairs": {f"{a}, {b}": agreement(some[a], some[b]) for a, b in combinations(some, 2)},
    }


def spread(features: Array) -> Array:
    """At most MOST rows [n, dim] of the features, spread evenly: sets are often sorted by class."""
    n = len(features)
    return features if n <= MOST else features[np.linspace(0, n - 1, MOST).astype(np.int64)]


def effective_rank(features: Array) -> float:
    """RankMe of features [N, dim]: more is better. Garrido et al. 2023, arXiv 2210.02885."""
    return rankme(torch.from_numpy(features), most=len(features)).item()


def alpha_req(features: Array) -> float | None:
    """Exponent of the power law by which the eigenvalues of the covariance of features [N, dim] fall; best near 1.

    Agrawal et al. 2022, alpha-ReQ: Assessing Representation Quality in SSL by measuring eigenspectrum decay
    (NeurIPS), section 3; a line through the logarithms, rank j weighted 1/j as their code has it, over RANKS. None
    where fewer than FEWEST eigenvalues are above the rounding of the features.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    eigenvalues = np.linalg.svd(centred, compute_uv=False) ** 2
    eigenvalues = eigenvalues[eigenvalues > 1e-12 * eigenvalues[0]]  # float32 squared
    low, high = RANKS
    rank = np.arange(low, min(high, len(eigenvalues)) + 1)
    if len(rank) < FEWEST:
        return None
    slope, _ = np.polyfit(np.log(rank), np.log(eigenvalues[rank - 1]), 1, w=rank**-0.5)  # polyfit squares its weights
    return float(-slope)


def agreement(x: Array, y: Array) -> JSON:
    """Whether two arms' features [N, D1] and [N, D2] see the same: CKA, and the share of common neighbours.

    mutual_knn: of an image's NEIGHBOURS nearest by one arm, how many are among those by the other (Huh et al. 2024,
    arXiv 2405.07987, section 2); `chance` is what unrelated arms have. None for fewer images than that takes.
    """
    n, k = len(x), NEIGHBOURS
    found: JSON = {"cka": linear_cka(torch.from_numpy(x), torch.from_numpy(y)).item(), "mutual_knn": None}
    if n <= 2 * k:
        return found
    chosen = np.zeros((2, n, n), dtype=bool)
    for near, features in zip(chosen, (x, y), strict=True):
        near[np.arange(n)[:, None], nearest(directions(features), k)] = True
    return found | {"mutual_knn": float((chosen[0] & chosen[1]).sum() / (n * k)), "chance": k / (n - 1)}


def directions(features: Array) -> Floats:
    """Rows [N, D] of unit length around the mean of all: cosines then tell images apart, not networks."""
    rows = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny))


def nearest(rows: Floats, k: int) -> Array:
    """The k nearest other rows of each of `rows` [N, D] of unit length, by cosine: int [N, k], in no order."""
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -np.inf)
    return np.argpartition(-cosine, k - 1, axis=1)[:, :k]
