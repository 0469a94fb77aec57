"""A study as a pure grid: what a row is made of, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cass_scale import records
from cass_scale.cli import build, compose_config, config_dir
from cass_scale.errors import ConfigError, Problems
from cass_scale.grid import Row, plan, shrunk
from cass_scale.verbs import pretrain, rules, settings, study

ASKED: dict[str, Any] = {"rows": None, "settings": None, "protocols": None, "seeds": None}
TOY: dict[str, Any] = {
    "rows": {"one": ["method=cass"], "two/cnn": ["method=x", "arm=cnn"], "two/vit": ["method=x", "arm=vit"]},
    "settings": {"8": ["train.batch_size=8"], "16": ["train.batch_size=16", "optim.lr=2"]},
    "protocols": {"knn": ["protocol=knn"]}, "seeds": [0, 1], "initial": True, "words": ["arms=paper", "optim.lr=1"],
    "quick": {"only": {"rows": ["two"]}, "seeds": [7], "words": []},
}  # fmt: skip
STUDIES: dict[str, Any] = {
    leaf.stem: compose_config("study", [f"name={leaf.stem}"])["study"]
    for leaf in sorted((config_dir() / "study").glob("*.yaml"))
}


def test_rows_go_seed_by_seed_so_that_drift_hits_all_alike() -> None:
    rows = plan(TOY, ASKED, [])
    assert [row.shape for row in rows[:3]] == [("one", "8"), ("two/cnn", "8"), ("two/vit", "8")]
    assert [row.seed for row in rows] == [0] * 6 + [1] * 6
    assert rows[1].folder == "two-cnn/8/s0" and len({row.folder for row in rows}) == 12


def test_a_setting_beats_the_usual_words_and_a_persons_words_do_too() -> None:
    first, *_, last = plan(TOY, ASKED | {"rows": ["one"]}, ["arms=tiny", "data.path=DIR"])
    assert first.words == ("optim.lr=1", "arms=tiny", "data.path=DIR", "method=cass", "train.batch_size=8", "seed=0")
    assert "optim.lr=2" in last.words and "optim.lr=1" not in last.words and "arms=paper" not in last.words


def test_evaluations_take_the_rows_device_and_the_initial_weights_are_scored_once_per_setting_and_seed() -> None:
    rows = plan(TOY, ASKED, ["train.device=cpu", "train.precision=fp32"])
    assert rows[0].evaluations["knn"] == ("protocol=knn", "seed=0", "device=cpu", "precision=fp32")
    assert [row.name for row in rows if "initial-knn" in row.evaluations] == ["one"] * 4
    assert rows[0].evaluations["initial-knn"][-1] == "weights=initial"


def test_a_row_of_two_runs_is_chosen_by_its_name_and_numbers_name_settings() -> None:
    rows = plan(TOY, ASKED | {"rows": ["two"], "settings": [16], "seeds": [3]}, [])
    assert [row.shown for row in rows] == ["two/cnn, 16, seed 3", "two/vit, 16, seed 3"]
    assert "initial-knn" not in rows[0].evaluations, "a run of one arm has not everybody's initial weights"


def test_quick_replaces_what_its_section_names_and_nothing_else() -> None:
    rows = plan(shrunk(TOY, "quick"), ASKED, [])
    assert [row.name for row in rows] == ["two/cnn", "two/vit"] * 2 and {row.seed for row in rows} == {7}
    assert rows[0].words == ("method=x", "arm=cnn", "train.batch_size=8", "seed=7")
    assert "quick" not in shrunk(TOY, "paper") and shrunk(TOY, "paper")["seeds"] == [0, 1]


def test_an_empty_choice_of_protocols_means_none() -> None:
    assert plan(TOY | {"only": {"protocols": []}}, ASKED, [])[0].evaluations == {}


def test_everything_wrong_with_a_choice_is_told_together() -> None:
    asked = {"rows": ["three"], "settings": ["64"], "protocols": "knn", "seeds": [1, 1]}
    with pytest.raises(ConfigError) as found:
        plan(TOY, asked, ["seed=3", "run.dir=x"])
    assert len(found.value.problems) == 6
    text = str(found.value)
    assert "rows: this study has no three; it has one, two/cnn, two/vit" in text
    assert "protocols=knn: a list of names is needed, as in protocols=[knn]" in text
    assert "seed=3: rows have their own; give seeds=[0,1,2]" in text and "give out=FOLDER" in text


def test_a_word_may_not_contradict_the_axis() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=4 contradicts settings 8, 16, which set train.batch_size; "):
        plan(TOY, ASKED, ["train.batch_size=4"])
    assert plan(TOY, ASKED | {"settings": ["8"]}, ["train.batch_size=8"])


def test_a_name_must_fit_into_a_folder() -> None:
    with pytest.raises(ConfigError, match=r"'a b' cannot be part of a folder's name"):
        plan(TOY | {"rows": {"a b": []}}, ASKED, [])


def _words() -> dict[tuple[str, ...], str]:
    """Every row and every setting of every study, in both presets, each once."""
    found: dict[tuple[str, ...], str] = {}
    for name, study_of in STUDIES.items():
        for preset in ("paper", "quick"):
            rows = plan(shrunk(study_of, preset), ASKED, [])
            first = rows[0]
            for row in rows:
                own = preset == "paper" and name in ("epochs", "activation", "objectives")  # the rest share theirs
                beside = own and row.setting == first.setting
                if row.seed == first.seed and (row.name == first.name or beside):
                    found.setdefault(row.words, f"{name}, {preset}: {row.shown}")
    return found


def test_every_row_of_every_study_can_be_pretrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("resnet18.tv_in1k_nofc", "vit_small_patch14_reg4_dinov2.mr_tuned"):
        (tmp_path / f"{name}.safetensors").touch()  # arms=small names files
    monkeypatch.setenv("CASS_SCALE_WEIGHTS", str(tmp_path))
    problems = []
    for words, place in _words().items():
        try:
            pretrain.check(compose_config("pretrain", words), build)
        except ConfigError as error:
            problems += [f"{place}: {p}" for p in error.problems]
    assert problems == []


def test_every_evaluation_of_every_study_can_be_scored() -> None:
    found, distinct = Problems(), set()
    for name, study_of in STUDIES.items():
        for preset in ("paper", "quick"):
            whole = shrunk(study_of, preset)
            assert str(whole["standard"]) in whole["settings"], f"{name}, {preset}"
            distinct |= {tuple(words) for words in whole["protocols"].values()}
    for words in distinct:
        with found.collecting():
            settings.check_values(compose_config("evaluate", words), rules.EVALUATE, found)
    assert found.found == []


def test_problems_are_told_once_with_the_rows_that_have_them() -> None:
    rows = plan(TOY | {"protocols": {}}, ASKED, ["train.nope=1"])
    with pytest.raises(ConfigError) as found:
        study.check(rows, build)
    text = str(found.value)
    assert text.count("unknown key train.nope") == 1 and "(in every row)" in text
    assert "method=x: no such choice" in text and "(rows two/cnn, two/vit)" in text


def test_where_names_settings_only_where_a_row_is_not_wrong_in_all() -> None:
    everything = [(row, setting) for row in "ab" for setting in ("8", "16")]
    assert study._where([("a", "8"), ("a", "16"), ("b", "16")], everything) == "rows a, b at 16"
    assert study._where(everything, everything) == "in every row"


def test_commands_are_what_is_left(tmp_path: Path) -> None:
    row = Row("one", "8", 0, ("method=cass",), {"a": ("protocol=knn",), "b": ("protocol=linear", "labels=[0.1]")})
    place = tmp_path / row.folder
    assert [words[0] for words in study.commands(row, tmp_path)] == ["pretrain", "evaluate", "evaluate"]
    record = {"schema": 1, "weights": "run", "n_test": 9, "arms": {}}
    for name in ("knn", "linear"):
        (place / "evaluate").mkdir(parents=True, exist_ok=True)
        records.write_json(place / "evaluate" / f"{name}.json", record | {"protocol": name})
    records.write_json(place / "run.json", {"schema": 1, "status": "done"})
    left = ["evaluate", "protocol=linear", "labels=[0.1]", f"run.dir={place}", "--quiet"]
    assert study.commands(row, tmp_path) == [left], "the score of all labels is not that of a tenth"
    for name, about in (("S", {"subset": "S"}), ("folds", {"folds": 5, "labels": 0.1}), ("set", {"elsewhere": True})):
        records.write_json(place / "evaluate" / f"{name}.json", record | {"protocol": "linear"} | about)
    assert study.commands(row, tmp_path) == [left], "nor is that of a subset, of folds or of another set"


def test_evaluations_that_would_replace_each_other_are_refused() -> None:
    near = {"a": ["protocol=knn", "protocol.k=5"], "b": ["protocol=knn"], "c": ["protocol=linear"]}
    with pytest.raises(ConfigError, match=r"protocols: a, b leave the same record"):
        plan(TOY | {"protocols": near}, ASKED, [])
