"""What a person reads about the verbs, and the parser of their command lines. Knows no hydra."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from cass_scale import __version__
from cass_scale.types import JSON

VERBS: dict[str, tuple[str, str]] = {  # verb -> (what it does, a working example)
    "pretrain": (
        "pretrain encoders without labels",
        "cass-scale pretrain method=cass_contrast data=digits train.epochs=2 run.dir=runs/digits",
    ),
    "evaluate": (
        "score the encoders of a run on held-back images",
        "cass-scale evaluate run.dir=runs/digits protocol=knn",
    ),
    "status": (
        "say where a running or dead run stands, rank by rank",
        "cass-scale status run.dir=runs/digits",
    ),
    "report": (
        "write one HTML page about the runs of a folder",
        "cass-scale report runs=runs out=runs/report.html",
    ),
    "verify": (
        "find unreadable files, damaged shards, copies and leakage across splits in a set of images",
        "cass-scale verify data.path=DIR out=runs/verify",
    ),
    "split": (
        "write a labels.csv whose split is stratified and leaks nothing",
        "cass-scale split data.path=DIR out=clean.csv",
    ),
    "shard": (
        "turn a set of images into WebDataset shards, or a .beton of FFCV",
        "cass-scale shard source=DIR out=shards size=512",
    ),
    "bench": (
        "measure this machine on your own data: loaders, the training step; or compare two records",
        "cass-scale bench name=loaders data.path=DIR",
    ),
    "study": (
        "run a table or figure of the paper with its controls, one process per row",
        "cass-scale study name=batch_size preset=quick arms=tiny data.path=DIR",
    ),
    "doctor": ("check this machine and say what it lacks", "cass-scale doctor"),
}


def config_dir() -> Path:
    """The top-level `configs` of a checkout, or its copy inside the installed package."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def groups(verb: str) -> list[str]:
    """Groups that a verb chooses from: the entries of its defaults list."""
    return [group for entry in root(verb).get("defaults", []) if isinstance(entry, dict) for group in entry]


def root(verb: str) -> JSON:
    """The verb's own file of configs/."""
    found: JSON = yaml.safe_load((config_dir() / f"{verb}.yaml").read_text())
    return found


def parser() -> argparse.ArgumentParser:
    """Of all verbs; each shows its keys, defaults and choices."""
    parser = argparse.ArgumentParser(
        "cass-scale",
        description="Pretrains image encoders without labels around CASS, and measures what it saves.",
    )
    parser.add_argument("--version", action="version", version=f"cass-scale {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, (what, example) in VERBS.items():
        keys = (config_dir() / f"{name}.yaml").read_text()
        verb = verbs.add_parser(
            name,
            help=what,
            description=f"{what}.\n\nexample:\n  {example}",
            epilog=f"keys and defaults ({name}.yaml; groups are the folders of configs/):\n\n{keys}\n{_choices(name)}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_argument(
            "overrides", nargs="*", metavar="key=value", help="hydra overrides: group=choice, key.sub=value"
        )
        verb.add_argument(
            "--dry-run",
            action="store_true",
            help="print the resolved configuration and what it would cost; start nothing",
        )
        verb.add_argument("--quiet", action="store_true", help="warnings and errors only")
        verb.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _choices(verb: str) -> str:
    rows = [f"  {g}: {', '.join(sorted(p.stem for p in (config_dir() / g).glob('*.yaml')))}" for g in groups(verb)]
    return "\n".join(["choices:", *rows]) if rows else ""
