"""Two runs on the same held-back images: every score's difference, how sure it is, and who may be called the winner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from cass_scale.errors import DataError
from cass_scale.evaluation.metrics import LOWER_IS_BETTER, Floats, shares
from cass_scale.evaluation.predictions import Predictions
from cass_scale.evaluation.statistics import LEVEL, Interval, resample, sign_flips, units_of
from cass_scale.evaluation.summary import Scoring, weighted
from cass_scale.evaluation.weighted import Weighted
from cass_scale.robustness import holm

# Second names of a score: shown once, so that a table is not corrected for asking the same question twice.
SYNONYMS = {False: {"micro_f1", "recall"}, True: {"official_f1", "official_recall"}}
SHOWN = 3  # images that an error names


class Row(NamedTuple):
    """One score of one arm; `p` of the paired test, `holm` the same corrected for all rows that have an interval."""

    arm: str
    metric: str
    a: float
    b: float
    difference: float
    interval: Interval | None  # 95 %, paired, over images and trainings
    effect: float | None  # Cohen's d of paired units
    p: float
    holm: float | None = None  # none without an interval: such a row cannot win, and is not corrected for
    winner: str | None = None  # A or B: where the interval leaves 0 out and the corrected p is under 5 %


def compare(
    a: Predictions, b: Predictions, how: Scoring, flips: int, metrics: Sequence[str] | None = None
) -> list[Row]:
    """A row for every arm that both have and every score that is defined for both, or those of `metrics`.

    `a` and `b` come from `paired`. Intervals: of the difference over units and trainings (`Resampled.interval`); p:
    the two runs' answers to units are exchanged `flips` times. Raises DataError when they have no arm in common.
    """
    arms = [arm for arm in a.probability if arm in b.probability]
    if not arms:
        raise DataError(f"no arm in common: A has {', '.join(a.probability)}, B has {', '.join(b.probability)}")
    rows = [row for arm in arms for row in _of_arm(a, b, arm, how, flips, metrics)]
    corrected = iter(holm([row.p for row in rows if row.interval]))
    return [_judged(row, row.interval, next(corrected)) if row.interval else row for row in rows]


def _of_arm(
    a: Predictions, b: Predictions, arm: str, how: Scoring, flips: int, metrics: Sequence[str] | None
) -> list[Row]:
    units = units_of(a.group.tolist())
    first, second = (
        resample(weighted(said, arm, how), units, replicates=how.replicates, seed=how.seed) for said in (a, b)
    )
    apart = first.minus(second)
    p = sign_flips(_pooled(a, b, arm, how), units, flips=flips, seed=how.seed)
    wanted = [name for name in p if name not in SYNONYMS[a.multilabel]] if metrics is None else metrics
    return [
        Row(arm, name, first.point[name], second.point[name], apart.point[name], apart.interval(name),
            apart.effect(name), p[name])
        for name in wanted
        if name in p
    ]  # fmt: skip


def _pooled(a: Predictions, b: Predictions, arm: str, how: Scoring) -> list[Weighted]:
    """Scores of both runs' answers in one, one per training: first A's, then B's.

    For the ROC area a probability counts by its rank among its own run's, which leaves the area as it is: two runs
    that are confident in different measure can be exchanged.
    """
    wanted = np.concatenate([a.wanted, b.wanted])

    def pool(p: Floats, q: Floats) -> Weighted:
        ranks = [rankdata(x if a.multilabel else shares(x), axis=0) for x in (p, q)]
        both, order = np.concatenate([p, q]), np.concatenate(ranks)
        return Weighted(
            wanted, both, multilabel=a.multilabel, threshold=how.threshold, positive=how.positive, order=order
        )

    pairs = zip(a.probability[arm].astype(np.float64), b.probability[arm].astype(np.float64), strict=True)
    return [pool(p, q) for p, q in pairs]


def _judged(row: Row, interval: Interval, p: float) -> Row:
    if interval[0] <= 0 <= interval[1] or p >= 1 - LEVEL:
        return row._replace(holm=p)
    return row._replace(holm=p, winner="A" if (row.difference > 0) != (row.metric in LOWER_IS_BETTER) else "B")


def paired(a: Predictions, b: Predictions) -> tuple[Predictions, Predictions]:
    """The two with the same images in the same order, and the trainings that both have.

    Images are the same when their bytes are. Raises DataError, naming the difference, when the images, their
    labels, the classes or the trainings do not agree.
    """
    _check_classes(a, b)
    names_a, names_b = _names(a), _names(b)
    if set(names_a) != set(names_b):
        raise DataError(_other_images(a, b, names_a, names_b))
    place = {name: i for i, name in enumerate(names_b)}
    b = b.take(np.array([place[name] for name in names_a]))
    differ = np.flatnonzero((a.label != b.label).reshape(len(a.label), -1).any(axis=1))
    if len(differ):
        raise DataError(f"{len(differ)} images have other labels in B than in A; the first is {a.key[differ[0]]}")
    if len(a.trainings) == len(b.trainings) == 1:
        return a, b
    both = np.intersect1d(a.trainings, b.trainings)
    if not len(both):
        raise DataError(f"no training in common: A has {a.trainings.tolist()}, B has {b.trainings.tolist()}")
    return _only(a, both.tolist()), _only(b, both.tolist())


def _check_classes(a: Predictions, b: Predictions) -> None:
    if a.multilabel != b.multilabel:
        kinds = ["several labels" if said.multilabel else "one label" for said in (a, b)]
        raise DataError(f"an image has {kinds[0]} in A and {kinds[1]} in B: their scores mean different things")
    if a.classes.tolist() != b.classes.tolist():
        raise DataError(f"A and B have other classes: {', '.join(a.classes)}; {', '.join(b.classes)}")


def _names(said: Predictions) -> list[str]:
    """Checksum of each image, and the how-manieth copy of the same bytes it is, by path."""
    seen: Counter[str] = Counter()
    names = [""] * len(said.sha256)
    for i in np.argsort(said.key, kind="stable"):
        checksum = str(said.sha256[i])
        names[i] = f"{checksum} {seen[checksum]}"
        seen[checksum] += 1
    return names


def _other_images(a: Predictions, b: Predictions, names_a: list[str], names_b: list[str]) -> str:
    parts = []
    for which, said, names, others in (("A", a, names_a, set(names_b)), ("B", b, names_b, set(names_a))):
        alone = [str(key) for key, name in zip(said.key, names, strict=True) if name not in others]
        some = f" ({', '.join(alone[:SHOWN])}{', ...' if len(alone) > SHOWN else ''})" if alone else ""
        parts.append(f"{len(alone)} only in {which}{some}")
    return (
        f"A was scored on {len(names_a)} images, B on {len(names_b)}, and not on the same: {', '.join(parts)}. "
        "Only scores on the same images can be compared; evaluate both with the same data.path"
    )


def _only(said: Predictions, trainings: list[int]) -> Predictions:
    rows = [said.trainings.tolist().index(t) for t in trainings]
    some = {arm: p[rows] for arm, p in said.probability.items()}
    return Predictions(**(vars(said) | {"trainings": said.trainings[rows], "probability": some}))
