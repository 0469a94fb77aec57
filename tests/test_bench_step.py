"""bench name=step: the loop's own step is timed, shares of peaks are right, the largest batch is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cass_scale import bench, encoders
from cass_scale.cli import compose_config
from cass_scale.encoders import ArmSpec
from cass_scale.errors import ConfigError
from cass_scale.measure import fit, peaks, step, variants
from cass_scale.measure.steps_table import OVER, as_csv, rows, table
from cass_scale.types import JSON
from cass_scale.verbs import wire
from tests.short_runs import pictures

SMALL = ["arms=tiny", "arms.image_size=32", "train.device=cpu", "train.precision=fp32", "train.batch_size=4"]
ON_CUDA = ["arms=tiny", "arms.image_size=64", "arms.global_size=64", "arms.local_size=32", "train.device=cuda"]


def job(*words: str, **keys: float) -> JSON:
    return {"config": compose_config("pretrain", [*SMALL, *words]), "steps": 4, "warmup": 1, "seconds": 60.0, **keys}


@pytest.mark.parametrize("words", [[], ["train.recompute=true", "optim.fused=false"]])
def test_a_side_times_the_loops_own_step(words: list[str]) -> None:
    result = step.child(job(*words))
    assert len(result["times"]) == 4 and min(result["times"]) > 0
    assert result["batch"] == 4 and result["precision"] == "fp32" and result["image_size"] == 32
    assert result["flops_per_image"] > 1e6 and result["parameters"] > 1e5 and result["joules"] is None


def test_time_is_up_after_three_steps() -> None:
    assert len(step.child(job(seconds=1e-9))["times"]) == 3


def test_with_images_one_side_waits_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_these(sides: dict[str, list[str]], turns: int, say: object, **_: object) -> dict[str, list[JSON]]:
        left_out = [{"error": "left out"}]
        return {name: [step.child(json.loads(it[1]))] if OVER in name else left_out for name, it in sides.items()}

    monkeypatch.setattr(step, "in_turns", only_these)
    monkeypatch.setattr(step, "measured_peaks", lambda say: figures()["peaks"])
    own = [*(word for word in SMALL[1:] if "batch" not in word), "stream.workers=0"]
    words = [f"bench.words={own}", "bench.steps=3", "bench.batch_sizes=[4]"]
    text = bench("name=step", f"data.path={pictures(tmp_path / 'set', 9)}", *words, quiet=True)["table"]
    (row,) = [line for line in text.splitlines() if line.startswith("| plain, over data.path | 4 | fp32 |")]
    assert 0 < float(row.split(" | ")[7].removesuffix(" %")) < 100


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of processes: every side as in `figures`, and a largest batch."""
    one = figures()["sides"]["plain/8"][0]
    answers = {step.__name__: one, step.FIT: {"batch": 96, "how": "by trial"}}
    monkeypatch.setattr(step, "measured_peaks", lambda say: figures()["peaks"])
    monkeypatch.setattr(step, "in_turns", lambda sides, *_, **__: {k: [answers[w[0]]] for k, w in sides.items()})


def test_the_largest_batch_is_searched_for_variants_that_are_not_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    found = bench("name=step", "bench.only=[plain]", "bench.memory_gib=8", "bench.batch_sizes=[4]", quiet=True)
    assert list(found["figures"]["sides"]) == ["plain/4"]
    assert list(found["figures"]["fit"]["sides"]) == ["plain", "recompute"]


