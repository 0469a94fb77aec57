"""Nobody types a number: the README's tables are the records', and each record says where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.evidence import FOLDER, ROOT, render
from cass_scale import records
from cass_scale.evidence import page

FOUND = sorted(FOLDER.glob("*/run.json"))


def test_the_readme_shows_exactly_the_records() -> None:
    readme = (ROOT / "README.md").read_text()
    assert render(readme) == readme, "run `python benchmarks/render.py`"


@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.parent.name)
def test_a_record_is_complete_and_its_page_is_its_own(path: Path) -> None:
    record = records.read_json(path)
    program, what = record["command"].split()[:2]
    assert (program == "cass-scale" and what in ("bench", "study")) or (ROOT / what).is_file(), (
        "the command still exists"
    )
    assert record["git"]["sha"] and record["versions"]["torch"] and record["machine"] and record["figures"]
    assert (path.parent / "README.md").read_text() == f"# {page(record)}"


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="records"):
        render("no markers")
