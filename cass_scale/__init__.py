"""cass_scale: pretrains image encoders without labels around CASS, and measures honestly what it saves.

Every verb of the command line has a twin here with the same names: `pretrain("method=cass", "data.path=DIR")`
or `pretrain(method="cass", data={"path": "DIR"})`. Each returns the record that the verb leaves behind.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "bench", "compare", "doctor", "evaluate", "explain", "export", "predict", "pretrain", "report", "shard", "split",
    "study", "verify",
]  # fmt: skip


def _call(verb: str, overrides: tuple[str, ...], keys: dict[str, Any]) -> Any:
    from cass_scale.cli import call  # torch and hydra are loaded by the first call, not by the import

    return call(verb, overrides, keys)


def pretrain(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Pretrain encoders without labels; returns run.json. `dry_run=True` starts nothing."""
    return dict(_call("pretrain", overrides, keys))


def evaluate(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Score the encoders of a run on held-back images; returns the evaluation's record."""
    return dict(_call("evaluate", overrides, keys))


def compare(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Compare two runs, paired image by image; returns the record with a row per arm and score."""
    return dict(_call("compare", overrides, keys))


def explain(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Pictures of what a run's encoders look at, and how they compare; returns the record, `page` says where."""
    return dict(_call("explain", overrides, keys))


def export(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Write the encoders of a run for other programs; returns folder, files and what was compared, by arm."""
    return dict(_call("export", overrides, keys))


def predict(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Answer new images by an evaluated run; returns what was written, `exit_code` 3 with too many unreadable ones."""
    return dict(_call("predict", overrides, keys))


def report(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Write one self-contained HTML page about all runs of a folder; returns {"out": path}."""
    return dict(_call("report", overrides, keys))


def verify(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Find unreadable files, copies and leakage across splits; returns the record, `exit_code` 3 when not clean."""
    return dict(_call("verify", overrides, keys))


def split(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Write a labels.csv whose split is stratified and leaks nothing; returns what was drawn."""
    return dict(_call("split", overrides, keys))


def shard(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Turn a set of images into WebDataset shards; returns what was made. `dry_run=True` writes nothing."""
    return dict(_call("shard", overrides, keys))


def doctor(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Check this machine; returns {"exit_code": 0} when the main job can run."""
    return dict(_call("doctor", overrides, keys))


def bench(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Measure this machine on a person's own data; returns the table and all figures."""
    return dict(_call("bench", overrides, keys))


def study(*overrides: str, **keys: Any) -> dict[str, Any]:
    """Run a study of the paper, one process per row; returns study.json, `exit_code` 1 when a row failed."""
    return dict(_call("study", overrides, keys))
