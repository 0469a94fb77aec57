"""Both arms at once, for whoever does not want to choose: their features side by side, their answers averaged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cass_scale.evaluation.metrics import Array, Floats

BOTH, ENSEMBLE = "both", "ensemble"  # what the rows of a record are called


def both(by_arm: Mapping[str, Array]) -> dict[str, NDArray[np.float32]]:
    """{"both": [N, sum of dims]}: the features of two or more arms, each image's of unit length; {} for one arm.

    Cosines of what is joined are the means of the arms' cosines.
    """
    if len(by_arm) < 2:
        return {}
    lengths = {arm: np.linalg.norm(x, axis=1, keepdims=True) for arm, x in by_arm.items()}
    unit = [x / np.maximum(lengths[arm], np.finfo(np.float32).tiny) for arm, x in by_arm.items()]
    return {BOTH: np.concatenate(unit, axis=1).astype(np.float32)}


def ensemble(by_arm: Mapping[str, Array]) -> dict[str, Floats]:
    """{"ensemble": the mean of the arms' probabilities [..., N, C]}; {} for one arm."""
    return {ENSEMBLE: np.mean(list(by_arm.values()), axis=0)} if len(by_arm) > 1 else {}
