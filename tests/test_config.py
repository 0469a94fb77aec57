"""The configuration: every file composes, every problem is reported at once, no quiet defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cass_scale.cli import build, compose_config, config_dir, main
from cass_scale.errors import ConfigError, Problems
from cass_scale.types import ViewSpec
from cass_scale.verbs import rules, settings
from cass_scale.words import flatten

LEAVES = sorted(config_dir().glob("*/*.yaml"))  # what lies deeper is no choice, but part of one
VERB_OF = {"protocol": "evaluate", "bench": "bench", "study": "study"}


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_leaf_composes_and_says_where_its_numbers_come_from(leaf: Path) -> None:
    group = leaf.parent.name
    needs_path = group == "data" and "path: ???" in leaf.read_text()
    words = [f"{group}={leaf.stem}"] + (["data.path=somewhere"] if needs_path else [])
    config = compose_config(VERB_OF.get(group, "pretrain"), words)
    assert config[group]
    assert "# run:     " in leaf.read_text(), "a leaf is a lab notebook: it gives the command that runs it"


@pytest.mark.parametrize(
    "leaf",
    [p for p in LEAVES if p.parent.name in ("method", "arms", "objective", "views")],
    ids=lambda p: p.stem,
)
def test_shipped_values_pass_their_own_checks(leaf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("resnet18.tv_in1k_nofc", "vit_small_patch14_reg4_dinov2.mr_tuned"):
        (tmp_path / f"{name}.safetensors").touch()  # arms=small names files
    monkeypatch.setenv("CASS_SCALE_WEIGHTS", str(tmp_path))
    config = compose_config("pretrain", [f"{leaf.parent.name}={leaf.stem}"])
    problems = Problems()
    settings.check_values(config, rules.PRETRAIN, problems)
    specs = settings.check_arms(config, problems)
    assert problems.found == []
    assert len(specs) == 2
    assert isinstance(build(config["views"]), ViewSpec)
    assert callable(build(config["objective"]))


def test_methods_are_what_they_say() -> None:
    paper, official, null, contrast = (
        compose_config("pretrain", [f"method=cass_{m}"]) for m in ("paper", "official", "null", "contrast")
    )
    assert paper["swa"]["enabled"] and paper["method"]["noise_rule"] and paper["normalise"] == "imagenet"
    assert paper["views"]["crops"][0]["stages"][0]["choose"] == "one"
    assert official["train"]["clear_gradients"] is False and not official["swa"]["enabled"]
    assert null["method"]["frozen"] is True
    assert contrast["objective"]["_target_"].endswith("infonce") and contrast["optim"]["lr"] == 1e-4
    assert contrast["schedule"]["kind"] == "cosine"


def test_command_line_wins_over_a_method() -> None:
    config = compose_config("pretrain", ["method=cass_contrast", "objective=vicreg", "optim.lr=0.5"])
    assert config["objective"]["_target_"].endswith("vicreg")
    assert config["optim"]["lr"] == 0.5


def test_all_problems_at_once_each_with_what_would_work() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(
            "pretrain", ["method=casss", "train.batchsize=3", "optim.l=3", "train.epochs=3", "train.epochs=4"]
        )
    assert len(caught.value.problems) == 4
    text = str(caught.value)
    assert "did you mean cass?" in text
    assert "unknown key train.batchsize; did you mean train.batch_size?" in text
    assert "train.epochs=3 contradicts train.epochs=4" in text


def test_values_out_of_range_are_named_together() -> None:
    config = compose_config("pretrain", ["train.batch_size=abc", "optim.lr=-1", "train.precision=int8", "swa.start=2"])
    problems = Problems()
    settings.check_values(config, rules.PRETRAIN, problems)
    assert [p.split("=")[0] for p in problems.found] == [
        "train.batch_size",
        "train.precision",
        "optim.lr",
        "swa.start",
    ]
    assert "one of auto, fp32, tf32, fp16, bf16" in "\n".join(problems.found)


def test_data_path_implies_the_folder_source_and_contradicts_embedded_data() -> None:
    assert compose_config("pretrain", ["data.path=x"])["data"]["_target_"].endswith("folder")
    with pytest.raises(ConfigError, match="embedded data have no path"):
        compose_config("pretrain", ["data=phantom", "data.path=x"])


def test_a_missing_path_is_named() -> None:
    with pytest.raises(ConfigError, match="path"):
        compose_config("pretrain", ["data=folder"])


@pytest.mark.parametrize(
    ("verb", "word", "expected"),
    [
        ("pretrain", "train", "key=value"),
        ("pretrain", "train=3", "train is a section; set its keys one by one: train.batch_size"),
        ("pretrain", "~train.clip", "keys cannot be taken out"),
        ("pretrain", "optim.lr=1,2", "optim.lr=1,2: one value at a time"),
        ("pretrain", "optim.lr=ü", "not an override"),
        ("pretrain", "method@x=cass", "method@x"),
        ("pretrain", "optim.lr=${nope}", "Interpolation key 'nope' not found"),
        ("pretrain", "data.name=\udcff", "not UTF-8"),
        ("report", "data.path=x", "unknown key data.path; top-level keys are runs, out"),
    ],
)
def test_words_that_are_no_overrides(verb: str, word: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(verb, [word])
    assert expected in str(caught.value)


def test_options_may_stand_between_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--quiet", "runs=a", "--dry-run", "out=b"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["report", "runs=a", "--nope"])
    assert "unrecognized arguments: --nope" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["doctor", "seconds=abc"], ["report", "runs=null"], ["report", "out="]])
def test_values_of_the_small_verbs_are_checked(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["arms.cnn.model=resnet9000"], "timm has no such model"),
        (["arms.cnn.model=resnet18.a1_in1k"], "arms.cnn.weights=a1_in1k"),
        (["arms.cnn.model=resnet18", "arms.cnn.weights=a9"], "it has: a1_in1k"),
        (["arms.cnn.weights=nowhere.safetensors"], "no such file"),
        (["arms.image_size=100"], "patches of 16 px; use 96 or 112"),
        (["arms.cnn.optimizer=lion"], "adam, adamw or sgd"),
        (["arm=rnn"], "arm=rnn: arms has cnn, vit"),
        (["arms.cnn.outputs=0"], "arms.cnn.outputs=0: a whole number"),
        (["arms.cnn.mean=3"], "arms.cnn.mean=3: a list of 3 numbers"),
        (["arms.cnn.args=3"], "arms.cnn.args=3: a section"),
        (["arms.cnn.model=3"], "arms.cnn.model=3: a name"),
    ],
)
def test_arms(words: list[str], expected: str) -> None:
    problems = Problems()
    config = compose_config("pretrain", words)
    settings.check_arms(config, problems)
    assert expected in "\n".join(problems.found)


def test_twin_keys_become_the_same_overrides() -> None:
    keys = {
        "method": "cass",
        "train": {"epochs": 2, "max_steps": None, "trackers": ["wandb"]},
        "data": {"path": "a b", "noise": True},
    }
    assert flatten(keys) == [
        "method=cass", "train.epochs=2", "train.max_steps=null", "train.trackers=[wandb]", "data.path=a b",
        "data.noise=true",
    ]  # fmt: skip
    assert compose_config("pretrain", flatten(keys))["data"]["path"] == "a b"


def test_every_root_key_of_pretrain_has_a_rule_or_a_group() -> None:
    root = yaml.safe_load((config_dir() / "pretrain.yaml").read_text())
    ruled = set(rules.PRETRAIN) | {"run.dir"}
    leaves = {f"{k}.{s}" for k, v in root.items() if isinstance(v, dict) for s in v} | {
        k for k, v in root.items() if not isinstance(v, dict | list)
    }
    assert leaves <= ruled, "a key without a rule takes any value silently"


@pytest.mark.parametrize("leaf", [p for p in LEAVES if p.parent.name == "protocol"], ids=lambda p: p.stem)
def test_protocols_pass_their_own_checks_and_bear_their_own_name(leaf: Path) -> None:
    config = compose_config("evaluate", [f"protocol={leaf.stem}", "run.dir=somewhere"])
    problems = Problems()
    settings.check_values(config, rules.EVALUATE, problems)
    settings.check_amounts(config, problems)
    assert problems.found == [] and config["protocol"]["name"] == leaf.stem
    assert isinstance(build(config["views"]), ViewSpec)
    keys = {f"protocol.{key}" for key in config["protocol"]} - {"protocol.name", "protocol.grid"}
    assert keys <= rules.EVALUATE.keys(), "a key without a rule takes any value silently"


@pytest.mark.parametrize(("verb", "ruled"), [("evaluate", rules.EVALUATE), ("compare", rules.COMPARE)])
def test_every_root_key_has_a_rule(verb: str, ruled: dict[str, rules.Rule]) -> None:
    root = yaml.safe_load((config_dir() / f"{verb}.yaml").read_text())
    leaves = {f"{k}.{s}" for k, v in root.items() if isinstance(v, dict) for s in v}
    leaves |= {k for k, v in root.items() if not isinstance(v, dict) and k != "defaults"}
    assert leaves - ruled.keys() <= {"arm", "out"}, "those two are checked by the verb"
