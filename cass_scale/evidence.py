"""How a benchmark leaves its evidence: a record folder written by code, and the page made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cass_scale import records
from cass_scale.machine import cores, cpu_name
from cass_scale.types import JSON

PACKAGES = (
    "cass-scale", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "scikit-learn", "webdataset", "ffcv",
    "nvidia-dali-cuda130", "kornia", "litdata", "deepspeed",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What a benchmark found: its question, the answer as markdown, everything measured, and further files by name."""

    question: str
    table: str
    figures: Any
    files: Mapping[str, str] = field(default_factory=dict)


def write_record(
    out: Path, found: Finding, *, command: str, options: Mapping[str, Any], machine: str, origin: JSON | None = None
) -> JSON:
    """run.json (command, code, machine, versions, all figures), its page and the further files; returns the record.

    origin: `git`, `versions` and the like of the runs, where these were not made by this process.
    """
    out.mkdir(parents=True, exist_ok=True)
    record: JSON = {
        "schema": records.SCHEMA,
        "question": found.question,
        "table": found.table,
        "command": command,
        "options": dict(options),
        "git": records.git_state(),
        "versions": records.versions(PACKAGES),
        "machine": machine,
        "env": records.env(),
        "finished": records.now(),
        "figures": found.figures,
    } | (origin or {})
    records.write_json(out / records.RUN, record)
    for name, text in {"README.md": f"# {page(record)}", **found.files}.items():
        records.atomic_write_text(out / name, text)
    return record


def page(record: Mapping[str, Any]) -> str:
    """Title, table and provenance of a record as markdown, without the mark of the heading."""
    codes = record.get("codes") or [record["git"]]
    states = [f"{str(git['sha'])[:12]}{', with uncommitted changes' if git['dirty'] else ''}" for git in codes]
    state = states[0]
    if len(states) > 1:
        texts = [f"{one} ({code['records']} records)" for one, code in zip(states, codes, strict=True)]
        state = f"of several versions: {'; '.join(texts)}"
    facts = [
        f"Command: `{record['command']}`",
        f"Machine: {record['machine']}. Code: {state}. {record['finished'][:10]}.",
    ]
    return f"{record['question']}\n\n{record['table']}\n\n" + "  \n".join(facts) + "\n"


def machine() -> str:
    """Processor or GPU and number of cores, in words."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    return f"{name}, {cores()} cores"
