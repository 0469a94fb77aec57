"""`cass-scale split`: a labels.csv whose split is stratified, keeps groups and copies together, and leaks nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cass_scale.console import Console
from cass_scale.data.layouts import CSV
from cass_scale.data.manifest import SPLITS
from cass_scale.data.resplit import resplit, units, write
from cass_scale.data.scan import refuse_too_many
from cass_scale.data.splits import check_fractions
from cass_scale.errors import ConfigError, Problems
from cass_scale.types import JSON, Call
from cass_scale.verbs import rules, settings
from cass_scale.verbs.survey import survey


def run(config: JSON, build: Callable[..., Any], call: Call) -> JSON:
    """Write the file `out`, which must not exist yet; returns what was drawn."""
    out = check(config)
    data, seed = config["data"], config["seed"]
    shares = check_fractions(data["split"])
    console = Console(quiet=call.quiet)
    there = survey(data, build)
    console.say(f"reading all {there.images} images in {there.root}")
    if call.dry_run:
        console.say(f"nothing was started (--dry-run); {out} would be written")
        return {"out": str(out)}
    manifest, looks, owners, _ = there.read()
    refuse_too_many(there.root, manifest.bad, len(manifest) + len(manifest.bad), data["max_bad"])
    together = units(manifest, looks, owners)
    drawn = resplit(manifest, together, shares, seed)
    try:
        write(drawn, together, out, data.get("labels", "folders"))
    except OSError as error:
        raise ConfigError(f"out={out} cannot be written: {error.strerror}; name a file elsewhere") from error
    sizes = Counter(together.tolist())
    record: JSON = {
        "out": str(out),
        "seed": seed,
        "images": len(drawn),
        "bad": len(drawn.bad),
        "splits": {s: drawn.splits.count(s) for s in SPLITS},
        "kept_together": sum(n > 1 for n in sizes.values()),
        "largest": max(sizes.values()),
    }
    show(record, there.root, console)
    return record


def check(config: JSON) -> Path:
    """The file to write. Raises ConfigError with every problem of the command."""
    problems = Problems()
    settings.check_values(config, rules.VERIFY, problems)
    settings.refuse_noise(config, problems)
    data, out = config["data"], config["out"]
    problems.check(data["path"] is not None, "data.path is missing: the folder of images")
    shards = f"data.path={data['path']} holds shards: split the images that they were made from, and make them again"
    problems.check(not data["_target_"].endswith(".shards"), shards)
    problems.check(out is not None, f"out is missing: the CSV file to write, say out=clean.csv; it serves as {CSV}")
    place = Path(out or CSV).expanduser().absolute()
    problems.check(out is None or not place.exists(), f"out={out} exists and is not overwritten; name a new file")
    problems.check(settings.writable(place.parent), f"out={out} cannot be written; name a file in a writable folder")
    problems.raise_if_any()
    return place


def show(record: JSON, root: Path, console: Console) -> None:
    """What was drawn, what may surprise, and what to do with the file."""
    drawn = ", ".join(f"{n} {split}" for split, n in record["splits"].items())
    console.say(f"{drawn}; {record['kept_together']} sets of copies, patients or groups kept whole")
    if record["bad"]:
        console.warn(f"{record['bad']} unusable files are left out")
    if record["largest"] > record["images"] / 10:
        share = f"{record['largest']} of {record['images']} images"
        console.warn(f"{share} hang together through copies and groups: look at them with `cass-scale verify`")
    if Path(record["out"]) != root / CSV:
        console.say(f"written: {record['out']}; to use it, put it into {root} as {CSV}, and keep the old one elsewhere")
