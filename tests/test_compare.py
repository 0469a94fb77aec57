"""`cass-scale compare` as a person meets it: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cass_scale import compare, records
from cass_scale.cli import main
from cass_scale.errors import DataError
from cass_scale.evaluation.predictions import Predictions
from tests.evaluation.test_comparison import said
from tests.fake_runs import add_run, add_scores


def add(root: Path, name: str, answers: Predictions, *, file: str = "knn", weights: str = "run", **fields) -> Path:
    """A run and one evaluation of it, as the verbs leave them."""
    run = root / name
    if not run.exists():
        add_run(root, name, "cass", **fields)
    stem = f"{file}-{weights}"
    add_scores(
        run, {"cnn": (0.5, 0.5, 0.5)}, protocol=file, weights=weights, predictions=f"{stem}.npz", settings={"k": 20}
    )
    answers.save(run / "evaluate" / f"{stem}.npz")
    return run


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return add(tmp_path, "a", said(4.0, n=120, seed=1)), add(tmp_path, "b", said(0.5, n=120, seed=2))


def ask(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["compare", *words])
    return code, capsys.readouterr().err


def test_the_table_names_a_winner_and_what_to_keep_in_mind(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "compare.json"
    code, text = ask(f"A={runs[0]}", f"B={runs[1]}", f"out={out}", "replicates=500", "flips=2000", capsys=capsys)
    assert code == 0
    row = next(line for line in text.splitlines() if line.startswith("cnn, macro_f1"))
    assert row.split()[-1] == "A" and "+0." in row and " to " in row
    assert "knn-run: 120 images in 60 units, 1 trainings" in text and "this says nothing about other seeds" in text
    assert next(line for line in text.splitlines() if line.startswith("cnn, ece")).count("n/a") == 2
    record = json.loads(out.read_text())
    assert record["verb"] == "compare" and record["command"].startswith("cass-scale compare A=")
    (table,) = record["tables"]
    best = next(one for one in table["rows"] if one["metric"] == "macro_f1")
    assert best["winner"] == "A" and best["interval"][0] > 0 and best["p"] == pytest.approx(1 / 2001)


def test_the_twin_compares_the_metrics_that_are_asked_for(runs: tuple[Path, Path]) -> None:
    record = compare(A=runs[0], B=runs[1], metrics=["auc", "kappa"], replicates=100, flips=500, quiet=True)
    assert [row["metric"] for row in record["tables"][0]["rows"]] == ["auc", "kappa"]
    assert compare(A=runs[0], B=runs[1], dry_run=True, quiet=True) == {"evaluations": ["knn-run"]}


def test_every_evaluation_that_both_have(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for run, seed in zip(runs, (1, 2), strict=True):
        add(tmp_path, run.name, said(seed=seed), file="linear")
        add(tmp_path, run.name, said(seed=seed), weights="initial")
    add(tmp_path, "a", said(), file="finetune")
    record = compare(A=runs[0], B=runs[1], replicates=100, flips=500, quiet=True)
    assert [table["evaluation"] for table in record["tables"]] == ["knn-run", "linear-run"]


def test_a_run_against_its_own_initial_weights(runs: tuple[Path, Path], tmp_path: Path) -> None:
    add(tmp_path, "a", said(seed=5, n=120), weights="initial")
    record = compare(
        A=runs[0] / "evaluate/knn-run.json",
        B=runs[0] / "evaluate/knn-initial.json",
        replicates=100,
        flips=500,
        quiet=True,
    )
    assert record["tables"][0]["evaluation"] == "knn-run and knn-initial"


def test_what_must_be_known_is_noted(tmp_path: Path) -> None:
    seen = [{"step": 9, "arm": "vit", "why": "same output"}]
    a = add(tmp_path, "a", said(n=20, seed=1, trainings=2), collapse=seen)
    b = add(tmp_path, "b", said(n=20, seed=2, trainings=2))
    records.update(b, world_size=2, backend="zero2")
    path = b / "evaluate/knn-run.json"
    records.write_json(path, records.read_json(path) | {"settings": {"k": 5}})
    notes = compare(A=a, B=b, replicates=500, flips=500, quiet=True)["tables"][0]["notes"]
    assert notes == [
        "A collapsed in pretraining (vit)", "A was trained on one rank, B on 2 ranks by zero2",
        "evaluated with other settings: k: 20 -> 5",
        "10 patients, groups or single images: intervals of so few are rough",
    ]  # fmt: skip


def change(run: Path, **fields: object) -> Path:
    path = run / "evaluate/knn-run.json"
    records.write_json(path, records.read_json(path) | fields)
    return run


def test_other_amounts_are_noted(runs: tuple[Path, Path]) -> None:
    learnt = {"name": "other", "fingerprint": "x"}
    change(
        runs[0], labels=1.0, subset=None, n_train=679, learnt_from={"name": "own", "fingerprint": "y"}, threshold=0.5
    )
    change(runs[1], labels=0.1, subset=None, n_train=68, learnt_from=learnt, threshold=0.3, seed=1)
    notes = compare(A=runs[0], B=runs[1], metrics=["auc"], flips=500, quiet=True)["tables"][0]["notes"]
    assert notes[0] == (
        "evaluated otherwise, A -> B: labels: 1.0 -> 0.1; learnt_from.fingerprint: y -> x; "
        "learnt_from.name: own -> other; n_train: 679 -> 68; seed: 0 -> 1; threshold: 0.5 -> 0.3; "
        "both are scored at A's threshold and positive class"
    )


@pytest.mark.parametrize(("folds", "kind"), [(None, "seeds"), (10, "10 folds")])
def test_trainings_that_are_no_pairs_are_refused(runs: tuple[Path, Path], folds: int | None, kind: str) -> None:
    change(runs[0], folds=5), change(runs[1], folds=folds)
    with pytest.raises(DataError, match=f"knn-run: A was trained by 5 folds, B by {kind}: .*give both the same folds="):
        compare(A=runs[0], B=runs[1], quiet=True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "A is missing"),
        (["A={a}", "B={a}/nowhere"], 2, "nowhere does not exist"),
        (["A={a}", "B={b}", "metrics=[speed]"], 2, "metrics=['speed']: no such score; there are accuracy, auc"),
        (["A={a}", "B={b}", "replicates=5"], 2, "replicates=5: a whole number of at least 100"),
        (["A={a}", "B={b}", "flips=5"], 2, "flips=5: a whole number of at least 100"),
        (["A={a}", "B={b}", "out={a}"], 2, "cannot be written; name a file"),
        (["A={a}", "B={empty}"], 3, "not a run folder"),
        (["A={a}", "B={bare}"], 3, "has not been evaluated; run `cass-scale evaluate run.dir="),
        (["A={a}", "B={linear}/evaluate"], 3, "not a run folder"),
        (["A={two}", "B={linear}"], 3, "A was evaluated by finetune-run, knn-run, B by linear-run: none is the same"),
        (["A={a}", "B={fewer}"], 3, "knn-run: A was scored on 120 images, B on 100, and not on the same: 20 only in A"),
        (["A={a}", "B={old}"], 3, "keeps no predictions; run its command again"),
        (["A={a}", "B={cut}"], 3, "holds no predictions"),
    ],
)
def test_refusals_and_their_exit_codes(
    words: list[str],
    code: int,
    message: str,
    runs: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"a": runs[0], "b": runs[1], "empty": tmp_path / "empty", "bare": tmp_path / "bare"}
    places["empty"].mkdir()
    add_run(tmp_path, "bare", "cass")
    places["linear"] = add(tmp_path, "linear", said(n=120), file="linear")
    add(tmp_path, "linear", said(n=120), file="linear", weights="initial")
    places["two"] = add(tmp_path, "two", said(n=120))
    add(tmp_path, "two", said(n=120), file="finetune")
    places["fewer"] = add(tmp_path, "fewer", said(n=120).take(np.arange(100)))
    places["old"] = add(tmp_path, "old", said(n=120))
    old = records.read_json(places["old"] / "evaluate/knn-run.json")
    records.write_json(places["old"] / "evaluate/knn-run.json", {k: v for k, v in old.items() if k != "predictions"})
    places["cut"] = add(tmp_path, "cut", said(n=120))
    (places["cut"] / "evaluate/knn-run.npz").write_bytes(b"cut")
    got, text = ask(*(word.format(**places) for word in words), capsys=capsys)
    assert got == code and message in text and "Traceback" not in text


def test_undefined_scores_are_left_out(tmp_path: Path) -> None:
    """All labels equal: there is no area under a curve, and no row that pretends."""
    same = np.zeros(60, np.int64)
    a, b = (add(tmp_path, name, replace(said(seed=seed), label=same)) for name, seed in (("a", 1), ("b", 2)))
    metrics = {row["metric"] for row in compare(A=a, B=b, replicates=100, flips=500, quiet=True)["tables"][0]["rows"]}
    assert "auc" not in metrics and "macro_f1" in metrics


def test_too_few_flips_for_so_many_rows_are_noted(runs: tuple[Path, Path]) -> None:
    record = compare(A=runs[0], B=runs[1], flips=100, quiet=True)
    rows = sum(row["holm"] is not None for row in record["tables"][0]["rows"])
    assert f"100 flips are too few for {rows} rows" in record["tables"][0]["notes"][-1]
    assert {row["winner"] for row in record["tables"][0]["rows"]} == {None}


def test_the_defaults_can_name_a_winner_of_two_arms_both_and_the_ensemble(tmp_path: Path) -> None:
    def four(skill: float, seed: int) -> Predictions:
        names = ("cnn", "vit", "both", "ensemble")
        each = [said(skill, n=120, seed=seed + i, classes=5) for i in range(4)]
        return replace(each[0], probability=dict(zip(names, (x.probability["cnn"] for x in each), strict=True)))

    a, b = add(tmp_path, "a", four(6.0, 1)), add(tmp_path, "b", four(0.5, 5))
    (table,) = compare(A=a, B=b, quiet=True)["tables"]
    assert {row["arm"] for row in table["rows"] if row["winner"] == "A"} == {"cnn", "vit", "both", "ensemble"}
    assert all(row["winner"] == "A" for row in table["rows"] if row["metric"] != "ece")
    assert not any("too few" in note for note in table["notes"])
