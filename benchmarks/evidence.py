"""How a benchmark leaves its evidence: a record folder written by code, its page rendered from the figures."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from cass_scale import records

PACKAGES = ("cass-scale", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "kornia")


def write_record(out: Path | None, question: str, table: str, raw: Any, options: dict[str, Any]) -> None:
    """Print the table; with `out`, write run.json (command, code, machine, all figures) and README.md there."""
    print(f"\n{table}")
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    record = {
        "schema": records.SCHEMA,
        "question": question,
        "command": command,
        "options": {key: value for key, value in options.items() if key != "out"},
        "git": records.git_state(Path(__file__).parent),
        "versions": records.versions(PACKAGES),
        "machine": machine(),
        "env": records.env(),
        "finished": records.now(),
        "figures": raw,
    }
    records.write_json(out / "run.json", record)
    git = record["git"]
    state = f"{git['sha']}{' with uncommitted changes' if git['dirty'] else ''}"
    facts = [
        f"Command: `{command}`",
        f"Machine: {record['machine']}",
        f"Code: {state}",
        f"Finished: {record['finished']}",
    ]
    page = f"# {question}\n\n{table}\n\n" + "  \n".join(facts) + "\n"
    records.atomic_write_text(out / "README.md", page)
    print(f"record: {out}")


def machine() -> str:
    """Processor or GPU and number of cores, in words."""
    import torch

    cores = f"{len(os.sched_getaffinity(0))} cores"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {cores}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    return f"{name}, {cores}"
