"""Train, validation and test: stratified by label, never splitting a group, a pure function of the seed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from cass_scale import rng
from cass_scale.data.manifest import SPLITS
from cass_scale.errors import ConfigError

_Need = dict[str, list[float]]


def check_fractions(split: Sequence[float]) -> tuple[float, float, float]:
    """(train, val, test) as floats. Raises ConfigError unless they are three shares that sum to 1."""
    parts = tuple(float(part) for part in split)
    if len(parts) != 3 or min(parts) < 0 or not math.isclose(sum(parts), 1.0, abs_tol=1e-6):
        raise ConfigError(f"data.split={list(parts)} must be the shares of train, val, test: [0.7,0.1,0.2]")
    return parts


def assign(labels: Sequence[str], groups: Sequence[str], split: Sequence[float], seed: int) -> tuple[str, ...]:
    """A split name for each of N samples; without any label all are `train`.

    Greedy over groups in random order (a sample without group is its own): each goes where its labels
    are missing most, as in iterative stratification (Sechidis et al. 2011), rare and common labels alike.
    """
    fractions = check_fractions(split)
    if not any(labels):
        return ("train",) * len(labels)
    members: dict[str | int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group or i].append(i)
    units = list(members.values())
    total = Counter(c for label in labels for c in label.split("|"))
    need: _Need = {c: [share * n for share in fractions] for c, n in total.items()}
    left = [share * len(labels) for share in fractions]
    out = [""] * len(labels)
    for u in rng.permutation(seed, 0, len(units), rng.SPLIT).tolist():
        counts = Counter(c for i in units[u] for c in labels[i].split("|"))
        best = _neediest(counts, total, need, left, fractions)
        for c, n in counts.items():
            need[c][best] -= n
        left[best] -= len(units[u])
        for i in units[u]:
            out[i] = SPLITS[best]
    return tuple(out)


def _neediest(counts: Counter[str], total: Counter[str], need: _Need, left: list[float], share: Sequence[float]) -> int:
    """The split that misses most of these labels; ties go by images missing, then to the later split."""

    def missing(s: int) -> tuple[float, float, int]:
        return round(sum(n * need[c][s] / total[c] for c, n in counts.items()), 9), round(left[s], 6), s

    return max((s for s in range(len(SPLITS)) if share[s] > 0), key=missing)
