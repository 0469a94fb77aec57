"""What the paper printed and claims: cass_scale/paper/*.yaml as values. Never imports torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cass_scale.types import JSON

FOLDER = Path(__file__).parent / "paper"
SHARES = ("labels_1", "labels_10", "labels_100")  # of labels: protocols of the study label_fractions


@cache
def tables() -> JSON:
    """tables.yaml."""
    found: JSON = yaml.safe_load((FOLDER / "tables.yaml").read_text())
    return found


@cache
def claims() -> list[JSON]:
    """claims.yaml."""
    found: list[JSON] = yaml.safe_load((FOLDER / "claims.yaml").read_text())
    return found


def rows_of(name: str) -> list[str]:
    """Rows of a study that stand for a row of the paper, best first; any other name stands for itself."""
    found: list[str] = tables()["rows"].get(name, [name])
    return found


def tables_of(study: str) -> dict[str, Any]:
    """Tables that a study reproduces, by number."""
    return {number: table for number, table in tables()["tables"].items() if table["study"] == study}


def hours() -> dict[str, tuple[float, float]]:
    """Table 2: set -> hours of DINO and of CASS."""
    sets = tables()["hours"]["sets"]
    return {name: (_hours(*both["dino"]), _hours(*both["cass"])) for name, both in sets.items()}


def training_images() -> dict[str, int]:
    """Of an epoch of Table 2's times, by set; of brain MRI fewer than the set has for training."""
    return {name: both["images"] for name, both in tables()["hours"]["sets"].items()}


def _hours(hours: int, minutes: int) -> float:
    return hours + minutes / 60


def own_gain(protocol: str) -> tuple[float, float]:
    """What the paper's own tables give for its claim about a share of labels: CASS less DINO, and relative to DINO.

    The mean over the sets and both arms.
    """
    pairs = []
    for table in tables_of("label_fractions").values():
        lines = {(line["row"], line["protocol"]): line for line in table["values"]}
        if ("cass", protocol) in lines:
            cass, dino = lines["cass", protocol], lines["dino", protocol]
            pairs += [(cass[arm][0], dino[arm][0]) for arm in ("cnn", "vit")]
    number = len(pairs)
    return sum(c - d for c, d in pairs) / number, sum(c / d - 1 for c, d in pairs) / number
