"""Records of the scripts in this folder, and the README's tables rendered from all records."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from cass_scale import evidence, records

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "records"
START, END = "<!-- records -->", "<!-- /records -->"


def write_record(out: Path | None, question: str, table: str, raw: Any, options: dict[str, Any]) -> None:
    """Print the table; with `out`, leave the record there."""
    print(f"\n{table}")
    if out is None:
        return
    command = shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    kept = {key: value for key, value in options.items() if key != "out"}
    found = evidence.Finding(question, table, raw)
    evidence.write_record(out, found, command=command, options=kept, machine=evidence.machine())
    print(f"record: {out}")


def section() -> str:
    """What the README shows: every record, in the order of its folder's name."""
    parts = [f"### {evidence.page(records.read_json(path))}" for path in sorted(FOLDER.glob("*/run.json"))]
    return "\n".join([START, "", *parts, END])


def render(readme: str) -> str:
    """`readme` with the records between its markers. Raises ValueError when it has none."""
    before, _, rest = readme.partition(START)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page has no {START} ... {END}")
    return before + section() + after
