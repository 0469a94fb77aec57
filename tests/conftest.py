"""What all tests share: quiet defaults, a cache folder of their own, the folder of real images."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

# Before torch is imported: the tests run beside each other, and must not download or touch a person's cache.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
CACHE = tempfile.mkdtemp(prefix="cass_scale_tests_")
os.environ["CASS_SCALE_CACHE"] = CACHE

import pytest  # noqa: E402

from cass_scale.data import remote  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and weights (`data/`, `weights/`)."""
    place = Path(os.environ.get("CASS_SCALE_SHARED") or ROOT.parent / "shared")
    if not (place / "data").is_dir():
        pytest.skip("needs ../shared (or CASS_SCALE_SHARED)")
    return place.resolve()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that no other test fills."""
    monkeypatch.setenv("CASS_SCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts, and the file systems of other tests are forgotten."""
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(remote, "PATIENCE", 20.0)
    monkeypatch.setattr(remote, "AT_FIRST", 20.0)
    remote._system.cache_clear()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long tests, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="takes about a minute: `make test-long` runs it"))
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")


def pytest_sessionfinish() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)
