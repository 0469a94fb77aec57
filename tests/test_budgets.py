"""House rules that a machine can count: length of functions and files, and no notes to self in the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FUNCTION_LINES, FILE_LINES = 45, 350
NOTE_TO_SELF = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
CODE = ("cass_scale", "tests", "benchmarks", "configs", "launch", ".ci")


def long_functions(file: Path, limit: int) -> Iterator[str]:
    """Functions over `limit` lines, from `def` to the last line, decorators not counted."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > limit:
                yield f"{file}:{node.lineno}: {node.name} has {lines} lines, the budget is {limit}"


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def test_functions_are_short() -> None:
    files = python_files("cass_scale", "tests", "benchmarks")
    offenders = [line for file in files for line in long_functions(file, FUNCTION_LINES)]
    assert not offenders, "\n" + "\n".join(offenders)


def test_files_are_short() -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in python_files("cass_scale", "tests", "benchmarks")}
    offenders = [f"{file}: {n} lines, the budget is {FILE_LINES}" for file, n in lengths.items() if n > FILE_LINES]
    assert not offenders, "\n" + "\n".join(offenders)


def test_no_notes_to_self() -> None:
    kinds = {".py", ".yaml", ".yml", ".sh", ".j2", ".css", ""}
    files = [f for folder in CODE for f in (ROOT / folder).rglob("*") if f.is_file() and f.suffix in kinds]
    offenders = [
        f"{file}:{number}: {line.strip()}"
        for file in [*files, ROOT / "Makefile", ROOT / "pyproject.toml"]
        if "__pycache__" not in file.parts
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1)
        if NOTE_TO_SELF.search(line)
    ]
    assert not offenders, "\n" + "\n".join(offenders)


def test_the_counter_counts(tmp_path: Path) -> None:
    file = tmp_path / "long.py"
    file.write_text("@property\ndef three():\n    a = 1\n    return a\n\n\ndef two():\n    return 2\n")
    assert [line.split(": ")[1] for line in long_functions(file, 2)] == ["three has 3 lines, the budget is 2"]
