"""Processes in slots: one that fails stops nothing, a signal stops all, and none outlives a killed parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cass_scale.forecast import forecast
from cass_scale.slots import Ended, Job, work


def job(folder: Path, name: str, code: str) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / "logs" / f"{name}.log")


def test_all_are_run_and_a_failed_one_leaves_its_last_words(tmp_path: Path) -> None:
    ended: list[Ended] = []
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/bad.log").write_text("words of an earlier try\n")
    bad = "print('some'); raise SystemExit('no weights for vit')"
    jobs = [job(tmp_path, "bad", bad), job(tmp_path, "silent", "raise SystemExit(4)")]
    jobs += [job(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"), job(tmp_path, "good", "print('fine')")]
    assert work(jobs, [None], ended.append, lambda: False)
    why = {one.job.name: one.why for one in ended}
    assert why["bad"] == "no weights for vit" and why["good"] == ""
    assert why["silent"] == "exit code 4, no words"
    assert why["killed"].startswith("killed by SIGKILL: out of memory")
    assert "earlier try" in (tmp_path / "logs/bad.log").read_text(), "the log is added to"


def test_each_slot_has_its_device_and_its_share_of_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    said = (
        "import os, time; e = os.environ; print(e.get('CUDA_VISIBLE_DEVICES'), 'OMP_NUM_THREADS' in e); time.sleep(.5)"
    )
    ended: list[Ended] = []
    started = time.monotonic()
    assert work([job(tmp_path, name, said) for name in "abcd"], ["3", "5"], ended.append, lambda: False)
    assert time.monotonic() - started < 10
    words = sorted((tmp_path / "logs" / f"{name}.log").read_text().strip() for name in "abcd")
    assert words == ["3 True", "3 True", "5 True", "5 True"]
    assert work([job(tmp_path, "alone", said)], [None], ended.append, lambda: False)
    assert (tmp_path / "logs/alone.log").read_text().split()[1] == "False", "one alone may have all cores"


def test_stopping_lets_the_running_ones_save_and_starts_no_other(tmp_path: Path) -> None:
    saves = f"""
import pathlib, signal, sys, time
def stop(*a): pathlib.Path({str(tmp_path / "saved")!r}).touch(); sys.exit(75)
signal.signal(signal.SIGTERM, stop); pathlib.Path({str(tmp_path / "begun")!r}).touch(); time.sleep(60)"""
    ended: list[Ended] = []
    jobs = [job(tmp_path, "first", saves), job(tmp_path, "second", "print(1)")]
    assert not work(jobs, [None], ended.append, (tmp_path / "begun").exists)
    assert (tmp_path / "saved").exists() and [one.code for one in ended] == [75]
    assert not (tmp_path / "logs/second.log").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
@pytest.mark.parametrize("handler", ["SIG_DFL", "SIG_IGN"])
def test_children_do_not_outlive_a_killed_parent(handler: str, tmp_path: Path) -> None:
    place = str(tmp_path / "pid")
    child = f"import os, pathlib, time; pathlib.Path({place!r}).write_text(str(os.getpid())); time.sleep(60)"
    parent = (
        "import signal, sys; from pathlib import Path; from cass_scale.slots import Job, work; "
        f"signal.signal(signal.SIGTERM, signal.{handler}); "
        f"job = Job('x', (sys.executable, '-c', {child!r}), Path({str(tmp_path / 'x.log')!r})); "
        "work([job], [None], print, lambda: False)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=Path(__file__).parents[1])
    pid = _wait_for(lambda: int((tmp_path / "pid").read_text() or 0) if (tmp_path / "pid").exists() else 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _wait_for(lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def _wait_for(what: object, seconds: float = 20) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():  # type: ignore[operator]
            return int(found)
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def test_a_forecast_prefers_equal_rows_then_flops_then_the_devices_peak() -> None:
    flops = {("a", "8"): 100.0, ("b", "8"): 300.0}
    to_come = [("a", "8"), ("a", "8"), ("b", "8")]
    measured = forecast(to_come, [(("a", "8"), 10.0), (("a", "8"), 30.0)], flops, peak=1000.0)
    assert measured is not None and measured.seconds == 20 + 20 + 60
    assert (measured.measured, measured.by_flops, measured.at_peak) == (2, 1, 0)
    bound = forecast(to_come, [], flops, peak=1000.0)
    assert bound is not None and bound.seconds == pytest.approx(0.5) and "a lower bound" in bound.why()
    without = forecast([("c", "8")], [(("a", "8"), 10.0), (("b", "8"), 20.0)])
    assert without is not None and without.seconds == 15
    assert forecast(to_come, []) is None
