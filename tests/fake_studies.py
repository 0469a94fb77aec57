"""Study folders as `cass-scale study` leaves them, with scores that are drawn here."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from cass_scale import records
from cass_scale.grid import Row, score_of
from cass_scale.studies import STUDY
from tests.fake_runs import ARMS, DATA, add_run, add_scores

LEVELS = {  # macro F1 of cnn and vit at the middle setting, and by how much it moves per setting
    "cass_paper": (0.55, 0.50, 0.004), "cass_contrast": (0.88, 0.90, 0.010), "cass_null": (0.82, 0.78, 0.0),
    "contrast_noise": (0.80, 0.76, 0.0), "dino_small": (0.86, 0.87, 0.05),
    "dino_paper": (0.70, 0.70, 0.02), "initial": (0.81, 0.79, 0.0),
}  # fmt: skip
RUNS = ("cass_paper", "cass_contrast", "cass_null", "contrast_noise", "dino_small/cnn", "dino_small/vit")
SETTINGS = ("8", "16", "32")
FIXED: dict[str, Any] = {
    "schema": 1, "verb": "study", "name": "batch_size", "title": "Batch size", "axis": "batch size", "standard": "16",
    "preset": "quick", "target": "macro_f1", "settings": list(SETTINGS), "protocols": ["finetune", "linear", "knn"],
    "command": "cass-scale study name=batch_size preset=quick data.path=data/brain_mri", "jobs_per_device": 1,
    "git": {"sha": "3f1c" * 10, "dirty": False}, "versions": {"torch": "2.13.0"}, "machine": "Xeon, 2 cores",
    "started": "2026-11-20T10:00:00+00:00", "finished": "2026-11-20T12:00:00+00:00", "failed": {},
}  # fmt: skip


SHARES = {"labels_1": 0.01, "labels_10": 0.1, "labels_100": 1.0}


def evaluation(name: str) -> tuple[str, ...]:
    """Overrides of evaluate for `knn`, `initial-knn`, `labels_10`."""
    protocol = name.removeprefix("initial-")
    words = (f"protocol={'finetune' if protocol in SHARES else protocol}", f"labels=[{SHARES.get(protocol, 1.0)}]")
    return (*words, "weights=initial") if name.startswith("initial-") else words


def score(row: str, setting: str, seed: int, arm: str, dice: random.Random) -> float:
    cnn, vit, slope = LEVELS[row]
    return (cnn if arm == "cnn" else vit) + slope * (SETTINGS.index(setting) - 1) + dice.gauss(0, 0.008)


def batch_size(
    root: Path,
    *,
    seeds: int = 5,
    runs: tuple[str, ...] = RUNS,
    protocols: tuple[str, ...] = ("linear", "knn"),
    **fields: Any,
) -> Path:
    """The study of batch sizes, every run done; DINO moves most with the setting, CASS has collapsed."""
    dice, plan = random.Random(0), {}
    for seed in range(seeds):
        for setting in SETTINGS:
            for name in runs:
                names = [*protocols, *(f"initial-{p}" for p in protocols if name == runs[0])]
                words = {name: evaluation(name) for name in names}
                row = Row(name, setting, seed, (f"method={name}", f"seed={seed}"), words)
                plan[row.folder] = row.record()
                _run(root, row, dice)
    known = list(dict.fromkeys([*FIXED["protocols"], *protocols]))
    records.write_json(root / STUDY, FIXED | {"rows": plan, "protocols": known} | fields)
    return root


def _run(root: Path, row: Row, dice: random.Random) -> None:
    method, _, arm = row.name.partition("/")
    arms = [arm] if arm else list(ARMS)
    fallen = [{"step": 30, "arm": "vit", "why": "all images get the same output"}] if method == "cass_paper" else []
    hours = (0.15 if method.startswith("dino") else 0.05) * dice.uniform(0.97, 1.03)
    folder = add_run(
        root, row.folder, "cass_contrast" if method == "contrast_noise" else method, steps=40, seed=row.seed,
        collapse=fallen,
        arms={name: ARMS[name] for name in arms}, device_hours={"total": 1.1 * hours, "train": hours},
        data=DATA | {"noise": method == "contrast_noise"}, flops_per_image=2e10 if arm else 1e10,
    )  # fmt: skip
    for name in row.evaluations:
        who = "initial" if name.startswith("initial-") else method
        found = {one: (score(who, row.setting, row.seed, one, dice),) * 3 for one in arms}
        if not arm:
            found |= {"both": (0.01 + max(found.values())[0],) * 3, "ensemble": max(found.values())}
        protocol, weights, labels, *_ = score_of(row.evaluations[name])
        known = {"arms": {one: {"rankme": found[one][0], "alpha_req": 1.0} for one in arms}, "pairs": {}}
        add_scores(folder, found, name=name, protocol=protocol, weights=weights, labels=labels, indicators=known)
