"""How a benchmark leaves its evidence: a record folder written by code, pages rendered from it, nothing typed."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from cass_scale import records
from cass_scale.machine import cores as usable
from cass_scale.verbs.wire import cpu_name

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "records"
START, END = "<!-- records -->", "<!-- /records -->"
PACKAGES = ("cass-scale", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "kornia", "scikit-learn")


def write_record(out: Path | None, question: str, table: str, raw: Any, options: dict[str, Any]) -> None:
    """Print the table; with `out`, write run.json (command, code, machine, all figures) and its page there."""
    print(f"\n{table}")
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": records.SCHEMA,
        "question": question,
        "table": table,
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "options": {key: value for key, value in options.items() if key != "out"},
        "git": records.git_state(),
        "versions": records.versions(PACKAGES),
        "machine": machine(),
        "env": records.env(),
        "finished": records.now(),
        "figures": raw,
    }
    records.write_json(out / "run.json", record)
    records.atomic_write_text(out / "README.md", f"# {page(record)}")
    print(f"record: {out}")


def page(record: dict[str, Any]) -> str:
    """Title, table and provenance of a record as markdown, without the mark of the heading."""
    git = record["git"]
    state = f"{str(git['sha'])[:12]}{', with uncommitted changes' if git['dirty'] else ''}"
    facts = [
        f"Command: `{record['command']}`",
        f"Machine: {record['machine']}. Code: {state}. {record['finished'][:10]}.",
    ]
    return f"{record['question']}\n\n{record['table']}\n\n" + "  \n".join(facts) + "\n"


def section() -> str:
    """What the README shows: every record, in the order of its folder's name."""
    parts = [f"### {page(records.read_json(path))}" for path in sorted(FOLDER.glob("*/run.json"))]
    return "\n".join([START, "", *parts, END])


def render(readme: str) -> str:
    """`readme` with the records between its markers. Raises ValueError when it has none."""
    before, _, rest = readme.partition(START)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page has no {START} ... {END}")
    return before + section() + after


def machine() -> str:
    """Processor or GPU and number of cores, in words."""
    import torch

    cores = f"{usable()} cores"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {cores}"
    return f"{cpu_name()}, {cores}"
