"""bench name=scaling: a machine that follows the model is predicted exactly; tables, advice, memory, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as td
from torch import nn

from cass_scale import bench, machine, records
from cass_scale.cli import compose_config
from cass_scale.errors import CassScaleError, ConfigError
from cass_scale.estimate import SPREADS, Estimate, held
from cass_scale.measure import ranks, scaling
from cass_scale.measure.alphabeta import Cluster, Link, Work, step
from cass_scale.measure.memory_table import memory_rows, memory_table
from cass_scale.measure.predict import forecast, parameters
from cass_scale.measure.scaling_table import prediction
from cass_scale.measure.step import Stepper
from cass_scale.types import JSON

MIB = 2**20
LINK = Link(1e-4, 1e9)
GRADIENTS, GATHERED = 30 * MIB, 4096
COST = Estimate(406e9, parameters=112_000_000, trained=112_000_000, buffer_bytes=0, activation_bytes=2**30)


def side(name: str) -> JSON:
    """What a machine tells that follows the model, where computing takes 25 ms per image and half of all hides."""
    number, batch = map(int, name.split("x"))
    nodes = Cluster(number, LINK, LINK)
    work = Work(0.025 * batch, GRADIENTS, 25 * MIB, 0.5, buffers=1000, gathers=2, gathered=GATHERED * batch)
    alone = step(Work(work.compute, 0, 1, 0, 1000, 2, work.gathered), nodes, number) if number > 1 else work.compute
    gathers = [["all_gather", GATHERED * batch, "float32", 90]] * 2
    back = [["all_reduce", number * GATHERED * batch, "float32", 100]] * 2
    own = [["all_reduce", GRADIENTS - MIB, "float32", 150], ["all_reduce", MIB, "float32", 180]]
    sizes = [4096, MIB, 16 * MIB]
    return {
        "steps": {"exchanged": [step(work, nodes, number)] * 3, "alone": [alone] * 3},
        "sent": [["broadcast", 1000, "float32", 5], *gathers, *back, *own] if number > 1 else [],
        "operations": 200,
        "hidden": None,
        "latencies": {str(n): [nodes.all_reduce(number, n)] * 3 for n in sizes} if number > 1 else {},
        "held": {"weights": 3 * MIB, "gradients": 3 * MIB, "moments": 6 * MIB},
        "precision": "fp32",
    }


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(scaling, "in_turns", lambda sides, turns, say: {name: [side(name)] * turns for name in sides})
    monkeypatch.setattr(scaling, "counted", lambda words, batch: COST)


def run(*words: str, **keys: Any) -> JSON:
    return bench("name=scaling", "bench.predict.arms=tiny", *words, quiet=True, **keys)


def test_a_machine_that_follows_the_model_is_predicted_exactly(four_cores: None, tmp_path: Path) -> None:
    found = run("bench.ranks=[1,2,4]", f"out={tmp_path / 'record'}")
    figures = found["figures"]
    assert figures["fit"]["link"] == pytest.approx({"alpha": LINK.alpha, "beta": LINK.beta})
    assert figures["model"]["overlap"] == pytest.approx(0.5, abs=0.02)
    rows = figures["model"]["rows"]
    assert set(rows) == {"2x16", "2x8", "4x16", "4x4"}
    assert max(abs(row[kind]) for row in rows.values() for kind in ("error", "error_of_exchange")) < 0.01
    for told in (
        "| 2 | 16 | 2.40 (2.40 to 2.40) | 76.7 | 96 % |",
        "Gradients leave after 75, 90 % of the step's 200 operations.",
        "holds 3.0 MiB of weights (427.2), 3.0 of gradients (427.2), 6.0 of moments (854.5)",
    ):
        assert told in found["table"]
    assert records.read_json(tmp_path / "record" / "run.json")["figures"]["ranks"] == [1, 2, 4]


def test_sides_of_both_series_and_one_rank_beside_them(four_cores: None) -> None:
    options = compose_config("bench", ["name=scaling"])["bench"]
    made = dict(scaling.launches(options, [1, 2, 4], ["arms=tiny"]))
    assert set(made) == {"1x16", "1x8", "1x4", "2x16", "2x8", "4x16", "4x4"}
    job = json.loads(made["4x4"][-1])
    assert job["words"] == ["arms=tiny", "train.batch_size=16"] and job["cores"] == 1 and job["sizes"] == []
    assert "--nproc_per_node=4" in made["4x16"] and json.loads(made["4x16"][-1])["sizes"] == options["sizes"]
    assert made["1x4"][0] == "cass_scale.measure.ranks", "one rank needs no launcher"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench.ranks=[1,8]"], r"bench.ranks=\[1, 8\]: give 1 and others up to 4, the cores of this machine"),
        (["bench.ranks=[2,4]"], r"bench.ranks=\[2, 4\]: give 1"),
        (["bench.ranks=[1,2]", "bench.batch=3"], r"bench.batch=3: give a number"),
        (["bench.predict.card=Abacus"], r"bench.predict.card=Abacus: no bf16 peak is known"),
        (
            ["bench.predict.between.tcp_1x25.beta_gbs=0"],
            r"of every network alpha_us of at least 0 and beta_gbs",
        ),
        (["bench.predict.overlap=2", "bench.steps=1"], r"2 problems(.|\n)*bench.predict.overlap=2(.|\n)*"),
    ],
)
def test_what_cannot_be_measured_is_refused(four_cores: None, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(*words)


def test_a_launcher_too_many_and_one_too_few(
    four_cores: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="2 ranks were asked for and 1 came"):
        ranks.main({"ranks": 2})
    assert json.loads(capsys.readouterr().out)["error"].startswith("rank 0: ConfigError")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="run it without torchrun"):
        run()


def test_a_side_that_fails_ends_it(four_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "in_turns", lambda sides, turns, say: {name: [{"error": "rank 1"}] for name in sides})
    with pytest.raises(CassScaleError, match="bench name=scaling: rank 1"):
        run()


NOTHING = {"gathers": 0, "gathered_per_image": 0}


def options(**keys: Any) -> JSON:
    found: JSON = compose_config("bench", ["name=scaling"])["bench"]["predict"] | keys
    return found


def test_every_parameter_says_where_it_comes_from() -> None:
    measured = NOTHING | {"mfu": 0.5, "card": "NVIDIA H100 80GB HBM3", "within.alpha_us": 7.0}
    found = parameters(options(overlap=0.25), COST, measured)
    origins = {key: one.origin for key, one in found.items()}
    assert found["overlap"].value == 0.25 and origins["overlap"] == origins["batch"] == "given"
    assert found["within.alpha_us"].value == 7.0 and origins["mfu"] == origins["within.alpha_us"] == "measured"
    assert found["within.beta_gbs"].value == 235 and origins["within.beta_gbs"] == "assumed"
    assert found["step_ms"].value == pytest.approx(1e3 * 32 * 406e9 / (0.5 * 989.4e12))
    assert parameters(options(step_ms=80, card="Abacus"), COST, NOTHING)["step_ms"].value == 80


def test_the_advice_says_where_it_falls_and_what_helps() -> None:
    networks = {"fast": {"alpha_us": 5, "beta_gbs": 400}, "slow": {"alpha_us": 30, "beta_gbs": 8}}
    told = forecast(parameters(options(), COST, NOTHING), networks)
    assert told["fast"]["under"] is None and told["fast"]["weak"][1024] > 0.9
    slow = told["slow"]
    assert slow["under"] == 16 and slow["there"] < 0.9 and slow["weak_unhidden"][16] < slow["weak"][16]
    better = {lever: change["there"] for lever, change in slow["levers"].items()}
    assert better["train.comm=bf16"] > slow["there"] < better["four times train.accumulate"]
    assert set(told["slow"]["strong"]) == {8, 16, 32, 64, 128, 256, 512}, "2 images for each of 512"
    text = prediction({"predicted": told})
    assert "* fast: 90 % or more up to 1,024 GPUs" in text and "* slow: under 90 % from 16 GPUs on" in text
    sixteen = forecast(parameters(options(comm="bf16"), COST, NOTHING), networks)["slow"]
    assert sixteen["weak"][16] > slow["weak"][16] and "train.comm=bf16" not in sixteen["levers"]


def test_memory_by_hand() -> None:
    million = 1_000_000
    by_hand = {"single": 16, "ddp": 16, "zero1": 8 + 1 + 2, "zero2": 4 + 1 + 1 + 2, "zero3": 5, "fsdp2": 4}
    assert {kind: sum(held(million, 0, kind, 4).values()) / million for kind in SPREADS} == by_hand
    assert (
        held(million, million, "zero2", 4)["teacher"]
        == 4 * million
        == 4 * held(million, million, "fsdp2", 4)["teacher"]
    )


def test_memory_of_one_rank_is_what_its_tensors_take() -> None:
    small = ["arms=tiny", "arms.image_size=32", "train.device=cpu", "train.precision=fp32", "method=cass_contrast"]
    stepper = Stepper(compose_config("pretrain", small))
    stepper(stepper.images(4))
    number = sum(p.numel() for p in stepper.method.parameters())
    assert ranks.held(stepper).items() <= held(number, 0).items()


class Pair(nn.Module):
    """A trained and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trained, self.frozen = nn.Linear(64, 64), nn.Linear(64, 64).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.trained(x) + self.frozen(x)


