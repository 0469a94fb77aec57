"""Overrides as text: what a person types for a path, and what Python values become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cass_scale.cli import compose_config
from cass_scale.errors import ConfigError
from cass_scale.words import flatten, literal_path, written_out


@pytest.mark.parametrize(
    "path",
    [
        "a b",
        "a=b",
        "a,b",
        "{a}",
        "a'b",
        "[a]",
        "ü",
        "a(b)#;!&",
        "/x/~y",
        "2024",
        "true",
        "1e3",
        "a\\",
        "a\\'b",
        "a ",
        "-x",
    ],
)
def test_a_path_is_taken_as_it_stands(path: str) -> None:
    assert compose_config("pretrain", [f"data.path={path}"])["data"]["path"] == path
    assert compose_config("pretrain", flatten({"run": {"dir": Path(path)}}))["run"]["dir"] == str(Path(path))
    assert compose_config("report", [f"runs={path}"])["runs"] == path
    assert compose_config("predict", [f"images={path}"])["images"] == path


def test_home_is_expanded_and_quotes_of_a_person_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    assert literal_path("run.dir=~/runs") == "run.dir=/home/anna/runs"
    assert literal_path("run.dir='a b'") == "run.dir='a b'"
    assert literal_path("data.path=null") == "data.path=null"
    assert literal_path("optim.lr=1,2") == "optim.lr=1,2", "only paths and names"


def test_runs_to_stand_beside_are_one_path_or_a_list_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")

    def against(*words: str) -> object:
        return compose_config("explain", words)["against"]

    assert against("against=runs/a=b") == "runs/a=b"
    assert against("against=[~/x,runs/a=b,2024]") == ["/home/anna/x", "runs/a=b", "2024"]
    assert against("against=['a,b',c]") == ["a,b", "c"]
    assert against(*flatten({"against": [Path("a b"), "c,d"]})) == ["a b", "c,d"]


def test_python_values_become_overrides() -> None:
    keys = {
        "train": {"epochs": np.int64(3), "clip": None, "trackers": ("wandb", "mlflow")},
        "optim": {"lr": 1e-5},
        "arms": {"cnn": {"mean": np.array([0.5, 0.25, 1]), "args": {"layers": list(range(40))}}},
        "data": {"noise": np.bool_(True)},
    }
    config = compose_config("pretrain", flatten(keys))
    assert config["train"]["epochs"] == 3 and config["train"]["clip"] is None
    assert config["train"]["trackers"] == ["wandb", "mlflow"] and config["optim"]["lr"] == 1e-5
    assert config["arms"]["cnn"]["mean"] == [0.5, 0.25, 1.0]
    assert config["arms"]["cnn"]["args"]["layers"] == list(range(40)) and config["data"]["noise"] is True
    assert compose_config("evaluate", flatten({"arm": ["cnn", "vit"]}))["arm"] == ["cnn", "vit"]


@pytest.mark.parametrize(
    ("verb", "words", "full"),
    [
        ("bench", ["compare", "OLD", "NEW"], ["bench=compare", "bench.a=OLD", "bench.b=NEW"]),
        ("bench", ["name=compare", "OLD", "b=NEW"], ["bench=compare", "bench.a=OLD", "bench.b=NEW"]),
        ("bench", ["arms=tiny", "step"], ["bench.arms=tiny", "bench=step"]),
        ("bench", ["step", "compile"], ["bench=step", "compile"]),
        ("study", ["batch_size", "preset=quick"], ["study=batch_size", "preset=quick"]),
        ("compare", ["runs/cass", "runs/dino"], ["A=runs/cass", "B=runs/dino"]),
        ("pretrain", ["~seed", "small"], ["~seed", "small"]),
    ],
)
def test_words_without_a_key_mean_what_the_verb_has_for_them(verb: str, words: list[str], full: list[str]) -> None:
    assert written_out(verb, words) == full


def test_a_word_too_many_is_told() -> None:
    with pytest.raises(ConfigError, match="compile: not an override; write key=value"):
        compose_config("bench", ["step", "compile"])
