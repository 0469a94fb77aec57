"""The files of launch/: scripts say what is wrong with a command, and manifests are what their readers understand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cass_scale import records
from cass_scale.cli import compose_config
from cass_scale.errors import EXIT_CONFIG, EXIT_DATA, EXIT_PREEMPTED

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted((*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), *(ROOT / "tests").rglob("*.sh")))


def launch(
    script: str, *words: str, python: Path = Path(sys.executable), seconds: int = 200
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": str(python), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("RANKS", None)
    return subprocess.run(
        ["bash", str(LAUNCH / script), *words],
        capture_output=True, text=True, env=environment, timeout=seconds, check=False,
    )  # fmt: skip


def manifests() -> dict[str, Any]:
    return {part["kind"]: part for part in yaml.safe_load_all((LAUNCH / "k8s.yaml").read_text())}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("local.sh", (), "usage: launch/local.sh"),
        ("local.sh", ("--rank", "2"), "usage: launch/local.sh"),
        ("local.sh", ("pretrain",), "torch sees no GPU here; add --cpu"),
        ("hosts.sh", ("--head", "localhost", "pretrain", "run.dir=a"), "usage: launch/hosts.sh"),
        ("hosts.sh", ("--head", "localhost", "--node", "0", "pretrain"), "give run.dir=FOLDER"),
        ("slurm.sbatch", (), "usage: sbatch"),
    ],
)
def test_scripts_refuse_what_cannot_work(script: str, words: tuple[str, ...], said: str) -> None:
    done = launch(script, *words)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_one_rank_per_gpu_and_every_other_word_is_passed_on(tmp_path: Path) -> None:
    python = tmp_path / "python"  # of a machine with two GPUs
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 2 || echo "$@"\n')
    python.chmod(0o755)
    words = ("pretrain", "data.path=a b", "--quiet")
    told = "-m cass_scale.torchrun --nproc-per-node 2 --standalone -m cass_scale pretrain data.path=a b --quiet\n"
    assert launch("local.sh", *words, python=python).stdout == told
    assert "take --ranks 2" in launch("local.sh", "--ranks", "3", *words, python=python).stderr


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_on_a_laptop_train(tmp_path: Path) -> None:
    words = ("data=digits", "arms=tiny", "train.batch_size=8", "train.max_steps=1", "monitor.images=8")
    more = ("train.count_flops=false", "stream.workers=0", "train.device=cpu", f"run.dir={tmp_path / 'run'}")
    done = launch("local.sh", "--ranks", "2", "--cpu", "pretrain", *words, *more, seconds=250)
    assert done.returncode == 0, done.stderr
    record = records.read(tmp_path / "run")
    assert (record["status"], record["steps"], record["world_size"], record["backend"]) == ("done", 1, 2, "ddp")


def test_kubernetes_knows_every_field() -> None:
    for part in yaml.safe_load_all((LAUNCH / "k8s.yaml").read_text()):
        kubernetes_validate.validate(part, "1.31", strict=True)


def test_pods_are_replaced_when_preempted_and_not_when_the_command_is_wrong() -> None:
    rules = manifests()["Job"]["spec"]["podFailurePolicy"]["rules"]
    codes = {code: rule["action"] for rule in rules if "onExitCodes" in rule for code in rule["onExitCodes"]["values"]}
    assert codes == {EXIT_CONFIG: "FailJob", EXIT_DATA: "FailJob", EXIT_PREEMPTED: "Ignore"}


def test_pods_find_their_volumes_and_the_first_pod() -> None:
    job, service = manifests()["Job"], manifests()["Service"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    words = container["command"]
    assert words[0] == "launch/hosts.sh" and (ROOT / words[0]).stat().st_mode & 0o111
    assert f"{job['metadata']['name']}-0.{service['metadata']['name']}" in words
    assert pod["subdomain"] == service["metadata"]["name"]
    assert words[words.index("--nodes") + 1] == str(job["spec"]["completions"]) == str(job["spec"]["parallelism"])
    assert compose_config("pretrain", container["args"][1:])["run"]["dir"].startswith("/runs/")


def test_skypilot_recovers_from_preemption_and_names_every_node() -> None:
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [EXIT_PREEMPTED]
    assert {"SKYPILOT_NODE_IPS", "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"} <= set(re.findall(r"SKY\w+", task["run"]))
    script = f"head() {{ echo head; }}\nsource() {{ :; }}\nset -u\n{task['run']}".replace("launch/hosts.sh", "echo")
    told = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}
    said = subprocess.check_output(["bash", "-c", script], env=os.environ | told, text=True, timeout=20)
    assert said.startswith("--head head --node 1 --nodes 2 pretrain ")


def test_the_container_holds_what_it_copies_and_does_not_run_as_root() -> None:
    lines = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    kept = re.findall(r"^!(.+)$", (LAUNCH / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(kept) and all((ROOT / name).exists() for name in copied)
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users == ["1000:1000"] and not [line for line in lines[lines.index("USER 1000:1000") :] if "RUN" in line]
    assert any("-c constraints.txt" in line for line in lines)
