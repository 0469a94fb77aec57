"""The bill: spans, lifetimes over restarts, work that was lost, and never a wait for the device."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from cass_scale.meter import Meter, peak_memory

CPU = torch.device("cpu")


class Clock:
    """A host clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(time, "time", clock)
    return clock


def test_spans_add_up_and_what_is_left_is_other(clock: Clock) -> None:
    meter = Meter(CPU)
    for seconds in (2.0, 3.0):
        with meter("step"):
            clock.now += seconds
    with meter.host("checkpoint"):
        clock.now += 4.0
    clock.now += 1.0
    assert meter.report()["spans"] == pytest.approx({"step": 5.0, "checkpoint": 4.0, "other": 1.0})


def test_a_span_counts_when_its_block_raises(clock: Clock) -> None:
    meter = Meter(CPU)
    for measured in (meter("step"), meter.host("step")):
        with pytest.raises(KeyError), measured:
            clock.now += 1.5
            raise KeyError
    assert meter.spans == {"step": 3.0}


def test_wait_counts_the_source_and_not_the_consumer(clock: Clock) -> None:
    def slow() -> Iterator[int]:
        for i in range(3):
            clock.now += 2.0
            yield i
        clock.now += 0.5  # the end is waited for too

    meter = Meter(CPU)
    seen = []
    for item in meter.wait("data", slow()):
        seen.append(item)
        clock.now += 100.0
    assert seen == [0, 1, 2]
    assert meter.spans == {"data": 6.5}


def test_wait_passes_an_error_of_the_source_on(clock: Clock) -> None:
    def broken() -> Iterator[int]:
        clock.now += 1.0
        raise OSError("disk")
        yield 0

    meter = Meter(CPU)
    with pytest.raises(OSError, match="disk"):
        next(meter.wait("data", broken()))
    assert meter.spans == {"data": 1.0}


def test_device_hours_are_lifetimes_and_training_times_devices(clock: Clock) -> None:
    meter = Meter(CPU, world=4)
    for name in ("data", "views", "step", "observe"):
        with meter(name):
            clock.now += 900.0
    assert meter.device_hours() == pytest.approx({"total": 4.0, "train": 3.0})


def test_the_time_before_the_meter_was_made_is_billed(clock: Clock) -> None:
    meter = Meter(CPU, born=clock.now - 8.0)
    clock.now += 1.0
    assert meter.elapsed() == pytest.approx(9.0)
    assert Meter(CPU, born=clock.now + 5.0).elapsed() == 0.0  # clocks may disagree, time does not run backwards


def test_lifetimes_add_over_restarts_and_lost_work_is_billed(clock: Clock) -> None:
    first = Meter(CPU)
    with first("step"):
        clock.now += 10.0
    saved = first.state()  # the checkpoint
    clock.now += 6.0  # work after it, seen in the log until here; then the process is killed

    clock.now += 1000.0  # nobody pays for a queue
    second = Meter(CPU)
    with second.host("prepare"):
        clock.now += 3.0
    second.load(saved, lost_until=first.earlier + 16.0)
    with second("step"):
        clock.now += 5.0
    assert second.elapsed() == pytest.approx(10 + 6 + 3 + 5)
    assert second.report()["spans"] == pytest.approx({"step": 15, "lost": 6, "prepare": 3, "other": 0})

    third = Meter(CPU)  # and once more, now with a checkpoint that is newer than the last row
    third.load(second.state(), lost_until=0.0)
    clock.now += 2.0
    assert third.elapsed() == pytest.approx(26)
    assert third.report()["spans"] == pytest.approx({"step": 15, "lost": 6, "prepare": 3, "other": 2})


def test_each_process_is_billed_with_the_devices_it_had(clock: Clock) -> None:
    first = Meter(CPU, world=8)
    with first("step"):
        clock.now += 3600.0
    saved = first.state()
    second = Meter(CPU, world=1)  # resumed on one device; half an hour of the first was lost
    second.load(saved, lost_until=5400.0)
    with second("step"):
        clock.now += 7200.0
    assert second.device_hours() == pytest.approx({"total": 8.0 + 4.0 + 2.0, "train": 8.0 + 2.0})


def test_a_process_killed_before_its_first_checkpoint_is_billed_as_lost(clock: Clock) -> None:
    meter = Meter(CPU, world=2)
    meter.load(None, lost_until=1800.0)
    clock.now += 1800.0
    assert meter.spans == {"lost": 1800.0}
    assert meter.device_hours() == pytest.approx({"total": 2.0, "train": 0.0})


def test_peak_memory_is_that_of_all_processes(clock: Clock) -> None:
    meter = Meter(CPU)
    meter.load(meter.state() | {"peak": 2**50}, lost_until=0.0)
    assert meter.report()["peak_memory_bytes"] == 2**50


def test_state_is_a_copy_of_plain_values(clock: Clock) -> None:
    meter = Meter(CPU)
    meter.add("step", 1.0)
    state = meter.state()
    meter.add("step", 1.0)
    assert state["spans"] == {"step": 1.0} and state["elapsed"] == 0.0
    assert all(isinstance(value, dict | float | int) for value in state.values())


def test_peak_memory_is_in_bytes() -> None:
    held = torch.ones(2**26)  # 256 MiB
    assert 2**28 < peak_memory(CPU) < 2**40
    assert held.sum() == 2**26


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_spans_are_read_when_done_and_never_waited_for() -> None:
    meter = Meter(torch.device("cuda"))
    x = torch.randn(4096, 4096, device="cuda")
    with meter("step"):
        for _ in range(200):
            x = (x @ x).clamp(-1, 1)
    meter.settle()
    early = dict(meter.spans)
    torch.cuda.synchronize()
    meter.settle()
    assert early == {}  # 200 products take longer than asking
    assert meter.spans["step"] > 0.001