def test_memory_under_fsdp2_is_what_its_shards_take() -> None:
    """On one of four ranks; the other three are not there, so values are wrong and sizes right."""
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    number = 64 * 65
    td.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        model: Any = fully_shard(Pair(), mesh=td.init_device_mesh("cpu", (4,)))
        optimizer = torch.optim.Adam(model.trained.parameters())
        model(torch.ones(2, 64)).sum().backward()
        optimizer.step()
        shards = [p.to_local().nbytes for p in model.parameters()]
        gradients = [p.grad.to_local().nbytes for p in model.trained.parameters()]
        moments = [x.to_local().nbytes for state in optimizer.state.values() for x in state.values() if x.ndim]
    finally:
        td.destroy_process_group()
    formula = held(number, number, "fsdp2", 4)
    assert sum(shards) == formula["weights"] + formula["teacher"]
    assert sum(gradients) == formula["gradients"] and sum(moments) == formula["moments"]


def test_zero_is_worth_it_where_it_frees_a_tenth_of_the_card() -> None:
    costs = {"small": Estimate(1, 10**8, 10**8, 0, 2**33), "large": Estimate(1, 2 * 10**9, 10**9, 0, 2**34)}
    keys = {"arms": {name: [name] for name in costs}, "ranks": 8, "batch": 32, "gib": 80}
    text = memory_table(memory_rows(keys, lambda words: costs[words[0]]))
    assert text.splitlines()[-1].startswith("ZeRO is worth it where ZeRO-2 frees 10 % of the card or more: large.")
    assert "| large | 2,000 | 3.73 | 3.73 | 7.45 | 3.73 |" in text
