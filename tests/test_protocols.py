"""Every protocol of evaluation runs on real images, also with a class of three; the table says what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.protocols import How, measure, protocols, table
from cass_scale.cli import config_dir
from cass_scale.data.layouts import table as rows_of
from tests.data.images import labels_csv

SHORT = How(size=32, steps=1, device="cpu")
FEW = {"train": 6, "test": 2}  # images of a class


def few(source: Path, to: Path) -> Path:
    """The first images of every class and split of a set."""
    taken: Counter[tuple[str, str]] = Counter()
    kept = []
    for key, row in rows_of(source, "auto").items():
        sort = row["label"], row["split"]
        taken[sort] += 1
        if taken[sort] <= FEW[row["split"]]:
            (to / key).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / key, to / key)
            kept.append((key, *sort))
    return labels_csv(to, "path,label,split", *kept)


def test_every_leaf_is_in_the_table() -> None:
    asked = {word.partition("=")[2] for words in protocols(How()).values() for word in words if "protocol=" in word}
    assert asked == {path.stem for path in (config_dir() / "protocol").glob("*.yaml")}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_protocol_runs_on_blood_cells(shared: Path, tmp_path: Path) -> None:
    data = few(shared / "data" / "blood_wbc_bccd", tmp_path / "blood")
    found = measure(tmp_path / "run", str(data), SHORT)
    refused = {name: said["refused"] for name, said in found["protocols"].items() if "refused" in said}
    assert list(refused) == ["finetune, 1%, 2 seeds", "finetune, 10%, 2 seeds"], refused
    assert "leaves no image of basophil" in refused["finetune, 1%, 2 seeds"]
    for name in found["protocols"].keys() - refused:
        said = found["protocols"][name]
        assert said["n_test"] == 9 and {"cnn", "vit"} <= said["arms"].keys(), name
        assert all(0 <= row["macro_f1"] <= 1 for row in said["arms"].values()), name
        assert len(said["trainings"]) == (2 if "folds" in name else 1), name
    shown = table([found], SHORT)
    assert "| finetune, 1%, 2 seeds | refused (1) |" in shown and "leaves no image" in shown.splitlines()[-1]
    assert "what they are worth" in shown.splitlines()[0]
