"""Checkpoints: whole or absent, never executed, kept in number; and the signals that ask for one."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cass_scale import checkpoint
from cass_scale.checkpoint import Checkpoints, StopSignal
from cass_scale.errors import DataError, StorageError
from cass_scale.signals import SIGNALS


def state(value: float, n: int = 1000) -> dict[str, Any]:
    return {
        "model": {"w": torch.full((n,), value)},
        "at": {"step": 3},
        "rng": torch.get_rng_state(),
        "none": None,
    }


def value(path: Path | None) -> float:
    assert path is not None
    return float(checkpoint.load(path)["model"]["w"][0])


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path / "deep" / "er").save(7, state(1.5))
    back = checkpoint.load(path)
    assert torch.equal(back["model"]["w"], torch.full((1000,), 1.5))
    assert (back["at"], back["none"]) == ({"step": 3}, None)
    assert names(path.parent) == ["step_00000007.pt"]


def test_the_newest_are_kept_and_the_best_beside_them(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep=2)
    assert kept.latest() is None
    for step in (9, 10, 100, 1000):
        kept.save(step, state(step))
    kept.save_best(state(10))
    kept.save_best(state(100))
    assert names(tmp_path) == ["best.pt", "step_00000100.pt", "step_00001000.pt"]
    assert (value(kept.latest()), value(tmp_path / "best.pt")) == (1000, 100)


def test_a_write_that_fails_half_way_leaves_the_last_file_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, state(1))

    def half(state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    for again in (lambda: kept.save(2, state(2)), lambda: kept.save(1, state(2))):
        with pytest.raises(StorageError, match=r"No space left on device.*the one before it is whole.*free some"):
            again()
    assert names(tmp_path) == ["step_00000001.pt"]
    assert value(kept.latest()) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs (root)")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    kept = Checkpoints(small_disk / "checkpoints")
    kept.save(1, state(1))
    with pytest.raises(StorageError, match="No space left on device"):
        kept.save(2, state(2, n=1_000_000))
    assert names(small_disk / "checkpoints") == ["step_00000001.pt"]
    assert value(kept.latest()) == 1
    kept.save(3, state(3))
    assert value(kept.latest()) == 3


def test_a_folder_that_cannot_be_made_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(StorageError, match=r"step_00000001\.pt could not be written \(File exists\)"):
        Checkpoints(tmp_path / "checkpoints").save(1, state(1))


def test_parts_left_by_killed_processes_go_with_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".step_00000005.pt.4242.partial").write_bytes(b"half")
    kept = Checkpoints(tmp_path)
    assert kept.latest() is None
    kept.save(6, state(6))
    assert names(tmp_path) == ["step_00000006.pt"]


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_checkpoint_that_holds_code_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    trap, path = tmp_path / "executed", tmp_path / "step_00000001.pt"
    evil = {"model": Malicious(f"touch {trap}")}
    if writer == "torch":
        torch.save(evil, path)
    else:
        path.write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(DataError, match=r"step_00000001\.pt cannot be read.*delete it") as raised:
        checkpoint.load(path)
    assert not trap.exists()
    assert "weights_only" not in str(raised.value)  # torch advises to load it unsafely


@pytest.mark.parametrize("cut", [0, 10, 3000])
def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path: Path, cut: int) -> None:
    path = Checkpoints(tmp_path).save(1, state(1))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"step_00000001\.pt cannot be read.*resume from the one before"):
        checkpoint.load(path)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_sets_the_flag_and_the_handlers_come_back(number: signal.Signals) -> None:
    seen: list[int] = []
    before = signal.signal(number, lambda got, frame: seen.append(got))
    try:
        with StopSignal() as stop:
            assert not stop.asked()
            os.kill(os.getpid(), number)
            assert stop.asked()
            assert stop.name == number.name
        assert seen == []
        os.kill(os.getpid(), number)
        assert seen == [number]
    finally:
        signal.signal(number, before)


def test_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyError), StopSignal():
        raise KeyError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with StopSignal() as stop:
                assert not stop.asked()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []
