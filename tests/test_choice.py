"""Which arm to take: what the report says of indicators, and how often they were right."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="needs the extra `report`")
pytest.importorskip("matplotlib", reason="needs the extra `report`")

from cass_scale.choice import FEWEST, cases, picks
from cass_scale.results import load
from tests.fake_runs import Page, add_run, add_scores, page_of, squeezed

# RankMe and alpha-ReQ of cnn and vit, and their macro F1: rank is right in four of six, alpha in all that it knows.
RUNS = (
    ((50, 1.1), (40, 1.4), (0.80, 0.70)),
    ((50, 1.6), (60, 0.9), (0.60, 0.70)),
    ((30, 1.2), (20, 0.7), (0.90, 0.85)),
    ((30, 1.1), (20, 1.2), (0.90, 0.80)),
    ((30, 1.5), (20, 1.2), (0.50, 0.60)),
    ((30, None), (20, 1.0), (0.50, 0.70)),
)


def add(root: Path, name: str, cnn: tuple, vit: tuple, scores: tuple, **fields: object) -> Path:
    folder = add_run(root, name, "cass_contrast")
    arms = {arm: dict(zip(("rankme", "alpha_req"), two, strict=True)) for arm, two in (("cnn", cnn), ("vit", vit))}
    known = {"arms": arms, "pairs": {"cnn, vit": {"cka": 0.4, "mutual_knn": 0.31, "chance": 0.1}}}
    three = {arm: (value, value, value) for arm, value in zip(("cnn", "vit"), scores, strict=True)}
    three |= {"both": (0.95, 0.95, 0.95), "ensemble": (0.94, 0.94, 0.94)}
    add_scores(folder, three, indicators=known, **fields)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for number, one in enumerate(RUNS):
        add(tmp_path / "runs", f"run{number}", *one)
    return tmp_path / "runs"


def test_rules_are_held_against_the_scores(runs: Path) -> None:
    found = {pick.rule: pick for pick in picks(cases(load(runs)[0]))}
    rank = found["RankMe, the larger"]
    assert rank.pairs == 6 and rank.right == pytest.approx(4 / 6) and rank.lost == pytest.approx((0.1 + 0.2) / 6)
    alpha = found["alpha-ReQ, the nearer to 1"]
    assert alpha.pairs == 5 and alpha.right == 1.0 and alpha.lost == 0.0, "where it is not known it is not asked"
    assert found["always cnn"].right == pytest.approx(0.5) and found["always vit"].right == pytest.approx(0.5)
    assert set(found) == {rank.rule, alpha.rule, "always cnn", "always vit"}, "both and ensemble are no arms to choose"


def test_few_pairs_say_nothing(tmp_path: Path) -> None:
    for number, one in enumerate(RUNS[: FEWEST - 1]):
        add(tmp_path / "runs", f"run{number}", *one)
    assert all(pick.right is None and pick.lost is None for pick in picks(cases(load(tmp_path / "runs")[0])))
    page, _ = page_of(tmp_path / "runs")
    assert f"n/a, {FEWEST} pairs are needed" in squeezed(page)


def test_undecided_rules_count_half_and_equal_scores_not_at_all(tmp_path: Path) -> None:
    for number in range(5):
        add(tmp_path / "runs", f"run{number}", (30, 1.0), (30, 1.0), (0.6, 0.8))
    add(tmp_path / "runs", "even", (30, 1.0), (20, 1.0), (0.7, 0.7))
    found = picks(cases(load(tmp_path / "runs")[0]))[0]
    assert found.pairs == 5 and found.right == 0.5 and found.lost == pytest.approx(0.1)


def test_a_run_counts_once_per_protocol_and_set_with_the_most_labels(tmp_path: Path) -> None:
    folder = add(tmp_path / "runs", "run", *RUNS[0])
    three = {"cnn": (0.1, 0.1, 0.1), "vit": (0.9, 0.9, 0.9)}
    known = {"arms": {arm: {"rankme": 1.0, "alpha_req": 1.0} for arm in three}, "pairs": {}}
    add_scores(folder, three, weights="initial", indicators=known)
    (folder / "evaluate" / "knn-run-labels0.1.json").write_text(
        (folder / "evaluate" / "knn-run.json")
        .read_text()
        .replace('"n_train": 679', '"n_train": 67')
        .replace("0.8", "0.3")
    )
    add_scores(folder, three, protocol="linear")
    found = cases(load(tmp_path / "runs")[0])
    assert [(case.protocol, case.arms["cnn"][1]) for case in found] == [("knn", 0.8)], "no indicators, no case"


def test_the_report_shows_indicators_beside_scores(runs: Path) -> None:
    page, html = page_of(runs)
    table = next(table for table in page.tables if table[0][0].strip() == "Run, method")
    assert "Which arm to take" in page.text and 'id="picks"' in html
    rows = {tuple(cell.strip() for cell in row[2:]) for table in page.tables for row in table if len(row) == 7}
    assert ("cnn", "50.0", "1.10", "0.31", "0.800") in rows and ("cnn", "30.0", "n/a", "0.31", "0.500") in rows
    assert len(table) == 7


def test_a_report_without_indicators_has_no_such_section(tmp_path: Path) -> None:
    folder = add_run(tmp_path / "runs", "old", "cass")
    add_scores(folder, {"cnn": (0.7, 0.7, 0.7), "vit": (0.6, 0.6, 0.6)})
    page, _ = page_of(tmp_path / "runs")
    assert "Which arm to take" not in page.text and isinstance(page, Page)
