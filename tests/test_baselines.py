"""The baselines through the verbs: DINO's recipes for each arm, and supervised training with the labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cass_scale import checkpoint, encoders, evaluate, pretrain, records
from cass_scale.cli import build, compose_config, main
from cass_scale.errors import ConfigError, DataError
from cass_scale.verbs import settings, wire
from tests.short_runs import WORDS, pictures, short

TINY = ("arms.global_size=32", "arms.local_size=16", "method.head.prototypes=64", "method.head.hidden=32")


DINO = ("method=dino", "arm=vit", "arms.vit.args.depth=2", *TINY)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "dino"
    short(run, *DINO)
    return run


def test_a_run_of_dino_leaves_the_teacher_as_the_arm_and_says_so(done: Path) -> None:
    record = records.read(done)
    assert record["arms"] == {"vit": {"model": "vit_tiny_patch16_224", "weights": "random"}}
    assert (record["method"], record["objective"]) == ("dino", "dino")
    assert record["exported"].startswith("the teacher") and record["flops_per_image"] > 1e8
    state = checkpoint.load(done / "checkpoints/step_00000003.pt")["model"]
    for name, part in (("vit", "teacher"), ("vit_student", "student")):
        exported = load_file(done / f"export/{name}.safetensors")
        assert all(exported[key].equal(state[f"{part}.encoder.body.{key}"]) for key in exported)
    assert "drop_path_rate" not in encoders.load_export(done / "export/vit.safetensors").spec.args
    rows = records.read_metrics(done / records.METRICS)
    assert {"probe/vit/output_std", "probe/vit/rankme_features", "probe/lowest_rankme"} <= rows[0].keys()
    assert 0 < rows[1]["teacher_entropy"] <= 1 and rows[1]["loss"] > 1
    assert Image.open(done / "samples.png").size == (8 * 32, 11 * 32), "the images and ten views, the small ones framed"


def test_it_is_scored_like_any_other_run_and_the_student_on_request(done: Path) -> None:
    for weights in ("run", "initial"):
        scored = evaluate(f"run.dir={done}", f"weights={weights}", "device=cpu", quiet=True)
        assert list(scored["arms"]) == ["vit"]
    assert list(evaluate(f"run.dir={done}", "arm=vit_student", "device=cpu", quiet=True)["arms"]) == ["vit_student"]
    with pytest.raises(ConfigError, match=r"this run has vit$"):
        evaluate(f"run.dir={done}", "arm=vit_student", "weights=initial", "device=cpu", quiet=True)
    tuned = ("protocol=finetune", "protocol.epochs=1", "protocol.batch_size=4", "device=cpu", "precision=fp32")
    assert list(evaluate(f"run.dir={done}", *tuned, quiet=True)["arms"]) == ["vit"]
    with pytest.raises(ConfigError, match="views=nope: no such choice"):
        evaluate(f"run.dir={done}", *tuned, "views=nope", quiet=True)


@pytest.mark.parametrize("method", ["dino_small", "dino_paper", "dino_resnet"])
def test_every_recipe_runs_and_says_what_its_steps_cost(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {word.split("=")[0]: word for word in [*WORDS, *TINY, f"method={method}", "arm=cnn"]}
    record = pretrain(*words.values(), f"run.dir={tmp_path / 'run'}")
    assert record["status"] == "done" and list(record["arms"]) == ["cnn"]
    assert f"images/s x {record['flops_per_image'] / 1e9:.3g} GFLOP per image = " in capsys.readouterr().err


def test_a_run_that_stops_ends_with_the_same_bits(tmp_path: Path) -> None:
    words = (*DINO, "train.accumulate=2", "method.ema=0.5")
    states = []
    for name, stops in (("whole", (4,)), ("broken", (1, 4))):  # prototypes rest in the first epoch, of 3 steps
        for stop in stops:
            short(tmp_path / name, *words, f"train.max_steps={stop}")
        states.append(checkpoint.load(tmp_path / name / "checkpoints/step_00000004.pt"))
    one, other = ((state["model"], state["optimizer"]["state"]) for state in states)
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert states[0]["model"]["centre"].abs().sum() > 0


def test_an_arm_alone_starts_from_the_weights_that_it_has_beside_the_other() -> None:
    bodies = []
    for words in ((), (*DINO, "transformer_args.drop_path_rate=0.3"), ("method=supervised", "arm=vit")):
        config = compose_config("pretrain", ["arms.image_size=32", "arms.vit.args.depth=2", *words])
        method = wire.make_method(config, build, settings.arm_specs(config))
        bodies.append(method.encoders()["vit"].body.state_dict())
    assert all(torch.equal(bodies[0][key], other[key]) for other in bodies[1:] for key in bodies[0])


def test_the_learning_rate_is_for_the_batch_and_the_decay_grows() -> None:
    config = compose_config("pretrain", ["method=dino", "train.batch_size=16"])
    rates = wire.make_rates(config)
    peak = rates(wire.Progress(0, 10, 160, 1600))
    assert peak.lr == pytest.approx(5e-4 / 16) and 0.04 < peak.weight_decay < 0.05
    assert rates(wire.Progress(0, 100, 1600, 1600)) == pytest.approx((1e-6, 0.4))


def test_supervised_trains_both_arms_or_one_on_labelled_images_alone(tmp_path: Path) -> None:
    record = short(tmp_path / "both", "method=supervised")
    assert record["status"] == "done" and record["objective"] == "focal" and set(record["arms"]) == {"cnn", "vit"}
    weight = checkpoint.load(tmp_path / "both/checkpoints/step_00000003.pt")["model"]["arms.vit.head.weight"]
    assert len(weight) == len(record["data"]["classes"])
    scored = evaluate(f"run.dir={tmp_path / 'both'}", "device=cpu", quiet=True)["arms"]
    assert set(scored) == {"cnn", "vit", "both", "ensemble"}
    images = pictures(tmp_path / "images", 12)
    rows = [f"{i}.png,{'ab'[i % 2] if i < 8 else ''},train" for i in range(12)]
    (images / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    words = (f"data.path={images}", "train.max_steps=null", "train.epochs=1")
    assert short(tmp_path / "one", "method=supervised", "arm=cnn", *words)["steps"] == 2, "8 of 12 images, 4 a step"
    assert short(tmp_path / "all", "method=cass", *words)["steps"] == 3


def test_supervised_without_labels_says_what_would_work(tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", 9)
    with pytest.raises(DataError, match=r"no labelled training images.*labels\.csv"):
        short(tmp_path / "run", "method=supervised", f"data.path={images}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=dino"], "arms: cnn, vit; DINO trains one encoder: choose it with arm=cnn or arm=vit"),
        (["method=dino", "arm=rnn"], "arm=rnn: arms has cnn, vit"),
        (["arm=vit"], "arms: 1 arms (vit); CASS compares exactly two"),
        (["arms.vit.outputs=7"], "the objective compares outputs of one width"),
        (["views=dino"], "views: 10 views for 2 arms; give 1 to share, or 1 per arm"),
        (["objective=dino"], "objective=dino: CASS works with barlow, cosine, infonce, sinkhorn, vicreg"),
        (["method=dino", "arm=vit", "objective=infonce"], "objective=infonce: DINO works with dino"),
        (["method=dino", "arm=vit", "arms.local_size=20"], "views.crops[2].size=20: vit_tiny_patch16_224 has patches"),
        (["method=dino_paper", "arm=vit", "views=dino"], "is built for 32 px; use that, or args.dynamic_img_size=true"),
        (["method=dino", "arm=cnn", "swa.enabled=true"], "swa.enabled=true: method=dino exports a running mean"),
        (["method=dino", "arm=cnn", "method.ema=2"], "method.ema=2: a number from 0 to 1"),
        (["method=dino", "arm=cnn", "method.sees=none"], "method.sees=none: one of all, locals"),
    ],
)
def test_what_contradicts_is_refused_before_anything_is_touched(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {word.split("=")[0]: word for word in [*WORDS, *TINY[:2], *words]}
    assert main(["pretrain", *chosen.values(), f"run.dir={tmp_path / 'run'}"]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_the_cost_of_a_step_can_be_left_uncounted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {word.split("=")[0]: word for word in [*WORDS, "train.max_steps=1", "train.count_flops=false"]}
    assert pretrain(*words.values(), f"run.dir={tmp_path / 'run'}")["flops_per_image"] is None
    said = capsys.readouterr().err
    assert "images/s per device" in said and "GFLOP" not in said


def test_a_body_that_cannot_be_counted_names_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*_: object) -> None:
        raise NotImplementedError("aten::odd")

    monkeypatch.setattr("cass_scale.verbs.wire.estimate", fails)
    with pytest.raises(ConfigError, match=r"aten::odd.*train\.count_flops=false"):
        short(tmp_path / "run")
