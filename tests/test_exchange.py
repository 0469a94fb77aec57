"""How two ranks exchange gradients: what they send and when, and that no setting changes a weight unasked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as td

from cass_scale.cli import compose_config
from cass_scale.measure import traffic
from cass_scale.measure.traffic import Sent, Traffic, hidden, total
from cass_scale.verbs import exchange

ROOT = Path(__file__).parents[1]
FOUR = 4  # bytes of a float32


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `tests.exchanging_ranks` saw: one launch for all tests."""
    out = tmp_path_factory.mktemp("exchange") / "found.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*command, "-m", "tests.exchanging_ranks", str(out)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=240, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(out.read_text())
    return {name: one | {"sent": [Sent(*sent) for sent in one["sent"]]} for name, one in seen.items()}


def gradients(one: dict[str, Any]) -> list[Sent]:
    """The all-reduces of gradients: those of the objective's gatherings come before, in each micro-batch's backward."""
    gathered = [2 * sent.bytes for sent in one["sent"] if sent.what == "all_gather"]
    return [sent for sent in one["sent"] if sent.what == "all_reduce" and sent.bytes not in gathered]


@pytest.mark.dist
@pytest.mark.slow
def test_bucket_views_and_a_static_graph_change_no_bit(found: dict[str, Any]) -> None:
    assert found["plain"]["weights"] == found["fp32"]["weights"] == found["buckets"]["weights"]
    assert not found["plain"]["static"] and found["fp32"]["static"]
    assert found["recompute"]["static"] and found["recompute"]["weights"] == found["plain"]["weights"]


@pytest.mark.dist
@pytest.mark.slow
def test_every_gradient_is_sent_once_and_bf16_halves_the_bytes(found: dict[str, Any]) -> None:
    whole = sum(sent.bytes for sent in gradients(found["fp32"]))
    assert whole == FOUR * found["fp32"]["trained"]
    half = gradients(found["bf16"])
    assert sum(sent.bytes for sent in half) * 2 == whole and {sent.dtype for sent in half} == {"bfloat16"}
    assert found["bf16"]["weights"] != found["fp32"]["weights"]
    assert found["bf16"]["norm"] == pytest.approx(found["fp32"]["norm"], rel=1e-3)


@pytest.mark.dist
@pytest.mark.slow
def test_gradients_leave_while_the_backward_pass_goes_on(found: dict[str, Any]) -> None:
    few, many = gradients(found["fp32"]), gradients(found["buckets"])
    assert 1 < len(few) < len(many) <= FOUR * found["fp32"]["trained"] // 2**20 + 2
    for one in (few, many):
        assert [sent.after for sent in one] == sorted({sent.after for sent in one}), "one after another, not at the end"
    first, last = many[0].after, many[-1].after
    assert last - first > 0.15 * found["buckets"]["operations"], "much is computed between the first and the last"


@pytest.mark.dist
@pytest.mark.slow
def test_accumulation_sends_once_a_step_and_ranks_stay_equal(found: dict[str, Any]) -> None:
    one = found["accumulate"]
    assert not one["static"], "DDP would stop averaging"
    assert sum(sent.bytes for sent in gradients(one)) == FOUR * one["trained"]
    for name, seen in found.items():
        assert len(set(seen["weights"])) == 1, f"{name}: ranks differ"


@pytest.mark.dist
@pytest.mark.slow
def test_dinos_graph_is_static_and_its_teacher_is_not_sent(found: dict[str, Any]) -> None:
    one = found["dino"]
    centre = FOUR * 16
    assert one["static"] and sum(sent.bytes for sent in gradients(one)) == FOUR * one["trained"] + centre


def settings(*words: str) -> Any:
    return exchange.gradients(compose_config("pretrain", list(words))["train"])


def test_what_ddp_is_told() -> None:
    plain = settings()
    assert plain.static_graph and plain.gradient_as_bucket_view and not plain.find_unused_parameters
    assert plain.comm_hook.value == "no" and settings("train.comm=bf16").comm_hook.value == "bf16"
    assert settings("train.bucket_mb=7").bucket_cap_mb == 7
    assert not settings("train.accumulate=2").static_graph and not settings("train.compile=default").static_graph
    assert not settings("method=cass_official").gradient_as_bucket_view, "it never clears its gradients"


def test_what_is_brought_counts_and_what_comes_does_not() -> None:
    store = td.HashStore()
    td.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with Traffic() as seen:
            x = torch.ones(6, dtype=torch.float32)
            td.all_reduce(x)
            td.all_gather([torch.empty(6)], x + 1)
            td.broadcast(x.bfloat16(), 0)
            td.barrier()
    finally:
        td.destroy_process_group()
    assert [(sent.what, sent.bytes, sent.dtype) for sent in seen.sent] == [
        ("all_reduce", 24, "float32"),
        ("all_gather", 24, "float32"),
        ("broadcast", 12, "bfloat16"),
    ]
    afters = [sent.after for sent in seen.sent]
    assert afters == sorted(afters) and seen.operations >= afters[-1] >= 3
    assert total(seen.sent, "all_reduce") == 24 and total(seen.sent, "reduce") == 0


@pytest.mark.parametrize(
    ("sending", "computing", "share"),
    [
        ([(0.0, 4.0)], [(1.0, 2.0), (1.5, 3.0)], 0.5),
        ([(0.0, 1.0), (2.0, 3.0)], [(0.0, 3.0)], 1.0),
        ([(0.0, 2.0), (1.0, 3.0)], [(2.0, 9.0)], 1 / 3),
        ([(0.0, 1.0)], [(1.0, 2.0)], 0.0),
        ([], [(0.0, 1.0)], 0.0),
    ],
)
def test_time_that_hides_counts_once(sending: list[traffic.Span], computing: list[traffic.Span], share: float) -> None:
    assert hidden(sending, computing) == pytest.approx(share)


@pytest.mark.gpu
@pytest.mark.dist
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_gpus_most_of_the_exchange_hides_behind_the_backward_pass() -> None:
    words = ["arms=paper_random", "method=cass", "train.batch_size=32"]
    job = {"words": words, "ranks": 2, "cores": 1, "warmup": 5, "steps": 3, "sizes": [2**20], "repeats": 3}
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "cass_scale.measure.ranks"]
    done = subprocess.run(
        [sys.executable, *launch, json.dumps(job)], capture_output=True, text=True, timeout=280, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["hidden"] > 0.5
