"""`cass-scale export`: encoders as other programs take them, each compared with the run's own, with a model card."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from cass_scale import encoders, records, results
from cass_scale.console import Console
from cass_scale.encoders import Encoder
from cass_scale.errors import MissingExtra, Problems
from cass_scale.release import hub, onnx_file, timm_folder
from cass_scale.release.card import Terms, card
from cass_scale.types import JSON, Call
from cass_scale.verbs import rules, settings
from cass_scale.verbs.folder import choose, exported, finished

CARD = "README.md"
OF_TIMM = (timm_folder.WEIGHTS, timm_folder.CONFIG, CARD)
FILES = {"timm": OF_TIMM, "hub": OF_TIMM, "onnx": (onnx_file.FILE, CARD)}


def run(config: JSON, build: Callable[..., Any], call: Call) -> JSON:
    """Write a folder per arm, or with `call.dry_run` only say what would be in it; returns what was written."""
    folder, arms, out = check(config, call)
    to, console = config["to"], Console(quiet=call.quiet)
    found: JSON = {}
    for arm, path in arms.items():
        encoder = encoders.load_export(path)
        with beside(out) as here:
            checked = (onnx_file if to == "onnx" else timm_folder).write(encoder, here)
            text = describe(config, folder, arm, encoder)
            records.atomic_write_text(here / CARD, text)
            files = {one.name: one.stat().st_size for one in sorted(here.iterdir())}
            show(arm, out / arm, files, checked, console)
            if call.dry_run:
                console.say(f"nothing was left or uploaded (--dry-run); the card would be:\n\n{text}")
            else:
                take(here, out / arm)
        found[arm] = {"folder": str(out / arm), "files": files, **checked}
        if to == "hub" and not call.dry_run:
            message = f"{encoder.spec.model} by cass-scale"
            found[arm]["url"] = hub.push(out / arm, config["repo"], private=config["private"], message=message)
            console.say(f"uploaded: {found[arm]['url']}")
    return {"to": to, "out": str(out), "arms": found}


def check(config: JSON, call: Call) -> tuple[Path, dict[str, Path], Path]:
    """The run's folder, encoders by arm, and the folder to write; every problem of the command at once."""
    problems = Problems()
    settings.check_given(config, {"run.dir": "the folder that `cass-scale pretrain` wrote"}, problems)
    settings.check_values(config, rules.EXPORT, problems)
    problems.raise_if_any()
    folder, to, repo = Path(config["run"]["dir"]), config["to"], config["repo"]
    record, _ = finished(folder)
    arms = choose(exported(folder, record), config["arm"], problems)
    out = Path(config["out"] or folder / "export" / to).expanduser().absolute()
    problems.check(settings.writable(out), f"out={out}: not writable; choose another folder")
    for arm in arms:
        strange = [path.name for path in sorted((out / arm).glob("*")) if path.name not in FILES[to]]
        problems.check(not strange, f"out={out}: {arm} in it holds {', '.join(strange[:3])}; choose another folder")
    if to == "hub":
        problems.check(repo is not None, "repo is missing: to=hub uploads to repo=OWNER/NAME, and never without it")
        problems.found += [wrong] if repo and (wrong := hub.problem(repo)) else []
        one = f"a repository of the hub holds one encoder: add arm={' or arm='.join(arms)}"
        problems.check(len(arms) <= 1, one)
    else:
        problems.check(repo is None, f"repo={repo} is for to=hub; to={to} uploads nothing")
    for package in settings.missing(onnx_file.PACKAGES)[:1] if to == "onnx" else ():
        problems.found += MissingExtra(package, "onnx", "to=onnx").problems
    problems.raise_if_any()
    if to == "hub" and not call.dry_run:
        hub.token()
    return folder, arms, out


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A folder on the disk of `out`, gone afterwards."""
    parent = next(place for place in (out, *out.parents) if place.is_dir())
    with TemporaryDirectory(prefix=".export-", dir=parent) as here:
        yield Path(here)


def take(here: Path, folder: Path) -> None:
    """Move the files of `here` into `folder`, over what was exported before."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in here.iterdir():
        os.replace(path, folder / path.name)


def describe(config: JSON, folder: Path, arm: str, encoder: Encoder) -> str:
    """The card of an arm."""
    (this,), _ = results.load(folder)
    beside, _ = results.load(Path(config["runs"])) if config["runs"] else ([], [])
    others = [one for one in beside if one.folder.resolve() != folder.resolve()]
    trained: JSON = yaml.safe_load((folder / records.CONFIG).read_text())
    terms = Terms(config["licence"], *(trained["data"].get(key) for key in ("licence", "page")))
    where = {"timm": "local-dir:FOLDER", "onnx": onnx_file.FILE, "hub": f"hf-hub:{config['repo']}"}[config["to"]]
    return card(this, arm, encoder, trained, results.tables([this, *others]), terms, where)


def show(arm: str, folder: Path, files: dict[str, int], checked: JSON, console: Console) -> None:
    """What was made and what was compared."""
    sizes = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in files.items())
    console.say(f"{arm}: {folder} ({sizes})")
    same = f"{checked['tensors']} tensors are the same, " if "tensors" in checked else ""
    console.say(f"  {same}features differ by {checked['difference']:.1g} of the largest")
