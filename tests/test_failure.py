"""Two ranks, and what can happen to one of them: all end, with its name, and the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from cass_scale import checkpoint, pulse, records
from tests.forked import Job
from tests.kills import same_weights, storm

pytestmark = [pytest.mark.dist, pytest.mark.slow]
LIMIT = 60  # seconds in which all ranks must have ended


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    job = Job(run)
    assert job.codes() == [0, 0], job.said(0) + job.said(1)
    return run


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_the_same_command_goes_on(victim: int, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(run)
    job.wait_for("metrics.jsonl", '"step": 5')
    job.send(victim)
    killed = time.monotonic()
    codes = job.codes(LIMIT)
    assert time.monotonic() - killed < LIMIT
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1, job.said(1 - victim)
    assert re.search(rf"rank {victim}( \(process|'s side)", job.said(1 - victim)), job.said(1 - victim)
    assert "Traceback" not in job.said(1 - victim)
    if victim:
        assert records.read(run)["status"] == "failed" and "rank 1 (process" in records.read(run)["error"]
    again = Job(run)
    assert again.codes() == [0, 0], again.said(0)
    same_weights(whole, run)
    assert [row["step"] for row in records.read_metrics(run / records.METRICS)] == [
        row["step"] for row in records.read_metrics(whole / records.METRICS)
    ]


def test_a_signal_to_one_rank_saves_on_all_and_exits_75(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(run, "train.save_every=1000")
    job.wait_for("metrics.jsonl", '"step": 4')
    job.send(1, signal.SIGUSR1)
    assert job.codes() == [75, 75], job.said(0) + job.said(1)
    assert "SIGUSR1 to rank 1: saved at step" in job.said(0)
    (saved,) = (run / "checkpoints").glob("step_*.pt")
    assert records.read(run)["status"] == "preempted"
    assert records.read_metrics(run / records.METRICS)[-1]["step"] == checkpoint.load(saved)["at"]["step"]
    assert Job(run).codes() == [0, 0]
    same_weights(whole, run)


def test_sigterm_during_start_up_exits_75_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(run, sabotage="rank_0_is_slow_to_begin")
    job.wait_for("config.yaml", "")
    job.send(0, signal.SIGTERM)
    assert job.codes() == [75, 75], job.said(0) + job.said(1)
    assert "SIGTERM: ended outside of training" in job.said(0) and "rank 0 ended: SIGTERM" in job.said(1)
    assert not list(run.rglob("*.tmp")) and not list(run.rglob(".*.partial"))


def test_a_loss_that_is_no_number_names_rank_step_and_images_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(run, "method=cass", "train.log_every=50", sabotage="rank_1_sees_nan")  # no other rank sees it
    assert job.codes() == [1, 1]
    found = re.search(r"the loss is nan, first at step 3 on rank 1 \(images ([\d, ]+)\)", job.said(0))
    assert found and len(found[1].split(",")) == 4, job.said(0)
    assert found[0] in job.said(1) and "step_00000002.pt" in [p.name for p in (run / "checkpoints").iterdir()]


@pytest.mark.parametrize(
    ("sabotage", "why"),
    [("the_disk_fills_up", "No space left on device"), ("the_folder_turns_read_only", "Read-only file system")],
)
def test_a_disk_that_takes_nothing_more_ends_all_ranks_and_leaves_the_last_checkpoint_whole(
    sabotage: str, why: str, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = Job(run, sabotage=sabotage)
    job.wait_for("metrics.jsonl", '"step": 3')
    assert job.codes(LIMIT) == [1, 1]
    assert why in job.said(0)
    assert re.search(rf"rank 0 ended: checkpoint .* could not be written \({why}\)", job.said(1)), job.said(1)
    saved = sorted((run / "checkpoints").glob("step_*.pt"))
    assert saved and checkpoint.load(saved[-1])["at"]["step"] >= 2
    assert Job(run).codes() == [0, 0]
    same_weights(whole, run)


def test_a_hung_step_is_reported_with_rank_and_step_and_every_stack(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(run, "train.hang_minutes=0.25", sabotage="rank_1_hangs")
    assert job.codes(LIMIT) == [1, 1]
    why = r"rank 1 has not finished step 3 for \d+ s: it is in views, train\.py:\d+ in update"
    assert re.search(why, job.said(0)) and re.search(why, records.read(run)["error"])
    assert "in views\n" in (run / "logs/rank_1.log").read_text(), "the stack of the rank that hangs"
    assert "in update\n" in (run / "logs/rank_0.log").read_text(), "and of the one that waits for it"


def test_a_start_that_hangs_is_reported_with_where_each_rank_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(run, "train.hang_minutes=0.25", sabotage="rank_1_hangs_at_the_start")
    assert job.codes() == [1, 1]
    why = (
        r"ranks 0, 1 have not begun the first step for \d+ s: "
        r"rank 0 is in between, engine\.py:\d+ in _prepare; rank 1 is in between, pretrain\.py:\d+ in work"
    )
    assert re.search(why, job.said(0)) and re.search(why, records.read(run)["error"])
    assert "in start\n" in (run / "logs/rank_1.log").read_text()


@pytest.mark.parametrize(
    ("beats", "words"),
    [
        ([(3, "step", "a"), (3, "views", "b")], "rank 1 has not finished step 3 for 9 s: it is in views, b"),
        ([(3, "step", "a")] * 2, "ranks 0, 1 have not finished step 3 for 9 s: they are in step, a"),
        (
            [(0, "", "a")] * 11 + [(0, "", "b"), (1, "data", "c")],
            "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 4 more have not begun the first step for 9 s: "
            "rank 11 is in between, b; ranks 0, 1, 2, 3, 4, 5, 6, 7 and 3 more are in between, a",
        ),
    ],
)
def test_who_hangs_in_words(beats: list[tuple[int, str, str]], words: str) -> None:
    heard = [{"rank": r, "step": s, "doing": d, "where": w} for r, (s, d, w) in enumerate(beats)]
    assert pulse._hung(heard, 9.0) == words


def test_ranks_that_are_cut_off_miss_each_other_though_no_collective_fails(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(run, sabotage="rank_1_is_cut_off")
    assert job.codes(LIMIT) == [1, 1]
    for rank in (0, 1):
        why = rf"rank {1 - rank} \(process \d+ on \S+\) died or was cut off: its last sign came \d+ s ago, in step \d"
        assert re.search(why, job.said(rank)), job.said(rank)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["ddp", "zero2"])
def test_random_kills_lose_nothing(backend: str, tmp_path: Path) -> None:
    storm(tmp_path, f"train.backend={backend}", kills=2, seed=0)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("backend", ["ddp", "zero2"])
def test_many_random_kills_lose_nothing(backend: str, tmp_path: Path) -> None:
    storm(tmp_path, f"train.backend={backend}", kills=int(os.environ.get("CASS_SCALE_KILLS", "10")), seed=1)
