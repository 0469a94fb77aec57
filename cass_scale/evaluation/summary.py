"""Predictions to what a record says of an arm: scores, their intervals, what is undefined and why; and subgroups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cass_scale.evaluation.metrics import LOWER_IS_BETTER, UNDEFINED, Scores, details, scores
from cass_scale.evaluation.predictions import Predictions
from cass_scale.evaluation.statistics import over_seeds, resample, units_of
from cass_scale.evaluation.weighted import Weighted
from cass_scale.types import JSON

FEW = 10  # images; a smaller subgroup is counted, not scored


@dataclass(frozen=True)
class Scoring:
    """How answers are scored: the threshold of sensitivity and specificity, the bootstrap (0 replicates: none), and the
    number of the positive class where there are two (None: the second)."""

    threshold: float = 0.5
    replicates: int = 1000
    seed: int = 0
    positive: int | None = None


def summary(said: Predictions, arm: str, how: Scoring) -> JSON:
    """Means over the trainings of every score, and beside them

    `intervals`: 95 % over test images (and trainings), by name, where one can be given; `seeds`: mean, standard
    deviation and 95 % over two or more trainings; `each`: the scores of every training; `per_class`, averaged,
    and `confusion`, summed; `undefined`: name -> why it is null.
    """
    each = _each(said, arm, how)
    found: JSON = dict(_mean(each))
    found["undefined"] = {name: UNDEFINED[name] for name, value in found.items() if value is None}
    found["intervals"] = intervals(said, arm, how)
    if len(each) > 1:
        found["seeds"] = {name: _spread([one[name] for one in each]) for name in each[0] if name != "n"}
        found["each"] = [{"training": int(t)} | one for t, one in zip(said.trainings, each, strict=True)]
    classes, many = said.classes.tolist(), said.multilabel
    parts = [
        details(said.label, p, classes=classes, multilabel=many, threshold=how.threshold) for p in said.probability[arm]
    ]
    found["per_class"] = {name: _mean([part["per_class"][name] for part in parts]) for name in classes}
    found["confusion"] = np.sum([part["confusion"] for part in parts], axis=0).tolist()
    return found


def intervals(said: Predictions, arm: str, how: Scoring) -> JSON:
    """Score name -> [low, high], 95 %, from draws of test images, whole groups together."""
    if not how.replicates:
        return {}
    units = units_of(said.group.tolist())
    found = resample(weighted(said, arm, how), units, replicates=how.replicates, seed=how.seed)
    return {name: list(pair) for name in found.point if (pair := found.interval(name)) is not None}


def weighted(said: Predictions, arm: str, how: Scoring) -> list[Weighted]:
    """The scores of an arm under weights, one per training."""
    wanted, many = said.wanted, said.multilabel
    return [
        Weighted(wanted, p.astype(np.float64), multilabel=many, threshold=how.threshold, positive=how.positive)
        for p in said.probability[arm]
    ]


def subgroups(said: Predictions, arm: str, values: Sequence[str], how: Scoring) -> JSON:
    """Scores of every subgroup of FEW images or more, the worst one and the gap to the best one, by score.

    `values` [N] says to which subgroup an image belongs, '' = to none; `few` counts the images of small ones.
    """
    sizes = Counter(value for value in values if value)
    table: JSON = {}
    for value in sorted(value for value, n in sizes.items() if n >= FEW):
        part = said.take(np.array([v == value for v in values]))
        table[value] = _mean(_each(part, arm, how)) | {"intervals": intervals(part, arm, how)}
    worst, gap = {}, {}
    for name in next(iter(table.values()), {}):
        known = {value: row[name] for value, row in table.items() if isinstance(row[name], float)}
        if name != "n" and len(known) > 1:
            low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
            worst[name] = high if name in LOWER_IS_BETTER else low
            gap[name] = known[high] - known[low]
    return {"groups": table, "worst": worst, "gap": gap, "few": sum(n for n in sizes.values() if n < FEW)}


def _each(said: Predictions, arm: str, how: Scoring) -> list[Scores]:
    """The scores of every training."""
    classes, many = said.classes.tolist(), said.multilabel
    return [
        scores(said.label, p, classes=classes, multilabel=many, threshold=how.threshold, positive=how.positive)
        for p in said.probability[arm]
    ]


def _mean(each: Sequence[Scores]) -> Scores:
    """Mean of every score over the trainings in which it is defined."""
    known = {name: [x for one in each if (x := one[name]) is not None] for name in each[0]}
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}


def _spread(values: Sequence[float | None]) -> JSON | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    mean, deviation, interval = over_seeds(known)
    return {"mean": mean, "std": deviation, "interval": list(interval) if interval else None}
