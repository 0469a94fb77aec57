"""launch/hosts.sh between two hosts: network namespaces with names of their own, and a cable that can be cut."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from cass_scale import records

ROOT = Path(__file__).parents[1]
WORDS = (
    "method=cass_contrast", "arms=tiny", "arms.image_size=32", "train.batch_size=16", "train.epochs=400",
    "train.save_every=5", "train.log_every=5", "stream.workers=0",
)  # fmt: skip
NAMES = "127.0.0.1 localhost\n10.77.0.1 host-a\n10.77.0.2 host-b\n"


class Hosts(NamedTuple):
    a: str  # namespaces
    b: str

    def cable(self, state: str) -> None:
        run("ip", "-n", self.b, "link", "set", "cable", state)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and iproute2, to make network namespaces")
    names = Hosts(*(f"cass{os.getpid()}{letter}" for letter in "ab"))
    with ExitStack() as stack:
        for name in names:
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
            files = Path("/etc/netns", name)  # mounted over /etc inside
            files.mkdir(parents=True)
            stack.callback(shutil.rmtree, files)
            (files / "hosts").write_text(NAMES)
            (files / "resolv.conf").write_text("")
        run(*f"ip link add cable netns {names.a} type veth peer name cable netns {names.b}".split())
        for number, name in enumerate(names, 1):
            run("ip", "-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                run("ip", "-n", name, "link", "set", device, "up")
        yield names


class Launched:
    """hosts.sh on one of the hosts; `with` ends whatever is left of it."""

    def __init__(self, hosts: Hosts, node: int, log: Path, *words: str) -> None:
        rename = ["unshare", "--uts", "sh", "-c", f'hostname host-{"ab"[node]} && exec "$@"', "-"]
        meet = ["launch/hosts.sh", "--head", "host-a", "--node", str(node), "--ranks", "1", "--cpu"]
        environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", hosts[node], *rename, *meet, "pretrain", *WORDS, *words],
                stdout=file, stderr=file, cwd=ROOT, env=environment,
            )  # fmt: skip

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *raised: object) -> None:
        with suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(self.process.pid)
            for process in (*launcher.children(recursive=True), launcher):
                process.kill()
        self.process.wait(10)


def wait_for_step(folder: Path, step: int, *launched: Launched) -> None:
    deadline = time.monotonic() + 120
    while not any(int(file.stem[5:]) >= step for file in folder.glob("checkpoints/step_*.pt")):
        said = "\n".join(one.log.read_text()[-2000:] for one in launched)
        assert time.monotonic() < deadline and all(one.process.poll() is None for one in launched), said
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.netns
@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cut_cable_ends_the_run_and_the_same_command_continues_it(tmp_path: Path, shared: Path, hosts: Hosts) -> None:
    folder = tmp_path / "run"
    words = (f"data.path={shared / 'data/brain_mri'}", f"run.dir={folder}")
    with Launched(hosts, 0, tmp_path / "a.log", *words) as a, Launched(hosts, 1, tmp_path / "b.log", *words) as b:
        wait_for_step(folder, 5, a, b)
        hosts.cable("down")
        assert a.process.wait(90) == b.process.wait(60) == 1, "the side without the rendezvous, too"
        assert "rank 1" in a.log.read_text() and "host-b" in a.log.read_text() and "cut off" in a.log.read_text()
    saved = int(max(folder.glob("checkpoints/step_*.pt")).stem[5:])
    assert records.read(folder)["status"] == "failed"
    hosts.cable("up")
    with Launched(hosts, 0, tmp_path / "a.log", *words) as a, Launched(hosts, 1, tmp_path / "b.log", *words) as b:
        wait_for_step(folder, saved + 5, a, b)
        b.process.send_signal(signal.SIGTERM)  # to one host
        assert a.process.wait(60) == b.process.wait(60) == 75, "both hosts, since both have saved"
    assert f"from step {saved}" in a.log.read_text() + b.log.read_text()
    record = records.read(folder)
    assert record["status"] == "preempted" and record["steps"] > saved and record["world_size"] == 2