def test_variants_combine_and_names_that_are_none_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "measured_peaks", lambda say: pytest.fail("nothing may start"))
    options = {"variants": {"a": [], "b": ["x=1"], "c": ["y=2"], "a+c": ["z=3"]}, "fit": ["c"], "cuda_only": ["gpu"]}
    timed, searched = variants.chosen(options | {"only": ["b+c", "a", "a+c"]})
    assert timed == {"b+c": ["x=1", "y=2"], "a": [], "a+c": ["z=3"]}
    assert searched == {"b+c": ["x=1", "y=2"], "c": ["y=2"]}
    with pytest.raises(ConfigError, match=r"bench.only: .* no variant quick;(.|\n)*bench.fit: .* variant tiny, wee"):
        bench("name=step", "bench.only=[plain+quick]", "bench.fit=[tiny,wee]", quiet=True)
    with pytest.raises(ConfigError, match=r"train.compile=default contradicts train.compile=reduce"):
        bench("name=step", "bench.cuda_only=[]", "bench.only=[compile+graphs]", quiet=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA has all precisions, or more of them")
def test_what_the_device_lacks_is_told_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    words = ["name=step", "bench.batch_sizes=[4]", "bench.only=[plain,fp16]"]
    text = bench(*words, "bench.cuda_only=[]", quiet=True)["table"]
    assert "| plain | 8 |" in text and "| fp16 | 4 | failed: precision=fp16: this CPU" in text
    with pytest.raises(ConfigError, match=r"bench.only: fp16 need CUDA \(bench.cuda_only\)"):
        bench(*words[:2], "bench.only=[fp16]", quiet=True)
    with pytest.raises(ConfigError, match="precision=fp16: this CPU"):
        bench(*words[:2], "bench.only=[plain]", "bench.words=['train.precision=fp16']", quiet=True)


def test_training_moves_the_weights() -> None:
    stepper = step.Stepper(compose_config("pretrain", SMALL))
    before = {key: x.clone() for key, x in stepper.method.state_dict().items()}
    stepper(stepper.images(4))
    after = stepper.method.state_dict()
    assert stepper.at.step == 1 and sum(not torch.equal(before[key], after[key]) for key in before) > 10


def test_the_step_of_a_baseline_is_whole() -> None:
    few = ["arms.vit.args.depth=1", "arms.global_size=32", "arms.local_size=16", "method.head.prototypes=16"]
    stepper = step.Stepper(compose_config("pretrain", [*SMALL, *few, "method=dino", "arm=vit", "train.recompute=true"]))
    before = {key: x.clone() for key, x in stepper.method.state_dict().items()}
    stepper(stepper.images(4))
    moved = [key for key, x in stepper.method.state_dict().items() if not torch.equal(before[key], x)]
    assert "centre" in moved and {key.split(".")[0] for key in moved} == {"centre", "student", "teacher"}
    result = step.child(job("method=supervised", "arm=cnn"))
    assert result["models"] == ["resnet10t"] and result["flops_per_image"] > 1e6


def test_recompute_gives_the_same_gradients_and_leaves_batchnorm_alone() -> None:
    models = []
    for words in ([], ["train.recompute=true"]):
        stepper = step.Stepper(compose_config("pretrain", [*SMALL, *words]))
        torch.manual_seed(0)
        stepper(stepper.images(4))
        models.append(stepper.method.state_dict())
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    encoders = stepper.method.encoders()
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


KNOWN = {  # as torch.cuda.get_device_name gives it: half precision in TFLOP/s, GB/s
    "Quadro RTX 8000": (130.5, 672), "NVIDIA Quadro RTX 8000": (130.5, 672), "Tesla T4": (65, 320),
    "Tesla V100-PCIE-16GB": (112, 900), "Tesla V100-PCIE-32GB": (112, 900), "Tesla V100-SXM2-16GB": (125, 900),
    "Tesla V100-SXM2-32GB": (125, 900), "A100-SXM4-40GB": (312, 1555), "NVIDIA A100-SXM4-40GB": (312, 1555),
    "NVIDIA A100-PCIE-40GB": (312, 1555), "NVIDIA A100-SXM4-80GB": (312, 2039), "NVIDIA A100 80GB PCIe": (312, 1935),
    "NVIDIA A10": (125, 600), "NVIDIA L4": (121, 300), "NVIDIA L40S": (362, 864), "NVIDIA B200": (2250, 8000),
    "GeForce RTX 3090": (71, 936), "NVIDIA GeForce RTX 3090": (71, 936), "NVIDIA GeForce RTX 4090": (165.2, 1008),
    "NVIDIA H100 80GB HBM3": (989.4, 3350), "NVIDIA H100 PCIe": (756, 2000), "NVIDIA H200": (989.4, 4800),
}  # fmt: skip
OTHERS = (
    "NVIDIA GH200 480GB", "NVIDIA GB200", "NVIDIA H100 NVL", "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    "NVIDIA A100-SXM4-80GB MIG 3g.40gb", "Tesla V100S-PCIE-32GB", "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA H200 NVL", "NVIDIA A10G", "NVIDIA L40",
    "NVIDIA T4G", "GRID T4-16Q", "NVIDIA A100X", "Quadro RTX 8000 with Max-Q Design", "A card of tomorrow",
)  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_a_card_is_known_by_its_name(name: str) -> None:
    card = peaks.datasheet(name)
    assert card and (card.fp16, card.bandwidth) == KNOWN[name]


def test_every_card_of_the_table_has_a_name_that_torch_gives() -> None:
    assert {peaks.datasheet(name) for name in KNOWN} == {card for _, card in peaks.CARDS}


@pytest.mark.parametrize("name", OTHERS)
def test_a_card_that_only_sounds_like_one_of_the_table_is_not_guessed(name: str) -> None:
    assert peaks.datasheet(name) is None and peaks.peak(name, "bf16") is None


@pytest.mark.parametrize(
    ("name", "precision", "want"),
    [
        ("Quadro RTX 8000", "bf16", None),
        ("NVIDIA A10", "tf32", 62.5e12),
        ("NVIDIA L4", "fp32", 30.3e12),
        ("NVIDIA H200", "bf16", 989.4e12),
    ],
)
def test_peaks_are_in_flops_and_none_where_a_card_lacks_the_precision(
    name: str, precision: str, want: float | None
) -> None:
    assert peaks.peak(name, precision) == want


@pytest.mark.parametrize("limit", [1, 2, 3, 17, 100, 1000])
def test_the_largest_that_fits_is_found_to_a_sixteenth(limit: int) -> None:
    found = fit.largest(lambda n: n <= limit)
    assert found <= limit and (found == 0) == (limit < fit.SMALLEST) and limit - found <= max(1, limit // 16 + 1)


def test_less_memory_fits_less() -> None:
    few, many = (
        fit.child({"config": compose_config("pretrain", SMALL), "memory": size * 2**20}) for size in (200, 800)
    )
    assert few["how"] == "counted" and 2 <= few["batch"] < many["batch"]


def figures() -> JSON:
    one = {
        "times": [0.1, 0.2, 0.1], "warmup": 3.0, "batch": 8, "precision": "bf16", "joules": 24.0, "peak_memory": 2**31,
        "parameters": 2_000_000, "flops_per_image": 1e9, "image_size": 96, "models": ["resnet18", "vit"],
    }  # fmt: skip
    known = {"fp32": None, "tf32": None, "fp16": None, "bf16": None}
    measured = {"name": "cpu", "source": None, "datasheet": known, "matrix_product": {"bf16": 8e11}, "copy": 3e10}
    fitting = {"memory_gib": 48, "sides": {"plain": [{"batch": 96, "how": "by trial"}]}}
    over = {f"plain{OVER}/8": [one | {"spans": {"data": 0.1}}]}
    return {
        "peaks": measured,
        "sides": {"plain/8": [one], **over, "big/64": [{"error": "out of memory"}]},
        "fit": fitting,
    }


def test_shares_of_the_peaks_and_na_where_nothing_is_known() -> None:
    row, streamed = rows(figures())
    assert row["data_wait"] is None and streamed["data_wait"] == pytest.approx(0.25)
    assert row["train_samples_per_sec"] == pytest.approx(80) and row["mfu_measured"] == pytest.approx(0.1)
    assert row["mfu_datasheet"] is None and row["joule_per_sample"] == 1.0
    text = table(figures())
    assert "| plain | 8 | bf16 | 80.00 (40.00 to 80.00) | 3\\* | n/a | 10 % |  | 2.0 | 1.00 | 3.0 |" in text
    assert "| plain, over data.path | 8 | bf16 | 80.00 (40.00 to 80.00) | 3\\* | n/a | 10 % | 25.0 % | 2.0 |" in text
    assert "| big | 64 | failed: out of memory |" in text
    assert "Largest batch in 48 GiB: plain 96 (by trial)." in text


def test_a_row_of_few_timed_steps_is_marked() -> None:
    few = figures()
    assert "\\* fewer than 20 timed steps" in table(few)
    for results in few["sides"].values():
        results[0] |= {"times": [0.1] * 20} if "times" in results[0] else {}
    assert "10.00) | 20 |" not in table(few) and "| 20 |" in table(few) and "\\*" not in table(few)


def test_tf32_has_a_measured_peak_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card that has it: by float32 products that may round, and the flag is as it was afterwards."""
    flag = torch.backends.cuda.matmul

    def product(device: torch.device, dtype: torch.dtype) -> float:
        return 2.0 if dtype == torch.float32 and flag.allow_tf32 else 1.0

    monkeypatch.setattr(peaks, "matrix_product", product)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert peaks.matrix_products(torch.device("cuda")) == {"fp32": 1.0, "bf16": 1.0, "fp16": 1.0, "tf32": 2.0}
    assert not flag.allow_tf32
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "tf32" not in peaks.matrix_products(torch.device("cuda"))
    assert set(peaks.matrix_products(torch.device("cpu"))) == {"fp32", "bf16"}


def test_the_csv_has_timms_columns() -> None:
    head, line, _ = as_csv(figures()).splitlines()
    assert head.startswith("model,variant,train_samples_per_sec,train_step_time,train_batch_size,train_img_size")
    assert line.startswith("resnet18+vit,plain,80.0,100.0,8,96,2.0,bf16,1.0,")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["fp16", "fp32"])
def test_a_side_on_cuda_tells_its_parts_apart(name: str) -> None:
    config = compose_config("pretrain", [*ON_CUDA, "method=dino_small", "arm=vit", f"train.precision={name}"])
    result = step.child({"config": config, "steps": 4, "warmup": 2, "seconds": 60.0})
    assert result["optimizer"] > 0 and result["spans"]["after"] > 0 and result["spans"]["views"] > 0
    assert sum(result["spans"].values()) < 1.1 * sum(result["times"])
