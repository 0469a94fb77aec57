"""A study on the page: every number beside its interval, the paper's beside ours, and nothing unfinished in a table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="needs the extra `report`")
pytest.importorskip("matplotlib", reason="needs the extra `report`")

from cass_scale import records
from cass_scale.errors import DataError
from cass_scale.page import report
from cass_scale.robustness import Estimate
from cass_scale.studies import STUDY, load
from cass_scale.study_page import correct, mean_of, section
from cass_scale.types import JSON
from tests.fake_runs import Page, add_run, add_scores, page_of, squeezed
from tests.fake_studies import batch_size


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return batch_size(tmp_path_factory.mktemp("runs") / "study-batch_size-quick")


@pytest.fixture(scope="module")
def shown(folder: Path) -> tuple[Page, str]:
    return page_of(folder.parent)


def rows_of(page: Page, head: str) -> list[list[str]]:
    table = next(table for table in page.tables if any(head in cell for cell in table[0]))
    return [[" ".join(cell.split()) for cell in row] for row in table]


def test_claims_come_first_each_with_its_verdict_and_record(shown: tuple[Page, str]) -> None:
    page, html = shown
    rows = {row[0]: row for row in rows_of(page, "Verdict")}
    steady = rows["CASS depends less on the batch size than DINO section 5.3.2, Figure 2b"]
    assert steady[1] == "holds" and "Beware: 15 runs of cass_paper collapsed" in steady[2]
    assert steady[3] == "study-batch_size-quick"
    assert rows["Not a single case of collapse section 3.1"][1] == "does not hold"
    assert html.index("Does the claim hold?") < html.index("Batch size, shrunk")
    assert 'href="#study-1"' in html and 'id="study-1"' in html
    untested = (
        "CASS takes 69 % less time than DINO (abstract, section 5.1, Table 2): cass-scale study name=pretraining_time"
    )
    assert untested in squeezed(page)


def test_scores_have_intervals_and_differences_to_the_null_control(shown: tuple[Page, str], folder: Path) -> None:
    page, _ = shown
    table = rows_of(page, "32")
    assert table[0] == ["Row", "8", "16", "32"] and table[1] == ["cnn"]
    contrast = next(row for row in table if row[0] == "cass_contrast")
    mean = mean_of(load(folder, []).scores("cass_contrast", "16", "cnn", "linear"))
    assert mean is not None and mean.interval is not None
    assert contrast[2].startswith(f"{mean.value:.3f} ({mean.interval[0]:.3f} to {mean.interval[1]:.3f}) +0.0")
    null = next(row for row in table if row[0] == "cass_null")
    assert re.fullmatch(r"0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)", null[1]), "no difference of the control to itself"


def test_robustness_is_told_with_its_noise_and_beside_dino(shown: tuple[Page, str]) -> None:
    rows = {row[0]: row for row in rows_of(shown[0], "Variance")}
    assert rows["Row"][3] == "less that of dino_small"
    assert rows["cass_contrast"][3].startswith("\N{MINUS SIGN}2") and rows["dino_small"][3] == "\N{EN DASH}"
    assert any("CASS 0.584, DINO 1.500" in row for row in rows)


def test_every_number_of_the_papers_table_stands_beside_ours(shown: tuple[Page, str]) -> None:
    table = rows_of(shown[0], "Here less paper")
    assert len(table) == 1 + 6
    assert table[1][:4] == ["cass", "8", "cnn", "0.9895"] and table[1][6] == "linear"
    assert float(table[1][5].replace("\N{MINUS SIGN}", "-")) == pytest.approx(-0.44, abs=0.02)


def test_savings_count_both_runs_of_dino_and_stand_beside_their_flops(shown: tuple[Page, str]) -> None:
    rows = rows_of(shown[0], "Device-hours saved")
    paper = next(row for row in rows if row[0] == "cass_paper")
    assert paper[1] == "dino_small" and paper[2].startswith("83.") and paper[4] == "75.0 %"
    assert "Figure 2 of the paper, drawn anew" in squeezed(shown[0])
    assert shown[1].count("<figure") >= 4 + 5, "a chart per protocol and arm, and the curves"


def test_unfinished_rows_are_listed_with_their_last_words_and_never_tabulated(tmp_path: Path) -> None:
    folder = batch_size(tmp_path / "study", seeds=3, failed={"dino_small-cnn/8/s0": "killed by SIGKILL: out of memory"})
    gone = folder / "dino_small-cnn" / "8" / "s0"
    records.update(gone, status="running")
    for path in (gone / "evaluate").glob("*.json"):
        records.write_json(path, records.read_json(path) | {"arms": {"cnn": {"macro_f1": 0.99999}}})
    (folder / "cass_null/8/s1/evaluate/knn.json").unlink()
    (folder / "cass_contrast/8/s1/run.json").unlink()
    page, html = page_of(tmp_path)
    assert "99999" not in html and "1.000 (" not in html
    listed = {tuple(row[:4]): row[4] for row in rows_of(page, "Last words")}
    assert listed["dino_small/cnn", "8", "0", "running"] == "killed by SIGKILL: out of memory"
    assert ("cass_null", "8", "1", "done, not all scored") in listed
    assert ("cass_contrast", "8", "1", "not begun") in listed
    assert "51 of 54 runs done" in squeezed(page)


def test_a_study_that_has_hardly_begun_has_a_page(tmp_path: Path) -> None:
    folder = batch_size(tmp_path / "study", seeds=1, runs=("cass_null", "cass_paper"), protocols=("knn",))
    for path in folder.glob("*/*/*/run.json"):
        path.unlink()
    page, _ = page_of(tmp_path)
    text = squeezed(page)
    assert "0 of 6 runs done" in text and "no data yet" in text
    assert {row[3] for row in rows_of(page, "Last words")[1:]} == {"not begun"}


def test_few_seeds_have_no_intervals_and_the_page_says_so(tmp_path: Path) -> None:
    page, _ = page_of(batch_size(tmp_path / "study", seeds=1, jobs_per_device=3).parent)
    text = squeezed(page)
    assert "1 seed(s): an interval needs 3, so none is given and no claim is judged" in text
    assert "3 rows shared a device" in text
    assert "does not hold" not in [row[1] for row in rows_of(page, "Verdict") if "seed" in row[2]]


def test_runs_beside_studies_keep_their_own_part_of_the_page(tmp_path: Path) -> None:
    batch_size(tmp_path / "study", seeds=1, protocols=("knn",), runs=("cass_null",))
    add_scores(add_run(tmp_path, "mine", "cass_contrast"), {"cnn": (0.5, 0.5, 0.5), "vit": (0.5, 0.5, 0.5)})
    page, html = page_of(tmp_path)
    assert "1 study and 1 run" in squeezed(page)
    assert html.count('<details class="run"') == 1, "runs of a study are not told one by one"


def test_a_study_of_shares_says_what_the_papers_own_tables_give(tmp_path: Path) -> None:
    names = ["labels_1", "labels_10", "labels_100"]
    made = batch_size(tmp_path, seeds=1, runs=("cass_paper",), protocols=tuple(names), name="label_fractions")
    found = section(load(made, []))
    assert found["own_gains"]["labels_1"][0] < 0
    lines = next(one for one in found["printed"] if one["number"] == "4")["lines"]
    assert {line["line"]["row"]: bool(line["ours"]) for line in lines} == {
        "dino": False,
        "cass": True,
        "supervised": True,
    }


def test_a_damaged_or_newer_study_is_named(tmp_path: Path) -> None:
    folder = batch_size(tmp_path / "study", seeds=1, runs=("cass_null",), protocols=("knn",))
    (folder / "cass_null/8/s0/run.json").write_text("{")
    assert re.search(r"Left out: \S+cass_null/8/s0/run.json cannot be read", squeezed(page_of(tmp_path)[0]))
    records.write_json(folder / STUDY, records.read_json(folder / STUDY) | {"schema": 9})
    with pytest.raises(DataError, match=r"study.json has schema 9"):
        report(tmp_path, tmp_path / "out.html")


def test_a_colour_is_of_the_whole_tables_corrected_p() -> None:
    def cell(p: float | None) -> JSON:
        return {"p": p, "delta": Estimate(0.1, 0.01, 0.19, 3)}

    cells = [cell(0.03), cell(0.001), cell(None), cell(0.04)]
    correct(cells)
    assert [one["verdict"] for one in cells] == ["noise", "above", "", "noise"], "0.03 alone would be one"
    assert cells[0]["holm"] == pytest.approx(0.06) and cells[2]["holm"] is None


def test_both_arms_together_have_scores_and_robustness_is_of_the_arms(folder: Path) -> None:
    found = section(load(folder, []))
    assert [one["arm"] for one in found["scores"][0]["arms"]] == ["cnn", "vit", "both", "ensemble"]
    rows = {row["row"] for row in found["scores"][0]["arms"][2]["rows"]}
    assert "cass_contrast" in rows and "dino_small" not in rows, "a run of one arm has nothing to join"
    assert load(folder, []).grid("cass_contrast", "knn", ["8"])[1] == ["cnn", "vit"]


def test_a_protocols_name_stands_beside_what_was_really_done(tmp_path: Path) -> None:
    """preset=quick of label_fractions probes; it must not look like the paper's fine-tuning."""
    made = batch_size(tmp_path, seeds=1, runs=("cass_paper",), protocols=("knn", "labels_10"), name="label_fractions")
    record = records.read_json(made / STUDY)
    for row in record["rows"].values():
        row["evaluations"]["labels_10"] = ["protocol=linear", "labels=[0.1]"]
    records.write_json(made / STUDY, record)
    study = load(made, [])
    assert study.how("labels_10") == "labels_10 (linear, 10% of the labels)" and study.how("knn") == "knn"
    for path in made.glob("*/*/*/evaluate/labels_10.json"):
        records.write_json(path, records.read_json(path) | {"protocol": "linear"})
    assert "labels_10 (linear, 10% of the labels): Macro F1" in squeezed(page_of(tmp_path)[0])
