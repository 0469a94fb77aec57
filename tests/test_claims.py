"""Claims are judged from records by rules: what holds, what does not, and what the records do not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cass_scale import records
from cass_scale.claims import FAILS, HOLDS, OPEN, UNTESTED, Verdict, judge, moves, saving, steadier
from cass_scale.robustness import variance
from cass_scale.studies import STUDY, Study, load
from tests.fake_studies import RUNS, batch_size


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return load(batch_size(tmp_path_factory.mktemp("study")), [])


def one(study: Study, *tests: dict[str, Any], **fields: Any) -> Verdict:
    (found,) = judge([{"says": "x", "where": "here", "study": "batch_size", "tests": list(tests), **fields}], [study])
    return found


def side(row: str, **fields: Any) -> dict[str, Any]:
    return {"row": row, **fields}


@pytest.mark.parametrize(
    ("test", "word"),
    [
        ({"rule": "higher", "of": side("cass_contrast"), "than": side("cass_null")}, HOLDS),
        ({"rule": "higher", "of": side("cass_contrast"), "than": side("cass_null"), "by": 0.2}, FAILS),
        ({"rule": "higher", "of": side("cass_null"), "than": side("cass_contrast")}, FAILS),
        ({"rule": "higher", "of": side("dino", setting="32"), "than": side("dino", setting="8"), "by": 0.09}, HOLDS),
        ({"rule": "within", "of": side("cass_null", setting="8"), "than": side("cass_null"), "by": 0.03}, HOLDS),
        ({"rule": "within", "of": side("dino", setting="8", arm="vit"), "than": side("dino", arm="vit"), "by": 0.03},
         FAILS),
        ({"rule": "falls", "of": side("dino", setting="8"), "than": side("dino"), "by": 0.05}, HOLDS),
        ({"rule": "falls", "of": side("dino", setting="8"), "than": side("dino"), "by": 0.25}, FAILS),
        ({"rule": "steadier", "of": side("cass_contrast"), "than": side("dino")}, HOLDS),
        ({"rule": "steadier", "of": side("dino"), "than": side("cass_contrast")}, FAILS),
        ({"rule": "faster", "of": side("cass"), "than": side("dino"), "by": 0.69}, HOLDS),
        ({"rule": "faster", "of": side("cass"), "than": side("dino"), "by": 0.9}, FAILS),
        ({"rule": "stands", "of": side("cass_contrast")}, HOLDS),
        ({"rule": "stands", "of": side("cass")}, FAILS),
        ({"rule": "higher", "of": side("supervised"), "than": side("contrast_noise")}, HOLDS),
    ],
)  # fmt: skip
def test_a_rule_decides(study: Study, test: dict[str, Any], word: str) -> None:
    found = one(study, test)
    assert found.word == word, found.why
    assert found.rests == study.folder


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ({"rule": "higher", "of": side("vicreg"), "than": side("cass_null")}, "no row vicreg"),
        ({"rule": "higher", "of": side("cass", setting="64"), "than": side("cass_null")}, "setting 64 was not run"),
        ({"rule": "higher", "of": side("cass", arm="rnn"), "than": side("cass", arm="rnn")}, "0 finished seed(s)"),
    ],
)
def test_what_the_records_do_not_say_is_not_tested(study: Study, test: dict[str, Any], why: str) -> None:
    found = one(study, test)
    assert found.word == UNTESTED and why in found.why[0]


def made(values: list[float], others: list[float], tmp_path: Path) -> Study:
    """A study in which cass_contrast and cass_null have these scores at 16, by seed."""
    folder = batch_size(tmp_path, seeds=len(values), runs=("cass_contrast", "cass_null"), protocols=("knn",))
    for row, scores in (("cass_contrast", values), ("cass_null", others)):
        for seed, value in enumerate(scores):
            path = folder / row / "16" / f"s{seed}" / "evaluate" / "knn.json"
            arms = {arm: {"macro_f1": value} for arm in ("cnn", "vit")}
            records.write_json(path, records.read_json(path) | {"arms": arms})
    return load(folder, [])


NULLS = [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("values", "rule", "by", "word"),
    [
        ([0.60, 0.61, 0.62], "higher", 0.0, HOLDS),
        ([0.60, 0.61, 0.62], "higher", 0.115, OPEN),  # the interval reaches it, the value does not
        ([0.60, 0.61, 0.62], "higher", 0.2, FAILS),
        ([0.40, 0.60, 0.70], "higher", 0.0, OPEN),  # the interval holds 0
        ([0.40, 0.60, 0.70], "higher", 0.05, OPEN),  # though the value is as large
        ([0.39, 0.40, 0.41], "higher", 0.0, FAILS),
        ([0.50, 0.50, 0.50], "higher", 0.0, FAILS),
        ([0.50, 0.51, 0.52], "within", 0.05, HOLDS),
        ([0.50, 0.60, 0.40], "within", 0.05, OPEN),
        ([0.60, 0.61, 0.62], "within", 0.05, FAILS),
        ([0.40, 0.60, 0.70], "falls", 0.1, OPEN),
    ],
)
def test_a_wide_interval_settles_nothing(values: list[float], rule: str, by: float, word: str, tmp_path: Path) -> None:
    of, than = side("cass_contrast"), side("cass_null")
    of, than = (than, of) if rule == "falls" else (of, than)
    found = one(made(values, NULLS, tmp_path), {"rule": rule, "of": of, "than": than, "by": by})
    assert found.word == word, found.why
    assert ("too wide to say" in found.why[0]) == (word == OPEN)


def test_a_claim_about_dino_must_hold_against_every_recipe(tmp_path: Path) -> None:
    runs = ("cass_contrast", "cass_null", "dino_small/cnn", "dino_small/vit", "dino_paper/cnn", "dino_paper/vit")
    found = one(
        load(batch_size(tmp_path, seeds=3, runs=runs), []),
        {"rule": "higher", "of": side("cass_contrast", setting="8"), "than": side("dino", setting="32")},
    )
    assert len(found.why) == 2 and "cass_contrast at 8 and dino_paper at 32" in found.why[0]
    assert found.why[0].endswith(": holds") and "dino_small at 32" in found.why[1]
    assert found.word != HOLDS and found.why[1].endswith(found.word), "against the weakest alone it would hold"


def test_a_claim_about_one_set_is_tested_on_no_other(study: Study) -> None:
    found = one(study, {"rule": "stands", "of": side("cass_contrast")}, data="autoimmune")
    assert found.word == UNTESTED and found.why == ("is about autoimmune; these images are brain_mri",)


def test_times_of_two_settings_are_compared(study: Study) -> None:
    test = {"rule": "faster", "of": side("cass", setting="8"), "than": side("dino", setting="32"), "by": 0.5}
    assert one(study, test).word == HOLDS


def test_all_of_a_claims_tests_must_hold(study: Study) -> None:
    good = {"rule": "stands", "of": side("cass_contrast")}
    bad, unknown = {"rule": "stands", "of": side("cass")}, {"rule": "stands", "of": side("nobody")}
    assert one(study, good, good).word == HOLDS
    assert one(study, good, unknown).word == UNTESTED
    assert one(study, good, unknown, bad).word == FAILS
    assert one(study, good, good).why[0].endswith(": holds"), "each of several says its own"


def test_collapse_is_said_where_it_makes_a_method_steady(study: Study) -> None:
    found = one(study, {"rule": "steadier", "of": side("cass"), "than": side("dino")})
    assert found.word == HOLDS and "Beware: 15 runs of cass_paper collapsed" in found.why[0]


def test_a_claim_names_its_record_or_the_command_that_would_test_it(study: Study) -> None:
    (found,) = judge([{"says": "x", "study": "epochs", "tests": []}], [study])
    assert found.word == UNTESTED and found.rests is None
    assert found.why == ("cass-scale study name=epochs data.path=DIR",)
    anywhere = {"says": "x", "study": None, "tests": [{"rule": "stands", "of": side("cass")}]}
    words = [verdict.word for verdict in judge([anywhere], [study, study])]
    assert words == [FAILS, FAILS], "once for every study that has the row"


def test_too_few_seeds_give_no_verdict(tmp_path: Path) -> None:
    few = load(batch_size(tmp_path, seeds=2), [])
    higher = {"rule": "higher", "of": side("cass_contrast"), "than": side("cass_null")}
    for rule in ("higher", "falls", "steadier", "faster", "within"):
        assert one(few, higher | {"rule": rule, "by": 0.1}).word == UNTESTED
    assert "an interval needs 3" in one(few, higher).why[0]


def test_one_encoder_is_not_held_against_two(tmp_path: Path) -> None:
    half = load(batch_size(tmp_path, seeds=3, runs=tuple(name for name in RUNS if name != "dino_small/vit")), [])
    found = one(half, {"rule": "faster", "of": side("cass"), "than": side("dino"), "by": 0.1})
    assert found.word == UNTESTED and "cass_paper has finished cnn, vit; dino_small cnn" in found.why[0]
    assert saving(half, ("cass_paper", "16"), ("dino_small", "16")) is None
    assert one(half, {"rule": "higher", "of": side("cass"), "than": side("dino")}).word == UNTESTED


def test_clocks_of_rows_that_shared_a_device_prove_nothing(tmp_path: Path) -> None:
    shared = load(batch_size(tmp_path, seeds=3, jobs_per_device=2), [])
    found = one(shared, {"rule": "faster", "of": side("cass"), "than": side("dino"), "by": 0.1})
    assert found.word == UNTESTED and "2 rows shared a device" in found.why[0]


def test_unfinished_runs_count_for_nothing(tmp_path: Path) -> None:
    folder = batch_size(tmp_path, seeds=3)
    for seed in range(3):
        records.update(folder / "dino_small-vit" / "16" / f"s{seed}", status="running")
    broken = load(folder, [])
    assert broken.hours("dino_small", "16") == {} and broken.arms("dino_small", "16") == ["cnn"]
    assert broken.scores("dino_small", "16", "vit", "knn") == {}
    assert one(broken, {"rule": "faster", "of": side("cass"), "than": side("dino"), "by": 0.1}).word == UNTESTED


def test_seeds_are_paired_across_rows_that_have_different_ones(tmp_path: Path) -> None:
    folder = batch_size(tmp_path, seeds=4)
    records.update(folder / "dino_small-cnn" / "8" / "s0", status="failed")
    found = load(folder, [])
    own, less = (
        moves(found, "cass_contrast", "knn", variance),
        steadier(found, "cass_contrast", "dino_small", "knn", variance),
    )
    assert own is not None and own.seeds == 4 and less is not None and less.seeds == 3
    plan = records.read_json(folder / STUDY)["rows"]
    assert len(plan) == len(found.members) == 4 * 3 * len(RUNS)
