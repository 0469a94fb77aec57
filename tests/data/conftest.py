"""Places of one test's own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a test puts its images; not made yet."""
    return tmp_path / "images"
