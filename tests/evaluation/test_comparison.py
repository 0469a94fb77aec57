"""Two runs on the same images: what is paired, what is refused, and who may be called the winner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cass_scale.errors import DataError
from cass_scale.evaluation.comparison import compare, paired
from cass_scale.evaluation.metrics import scores
from cass_scale.evaluation.predictions import Predictions
from cass_scale.evaluation.summary import Scoring, subgroups, summary

HOW = Scoring(replicates=200)


def said(
    skill: float = 1.5, *, n: int = 60, seed: int = 0, trainings: int = 1, classes: int = 3, **fields
) -> Predictions:
    """Answers with noise of their own to the same images."""
    label = np.random.default_rng(9).integers(0, classes, n)
    noise = np.random.default_rng(seed).normal(size=(trainings, n, classes))
    p = np.exp(skill * np.eye(classes)[label] + noise)
    names = [f"{i:03d}.png" for i in range(n)]
    made = Predictions(
        id=np.arange(n),
        key=np.array(names),
        sha256=np.array([f"{i:064x}" for i in range(n)]),
        group=np.array([f"p{i // 2}" for i in range(n)]),
        split=np.full(n, "test"),
        label=label,
        classes=np.array(list("abcdefg")[:classes]),
        trainings=np.arange(trainings),
        probability={"cnn": (p / p.sum(axis=2, keepdims=True)).astype(np.float32)},
    )
    return replace(made, **fields)


def multilabel(seed: int, n: int = 60) -> Predictions:
    label = (np.random.default_rng(9).random((n, 3)) < 0.4).astype(np.uint8)
    p = 0.3 * label + 0.7 * np.random.default_rng(seed).random((1, n, 3))
    return said(n=n, label=label, probability={"cnn": p.astype(np.float32)})


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    before = said(trainings=2)
    before.save(tmp_path / "a.npz")
    after = Predictions.load(tmp_path / "a.npz")
    assert all(np.array_equal(getattr(after, name), getattr(before, name)) for name in ("id", "key", "sha256", "group"))
    assert after.probability["cnn"].dtype == np.float32 and np.array_equal(
        after.probability["cnn"], before.probability["cnn"]
    )
    assert np.array_equal(after.label, before.label) and after.classes.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\0" * 18, b"no zip"])
def test_broken_predictions_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz.*run `cass-scale evaluate` again"):
        Predictions.load(tmp_path / "a.npz")
    with pytest.raises(DataError, match="holds no predictions"):
        Predictions.load(tmp_path / "absent.npz")


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", id=np.array([{"evil": 1}], dtype=object))
    with pytest.raises(DataError, match="holds no predictions"):
        Predictions.load(tmp_path / "a.npz")


@pytest.mark.parametrize("make", [lambda seed: said(seed=seed), multilabel], ids=["one label", "several labels"])
def test_rows_hold_both_scores_and_their_paired_difference(make) -> None:
    a, b = paired(make(1), make(2))
    rows = {row.metric: row for row in compare(a, b, HOW, 199)}
    for which, run in (("a", a), ("b", b)):
        expected = scores(run.label, run.probability["cnn"][0], classes=run.classes.tolist(), multilabel=run.multilabel)
        for name, row in rows.items():
            assert getattr(row, which) == pytest.approx(expected[name])
    row = rows["macro_f1"]
    assert (
        row.difference == pytest.approx(row.a - row.b)
        and row.interval
        and row.interval[0] < row.difference < row.interval[1]
    )
    assert 0 < row.p <= row.holm <= 1 and rows["ece"].interval is None
    assert ("official_f1" if a.multilabel else "micro_f1") not in rows, "a second name of a score that is shown"


def test_a_clear_winner_and_a_draw() -> None:
    better, worse, like = said(4.0, n=200, seed=1), said(0.5, n=200, seed=2), said(4.0, n=200, seed=3)
    how = Scoring(replicates=500)
    wins = {row.metric: row.winner for row in compare(*paired(better, worse), how, 999, ["macro_f1", "auc", "brier"])}
    assert wins == {"macro_f1": "A", "auc": "A", "brier": "A"}, "a lower Brier score is the better one"
    turned = {row.metric: row.winner for row in compare(*paired(worse, better), how, 999, ["macro_f1", "brier"])}
    assert turned == {"macro_f1": "B", "brier": "B"}
    assert {row.winner for row in compare(*paired(better, like), how, 999)} == {None}
    same = compare(*paired(better, better), how, 999)
    assert {row.p for row in same} == {1.0} and {row.winner for row in same} == {None}


def test_luck_of_the_trainings_is_no_win() -> None:
    """A leads in two of three trainings by far and trails in one: sure of these models, and of no method."""
    a, b = said(seed=1, n=400, trainings=3), said(seed=2, n=400, trainings=3)
    lucky = np.concatenate([said(4.0, seed=3, n=400, trainings=2).probability["cnn"], b.probability["cnn"][2:]])
    a = replace(a, probability={"cnn": lucky})
    (row,) = compare(*paired(a, b), HOW, 999, ["accuracy"])
    assert row.p < 0.01 and row.interval and row.interval[0] < 0 < row.interval[1] and row.winner is None


def test_rows_without_an_interval_are_not_corrected_for() -> None:
    a, b = said(4.0, seed=1, n=200), said(0.5, seed=2, n=200)
    alone, with_ece = (compare(*paired(a, b), HOW, 999, names) for names in (["auc"], ["ece", "auc"]))
    assert with_ece[0].holm is None and with_ece[0].winner is None and with_ece[1] == alone[0]


def test_the_p_of_a_row_does_not_depend_on_how_confident_a_run_is() -> None:
    """The area of a run whose probabilities are squeezed is the same, and so is its test."""
    a, b = said(2.0, seed=1), said(1.0, seed=2)
    flat = replace(b, probability={"cnn": b.probability["cnn"] * 0.1 + 0.3})
    plain, squeezed = (compare(*paired(a, other), HOW, 199, ["auc"])[0] for other in (b, flat))
    assert squeezed.p == plain.p and squeezed.difference == pytest.approx(plain.difference)


def test_images_are_matched_by_their_bytes_in_any_order() -> None:
    a, b = said(seed=1), said(seed=2)
    order = np.random.default_rng(0).permutation(60)
    moved = replace(b.take(order), key=np.array([f"elsewhere/{i}" for i in range(60)]))
    assert np.array_equal(paired(a, moved)[1].probability["cnn"], b.probability["cnn"])


def test_copies_are_matched_one_by_one() -> None:
    twins = np.array(["0" * 64, "0" * 64, *(f"{i:064x}" for i in range(2, 60))])
    a, b = said(seed=1, sha256=twins), said(seed=2, sha256=twins)
    assert np.array_equal(paired(a, b.take(np.arange(59, -1, -1)))[1].probability["cnn"], b.probability["cnn"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.take(np.arange(57)), r"60 images, B on 57, .*3 only in A \(057.png, 058.png, 059.png\), 0 only"),
        (lambda b: replace(b, sha256=b.key), r"60 only in A \(000.png, .*, \.\.\.\), 60 only in B"),
        (lambda b: replace(b, label=(b.label + 1) % 3), "60 images have other labels in B than in A; the first is 000"),
        (lambda b: replace(b, classes=np.array(list("abd"))), "other classes: a, b, c; a, b, d"),
        (lambda b: replace(b, label=np.eye(3, dtype=np.uint8)[b.label]), "one label in A and several labels in B"),
    ],
    ids=["fewer", "others", "labels", "classes", "several labels"],
)  # fmt: skip
def test_what_cannot_be_paired_is_refused_with_the_difference(change, message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired(said(seed=1), change(said(seed=2)))


def test_trainings_are_paired_by_seed() -> None:
    a, b = said(seed=1, trainings=3), said(seed=2, trainings=3)
    shifted = replace(b, trainings=np.array([1, 2, 3]))
    first, second = paired(a, shifted)
    assert first.trainings.tolist() == second.trainings.tolist() == [1, 2]
    assert np.array_equal(second.probability["cnn"], b.probability["cnn"][:2])
    with pytest.raises(DataError, match=r"no training in common: A has \[0, 1, 2\], B has \[7, 8, 9\]"):
        paired(a, replace(b, trainings=np.array([7, 8, 9])))
    assert paired(said(), replace(said(), trainings=np.array([5])))[0].trainings.tolist() == [0], "one each is a pair"


def test_arms_in_common_are_compared() -> None:
    a, b = said(seed=1), said(seed=2)
    both = replace(b, probability={"vit": b.probability["cnn"], "cnn": b.probability["cnn"]})
    assert {row.arm for row in compare(a, both, HOW, 199, ["auc"])} == {"cnn"}
    with pytest.raises(DataError, match="no arm in common: A has cnn, B has vit"):
        compare(a, replace(b, probability={"vit": b.probability["cnn"]}), HOW, 199)


def test_a_summary_of_several_trainings() -> None:
    run = said(trainings=3)
    found = summary(run, "cnn", HOW)
    each = [scores(run.label, p, classes=list("abc"), multilabel=False)["macro_f1"] for p in run.probability["cnn"]]
    assert found["macro_f1"] == pytest.approx(np.mean(each)) and [one["macro_f1"] for one in found["each"]] == each
    assert found["seeds"]["macro_f1"]["std"] == pytest.approx(np.std(each, ddof=1))
    low, high = found["seeds"]["macro_f1"]["interval"]
    assert low < found["macro_f1"] < high
    assert found["intervals"]["macro_f1"][0] < found["macro_f1"] < found["intervals"]["macro_f1"][1]
    assert np.sum(found["confusion"]) == 3 * 60 and found["per_class"]["a"]["n"] == (run.label == 0).sum()
    assert "seeds" not in summary(said(), "cnn", HOW)
    assert summary(said(), "cnn", Scoring(replicates=0))["intervals"] == {}


def test_what_is_undefined_says_why() -> None:
    found = summary(said(label=np.zeros(60, np.int64)), "cnn", HOW)
    assert found["auc"] is None and "auc" not in found["intervals"]
    assert found["undefined"]["auc"] == "no class has test images with it and without it"


def test_one_patient_gives_no_interval() -> None:
    assert summary(said(group=np.full(60, "p")), "cnn", HOW)["intervals"] == {}


def test_subgroups_find_the_worst() -> None:
    run = said(3.0, n=120)
    view = np.array(["axial", "sagittal"])[np.arange(120) % 2].tolist()
    p = run.probability["cnn"].copy()
    p[:, 1::2] = 1 / 3 + 1e-3 * np.random.default_rng(0).random((60, 3))  # says nothing of sagittal images
    values = [*view[:-3], "odd", "odd", ""]
    found = subgroups(replace(run, probability={"cnn": p}), "cnn", values, HOW)
    assert set(found["groups"]) == {"axial", "sagittal"} and found["few"] == 2
    assert found["worst"]["macro_f1"] == "sagittal" and found["gap"]["macro_f1"] > 0.4
    assert found["worst"]["brier"] == "sagittal", "the highest Brier score is the worst"
    assert found["groups"]["axial"]["n"] == 59 and "macro_f1" in found["groups"]["axial"]["intervals"]
    assert subgroups(run, "cnn", [""] * 120, HOW)["groups"] == {}
