"""Features are computed once: what decides them is the name of the file that keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cass_scale.evaluation.features import Features, key, remembered


class Counting:
    """Computes features, and remembers which arms it was asked for."""

    def __init__(self, rows: int = 4) -> None:
        self.asked: list[list[str]] = []
        self.rows = rows

    def __call__(self, arms: list[str]) -> Features:
        self.asked.append(arms)
        return {arm: np.full((self.rows, 3), len(self.asked), np.float32) for arm in arms}


def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    compute = Counting()
    remembered(tmp_path / "f", {"cnn": "a"}, 4, compute)
    both = remembered(tmp_path / "f", {"vit": "b", "cnn": "a"}, 4, compute)
    again = remembered(tmp_path / "f", {"vit": "b", "cnn": "a"}, 4, compute)
    assert compute.asked == [["cnn"], ["vit"]]
    assert list(both) == ["vit", "cnn"] and all(np.array_equal(both[arm], again[arm]) for arm in both)


def test_a_cut_or_foreign_file_is_made_again(tmp_path: Path) -> None:
    compute = Counting()
    for content in (b"", b"\x93NUMPY cut", None):
        if content is None:
            np.save(tmp_path / "a.npy", np.zeros((9, 3), np.float32))  # other images
        else:
            (tmp_path / "a.npy").write_bytes(content)
        assert len(remembered(tmp_path, {"cnn": "a"}, 4, compute)["cnn"]) == 4
    assert len(compute.asked) == 3


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert remembered(tmp_path / "file" / "f", {"cnn": "a"}, 4, Counting())["cnn"].shape == (4, 3)


def test_everything_that_decides_is_in_the_key() -> None:
    base = ("digest", "fingerprint", 224, "fp32", "cpu", {"torch": "2.13"})
    others = [(*base[:i], "other", *base[i + 1 :]) for i in range(len(base))]
    assert len({key(*base), *(key(*other) for other in others)}) == 7 and key(*base) == key(*base)
