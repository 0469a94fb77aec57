"""The paper's numbers as data: whole, consistent with themselves, and fitting the studies that reproduce them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cass_scale import claims
from cass_scale.cli import compose_config, config_dir
from cass_scale.published import claims as all_claims
from cass_scale.published import hours, own_gain, rows_of, tables, tables_of, training_images

LEAVES = sorted((config_dir() / "study").glob("*.yaml"))
STUDIES = {leaf.stem: compose_config("study", [f"name={leaf.stem}"])["study"] for leaf in LEAVES}
AS_USUAL = ("100", "16", "adam", "none", "cass", "imagenet", "cnn_vit", "vit_base")


def test_every_table_of_scores_is_there_with_as_many_numbers_as_the_paper_prints() -> None:
    printed = {
        1: 12, 3: 12, 4: 18, 5: 18, 6: 6, 7: 8, 8: 8, 9: 8, 10: 4, 11: 6, 12: 4, 13: 3, 14: 6, 15: 6, 16: 3, 17: 6,
        18: 4, 19: 4, 20: 4, 21: 4,
    }  # fmt: skip
    found = {
        int(number): sum(isinstance(value, list) for line in table["values"] for value in line.values())
        for number, table in tables()["tables"].items()
    }
    assert found == printed


def test_a_pair_that_the_paper_prints_again_is_the_same_again() -> None:
    again: dict[tuple[str, str], set[float]] = {}
    for table in tables()["tables"].values():
        for line in table["values"]:
            for arm in ("cnn", "vit") if line["row"] == "cass" and line.get("setting") in AS_USUAL else ():
                again.setdefault((table["data"], arm), set()).add(line[arm][0])
    assert again == {
        ("autoimmune", "cnn"): {0.8650}, ("autoimmune", "vit"): {0.8894},
        ("brain MRI", "cnn"): {0.9909}, ("brain MRI", "vit"): {0.9279},
    }  # fmt: skip


def test_savings_of_table_2_are_those_of_the_text() -> None:
    saved = [1 - cass / dino for dino, cass in hours().values()]
    assert [round(100 * share, 1) for share in saved] == [71.2, 62.4, 72.7, 72.6]
    assert sum(saved) / 4 == pytest.approx(0.69, abs=0.01)


def test_brain_mri_was_timed_on_five_of_six_folds_of_its_training_images() -> None:
    timed = training_images()["brain MRI"]
    split = yaml.safe_load((config_dir() / "data" / "brain_mri.yaml").read_text())["expected"]["train"]
    assert (timed, split) == (split * 5 // 6, 5712)
    batches = timed // 16
    assert batches == 297, "as the notebook printed them: whole ones"
    assert hours()["brain MRI"][1] * 3600 / 100 == pytest.approx(258.9, abs=0.7), "seconds an epoch, likewise"


def test_the_papers_tables_do_not_give_the_gains_of_its_abstract() -> None:
    assert own_gain("labels_1")[0] == pytest.approx(-0.0373, abs=1e-4)  # claimed: +3.8 %
    assert own_gain("labels_10") == pytest.approx((0.0260, 0.0684), abs=1e-4)  # 5.9 %
    assert own_gain("labels_100") == pytest.approx((0.0506, 0.0904), abs=1e-4)  # 10.13 %


@pytest.mark.parametrize("number", list(tables()["tables"]))
def test_a_table_names_rows_settings_and_protocols_of_its_study(number: str) -> None:
    table = tables()["tables"][number]
    study: Any = STUDIES[table["study"]]
    for line in table["values"]:
        known = {name.partition("/")[0] for name in study["rows"]} | {"initial"}
        assert set(rows_of(line["row"])) & known
        assert line.get("setting", study["standard"]) in study["settings"]
        assert line.get("protocol", "finetune") in study["protocols"]


@pytest.mark.parametrize("claim", all_claims(), ids=lambda claim: claim["says"][:40])
def test_a_claim_can_be_judged_by_its_study(claim: dict[str, Any]) -> None:
    study: Any = STUDIES[claim["study"] or "batch_size"]
    assert claim.get("protocol", "knn") in study["protocols"]
    for test in claim["tests"]:
        assert test["rule"] in claims.RULES and test.get("protocol", "knn") in study["protocols"]
        for side in (test[key] for key in ("of", "than") if key in test):
            known = {name.partition("/")[0] for name in study["rows"]} | {"initial"}
            assert set(rows_of(side.get("row", "cass"))) & known
            assert str(side.get("setting", study["standard"])) in study["settings"]


def test_every_study_has_what_it_reproduces_in_its_head() -> None:
    for path in LEAVES:
        numbers = tables_of(path.stem)
        head = path.read_text().split("defaults:")[0]
        assert all(number in head for number in numbers), path
        assert yaml.safe_load(path.read_text())["name"] == path.stem
