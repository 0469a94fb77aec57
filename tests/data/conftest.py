"""Places of one test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from cass_scale.data import remote


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that no other test fills."""
    monkeypatch.setenv("CASS_SCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a test puts its images; not made yet."""
    return tmp_path / "images"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remote stores are given up soon, and processes of before are forgotten."""
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "PATIENCE", 0.5)
    monkeypatch.setattr(remote, "AT_FIRST", 0.5)
    remote._system.cache_clear()
