"""A finished run on images of three plain colours, evaluated twice, for tests of what leaves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from cass_scale import evaluate
from tests.short_runs import short

COLOURS = {"zebra": (220, 30, 30), "ant": (30, 220, 30), "mole": (30, 30, 220)}  # not in the order of their names


def paint(path: Path, colour: tuple[int, int, int], i: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40 + i, 36), tuple(c + i for c in colour)).save(path)
    return path


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coloured")
    for name, colour in COLOURS.items():
        for i in range(10):
            paint(folder / name / f"{i}.png", colour, i)
    return folder


@pytest.fixture(scope="session")
def evaluated(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: for a run to change there is `copied`."""
    run = tmp_path_factory.mktemp("runs") / "evaluated"
    words = ("arms.vit.args.depth=2", "arms.cnn.mean=[0.4,0.5,0.6]", "train.max_steps=2")
    short(run, "method=cass_contrast", f"data.path={coloured}", *words)
    evaluate(f"run.dir={run}", "protocol=linear", "device=cpu", quiet=True)
    evaluate(f"run.dir={run}", "protocol=finetune", "protocol.epochs=1", "device=cpu", quiet=True)
    return run


@pytest.fixture
def copied(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "copied"))
