"""`cass-scale verify`: whether a set of images is whole, and nothing of it leaks across splits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cass_scale import records
from cass_scale.console import Console
from cass_scale.data.manifest import Manifest
from cass_scale.data.scan import refuse_too_many
from cass_scale.data.verify import changed, faults, inspect, remarks
from cass_scale.errors import EXIT_DATA, EXIT_OK, MissingExtra, Problems
from cass_scale.page import render
from cass_scale.types import JSON, Call
from cass_scale.verbs import rules, settings
from cass_scale.verbs.survey import survey

RECORD, PAGE = "verify.json", "verify.html"
# What decides how an image decodes.
PACKAGES = ("cass-scale", "numpy", "pillow", "tifffile", "imagecodecs", "pydicom", "nibabel", "openslide-python")


def run(config: JSON, build: Callable[..., Any], call: Call) -> JSON:
    """Read every image now and look for what makes scores wrong; `exit_code` is 3 when there is any."""
    started, begun = records.now(), time.perf_counter()
    out, max_bad = check(config), config["data"]["max_bad"]
    console = Console(quiet=call.quiet)
    there = survey(config["data"], build)
    console.say(f"reading all {there.images} images in {there.root}")
    if call.dry_run:
        console.say("nothing was started (--dry-run)")
        return {"path": str(there.root)}
    then = Manifest.read(config["against"]) if config["against"] else None
    examined = there.read()
    manifest, unusable = examined.manifest, (*examined.damaged, *examined.manifest.bad)
    if not len(manifest):
        refuse_too_many(there.root, unusable, len(unusable), max_bad)
    found = inspect(examined, few=config["few"])
    found |= {"against": changed(manifest, then)} if then is not None else {}
    wrong = faults(found, max_bad, there.remedy)
    record = {
        "schema": records.SCHEMA,
        "verb": "verify",
        "command": call.command,
        "started": started,
        "seconds": time.perf_counter() - begun,
        "versions": records.versions(PACKAGES),
        "exit_code": EXIT_DATA if wrong else EXIT_OK,
        "faults": wrong,
        "remarks": remarks(found, config["few"]),
        "data": found,
    }
    if out is not None:
        render("verify.html.j2", record, out / PAGE)
        records.write_json(out / RECORD, record)
    show(record, console)
    if out is not None:
        console.say(f"everything in detail: {out / PAGE}, {out / RECORD}")
    return record


def check(config: JSON) -> Path | None:
    """The folder to write to. Raises ConfigError with every problem of the command."""
    problems = Problems()
    settings.check_values(config, rules.VERIFY, problems)
    settings.refuse_noise(config, problems)
    path, out = config["data"]["path"], config["out"]
    problems.check(path is not None, "data.path is missing: the folder of images or of shards")
    root = Path(path or ".").expanduser().absolute()
    place = Path(out).expanduser().absolute() if out else None
    if place is not None:
        inside = place.resolve().is_relative_to(root.resolve())
        problems.check(not inside, f"out={out} lies in the folder that is verified; name one outside of it")
        problems.check(not place.is_file(), f"out={out} is a file; name a folder for {RECORD} and {PAGE}")
        problems.check(inside or settings.writable(place), f"out={out} cannot be written; name a writable folder")
    problems.raise_if_any()
    if place is not None and settings.missing(["jinja2"]):
        raise MissingExtra("jinja2", "report", f"out={out}")
    return place


def show(record: JSON, console: Console) -> None:
    """Tables of what was counted, then what is wrong and what would mend it."""
    data = record["data"]
    splits = list(data["splits"])
    rows = [[c, *counts.values(), sum(counts.values())] for c, counts in data["classes"].items()]
    total = ["images", *data["splits"].values(), data["images"]]
    console.table([data["name"], *splits, "all"], [*rows, total])
    for note in data["notes"]:
        console.say(f"  {note}")
    sizes = data["sizes"]
    shape = " ".join(f"{name} {'..'.join(map(str, sorted(set(sizes[name]))))}" for name in ("width", "height"))
    console.say(f"  {shape}, {sizes['total_bytes'] / 1e6:.1f} MB, {record['seconds']:.1f} s")
    kinds = [[kind, n["sets"], n["images"], n["across"]] for kind, n in data["copies"].items()]
    divided = [[f"divided {c}", len(found), "", len(found)] for c, found in data["groups"].items()]
    bad = ["unusable files", "", len(data["bad"]), ""]
    console.table(["found", "sets", "images", "across splits"], [*kinds, *divided, bad])
    for text in record["remarks"]:
        console.say(f"note: {text}")
    for fault in record["faults"]:
        console.warn(f"{fault['what']}\n  to mend: {fault['mend']}")
    if not record["faults"]:
        console.say(f"{data['name']} is clean: nothing found leaks across splits")
