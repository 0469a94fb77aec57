"""bench name=step: the loop's own step is timed, shares of peaks are right, the largest batch is found."""

from __future__ import annotations

import pytest
import torch

from cass_scale import encoders
from cass_scale.cli import compose_config
from cass_scale.encoders import ArmSpec
from cass_scale.measure import fit, peaks, step
from cass_scale.measure.steps_table import as_csv, rows, table
from cass_scale.types import JSON
from cass_scale.verbs import wire

SMALL = ["arms=tiny", "arms.image_size=32", "train.device=cpu", "train.precision=fp32", "train.batch_size=4"]


def job(*words: str, **keys: float) -> JSON:
    return {"words": [*SMALL, *words], "steps": 4, "warmup": 1, "seconds": 60.0, **keys}


@pytest.mark.parametrize("words", [[], ["train.recompute=true", "optim.fused=false"]])
def test_a_side_times_the_loops_own_step(words: list[str]) -> None:
    result = step.child(job(*words))
    assert len(result["times"]) == 4 and min(result["times"]) > 0
    assert result["batch"] == 4 and result["precision"] == "fp32" and result["image_size"] == 32
    assert result["flops_per_image"] > 1e6 and result["parameters"] > 1e5 and result["joules"] is None


def test_time_is_up_after_three_steps() -> None:
    assert len(step.child(job(seconds=1e-9))["times"]) == 3


def test_training_moves_the_weights() -> None:
    stepper = step.Stepper(compose_config("pretrain", SMALL))
    before = {key: x.clone() for key, x in stepper.model.state_dict().items()}
    stepper(stepper.images(4))
    after = stepper.model.state_dict()
    assert stepper.at.step == 1 and sum(not torch.equal(before[key], after[key]) for key in before) > 10


def test_the_step_of_a_baseline_is_whole() -> None:
    few = ["arms.vit.args.depth=1", "arms.global_size=32", "arms.local_size=16", "method.head.prototypes=16"]
    stepper = step.Stepper(compose_config("pretrain", [*SMALL, *few, "method=dino", "arm=vit", "train.recompute=true"]))
    before = {key: x.clone() for key, x in stepper.model.state_dict().items()}
    stepper(stepper.images(4))
    moved = [key for key, x in stepper.model.state_dict().items() if not torch.equal(before[key], x)]
    assert "centre" in moved and {key.split(".")[0] for key in moved} == {"centre", "student", "teacher"}
    result = step.child(job("method=supervised", "arm=cnn"))
    assert result["models"] == ["resnet10t"] and result["flops_per_image"] > 1e6


def test_recompute_gives_the_same_gradients_and_leaves_batchnorm_alone() -> None:
    models = []
    for words in ([], ["train.recompute=true"]):
        stepper = step.Stepper(compose_config("pretrain", [*SMALL, *words]))
        torch.manual_seed(0)
        stepper(stepper.images(4))
        models.append(stepper.model.state_dict())
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    encoders = stepper.model.encoders()
    assert encoders["vit"].body.grad_checkpointing and not getattr(encoders["cnn"].body, "grad_checkpointing", False)


@pytest.mark.slow
def test_a_compiled_body_is_the_same_within_rounding() -> None:
    """Names of parameters stay too: exports and checkpoints do not know that it was compiled."""
    spec, images = ArmSpec("vit_tiny_patch16_224", args={"depth": 1}), torch.rand(2, 3, 32, 32)
    plain, compiled = (encoders.build(spec, 32, 0)[0] for _ in range(2))
    wire.speed_up(compiled, {"channels_last": False, "recompute": False, "compile": "default"})
    for encoder in (plain, compiled):
        encoder(images).square().sum().backward()
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    assert torch.allclose(plain(images), compiled(images), atol=1e-5)
    pairs = zip(plain.parameters(), compiled.parameters(), strict=True)
    assert all(torch.allclose(one.grad, other.grad, atol=1e-3) for one, other in pairs)


@pytest.mark.parametrize(
    ("name", "precision", "want"),
    [
        ("Quadro RTX 8000", "fp16", 130.5e12),
        ("Quadro RTX 8000", "bf16", None),
        ("NVIDIA H200", "bf16", 989.4e12),
        ("NVIDIA A10", "tf32", 62.5e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA L4", "fp32", 30.3e12),
        ("Tesla V100-PCIE-16GB", "fp16", 112e12),
        ("A card of tomorrow", "bf16", None),
    ],
)
def test_a_card_is_known_by_its_name_and_an_unknown_one_is_not_guessed(
    name: str, precision: str, want: float | None
) -> None:
    assert peaks.peak(name, precision) == want


@pytest.mark.parametrize("limit", [1, 2, 3, 17, 100, 1000])
def test_the_largest_that_fits_is_found_to_a_sixteenth(limit: int) -> None:
    found = fit.largest(lambda n: n <= limit)
    assert found <= limit and (found == 0) == (limit < fit.SMALLEST) and limit - found <= max(1, limit // 16 + 1)


def test_less_memory_fits_less() -> None:
    few, many = (fit.child({"words": SMALL, "memory": size * 2**20}) for size in (200, 800))
    assert few["how"] == "counted" and 2 <= few["batch"] < many["batch"]


def figures() -> JSON:
    one = {
        "times": [0.1, 0.2, 0.1], "warmup": 3.0, "batch": 8, "precision": "bf16", "joules": 24.0, "peak_memory": 2**31,
        "parameters": 2_000_000, "flops_per_image": 1e9, "image_size": 96, "models": ["resnet18", "vit"],
    }  # fmt: skip
    known = {"fp32": None, "tf32": None, "fp16": None, "bf16": None}
    measured = {"name": "cpu", "source": None, "datasheet": known, "matrix_product": {"bf16": 8e11}, "copy": 3e10}
    fitting = {"memory_gib": 48, "sides": {"plain": [{"batch": 96, "how": "by trial"}]}}
    return {"peaks": measured, "sides": {"plain/8": [one], "big/64": [{"error": "out of memory"}]}, "fit": fitting}


def test_shares_of_the_peaks_and_na_where_nothing_is_known() -> None:
    (row,) = rows(figures())
    assert row["train_samples_per_sec"] == pytest.approx(80) and row["mfu_measured"] == pytest.approx(0.1)
    assert row["mfu_datasheet"] is None and row["joule_per_sample"] == 1.0
    text = table(figures())
    assert "| plain | 8 | bf16 | 80.00 (40.00 to 80.00) | 3 | n/a | 10 % | 2.0 | 1.00 | 3.0 |" in text
    assert "| big | 64 | failed: out of memory |" in text
    assert "Largest batch in 48 GiB: plain 96 (by trial)." in text


def test_the_csv_has_timms_columns() -> None:
    head, line = as_csv(figures()).splitlines()
    assert head.startswith("model,variant,train_samples_per_sec,train_step_time,train_batch_size,train_img_size")
    assert line.startswith("resnet18+vit,plain,80.0,100.0,8,96,2.0,bf16,1.0,")
