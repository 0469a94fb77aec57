"""`cass-scale explain`: pictures of what a run's encoders look at and how they compare, on one page."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cass_scale import dist, precision, records
from cass_scale.console import Console
from cass_scale.data.manifest import Manifest
from cass_scale.errors import ConfigError, MissingExtra, Problems
from cass_scale.insight.comparisons import cka_section, embedding_section
from cass_scale.insight.figures import DPI, save
from cass_scale.insight.maps import attention_section, convolution_section, grad_cam_section
from cass_scale.insight.scene import Scene
from cass_scale.insight.sections import Section
from cass_scale.page import render
from cass_scale.results import Run
from cass_scale.types import JSON, Call
from cass_scale.verbs import rules, settings
from cass_scale.verbs.folder import finished
from cass_scale.verbs.onlookers import find_images, read_images, states
from cass_scale.verbs.wire import PACKAGES, Build, choose_device, open_place

PAGE, RECORD = "explain.html", "explain.json"


def run(config: JSON, build: Build, call: Call) -> JSON:
    """Look at the run in `run.dir`; returns the record that lies beside the page."""
    begun, console = time.perf_counter(), Console(quiet=call.quiet)
    folder, out = check(config)
    record, trained = finished(folder)
    manifest, ids = find_images(config, trained, build)
    console.say(f"{folder} looks at {len(ids)} images of {manifest.name}: {', '.join(config['parts'])}")
    if call.dry_run:
        console.say("nothing was started (--dry-run)")
        return {"images": len(ids), "parts": config["parts"], "page": str(out / PAGE)}
    device = choose_device(config["device"])
    place = open_place(device, precision.resolve("fp32", device), project=folder, trackers=[])
    sides, notes = states(config, record, trained)
    images = read_images(config, trained, build, manifest, ids, sides, place)
    for side in sides:
        for encoder in side.arms.values():
            encoder.eval().to(place.device)
    shown = {key: config[key] for key in ("per_class", "examples", "seed")}
    scene = Scene(images, sides, place.device, config["batch_size"], **shown)
    sections = look(scene, config, console)
    made = describe(config, record, manifest, scene, sections, call) | {"notes": notes, "page": str(out / PAGE)}
    write(made, sections, out)
    console.say(f"page: {out / PAGE}, made in {time.perf_counter() - begun:.0f} s")
    return made


def check(config: JSON) -> tuple[Path, Path]:
    """The run's folder and the one to write to. Raises ConfigError with every problem of the command."""
    problems = Problems()
    settings.check_values(config, rules.EXPLAIN, problems)
    problems.check(config["run"]["dir"] is not None, "run.dir is missing: the folder that `cass-scale pretrain` wrote")
    folder = Path(config["run"]["dir"] or ".")
    out = Path(config["out"] or folder / "explain")
    problems.check(not out.is_file() and settings.writable(out), f"out={out} cannot be written; name a writable folder")
    if images := config["images"]:
        root = Path(images).expanduser()
        problems.check(root.exists(), f"images={images}: no such folder; name one of images or of shards")
        inside = out.resolve().is_relative_to(root.resolve())
        problems.check(not inside, f"out={out} lies in the folder of images; name one outside of it")
    one = dist.world() == 1
    problems.check(one, "explain runs in one process: start it without accelerate launch, torchrun or srun -n")
    problems.raise_if_any()
    for package in settings.missing(["jinja2", "matplotlib"]):
        raise MissingExtra(package, "report", "explain")
    if "umap" in config["maps"] and settings.missing(["umap"]):
        raise MissingExtra("umap-learn", "umap", "maps=[umap]")
    return folder, out


def look(scene: Scene, config: JSON, console: Console) -> list[Section]:
    """The sections that were asked for. Raises ConfigError when none of them has anything to show."""
    parts: dict[str, Callable[[Scene], Section]] = {
        "attention": attention_section,
        "convolutions": convolution_section,
        "gradcam": grad_cam_section,
        "cka": cka_section,
        "embedding": partial(embedding_section, how=config["maps"]),
    }
    sections = []
    for name in config["parts"]:
        console.say(f"  {name}")
        sections.append(parts[name](scene))
    if not any(section.pictures for section in sections):
        reasons = dict.fromkeys(text for section in sections for text in section.left_out)
        raise ConfigError(f"parts={config['parts']}: nothing of it can be shown: {'; '.join(reasons)}")
    return sections


def describe(config: JSON, record: JSON, manifest: Manifest, scene: Scene, sections: list[Section], call: Call) -> JSON:
    """What is written into explain.json."""
    images, folder = scene.images, Path(config["run"]["dir"])
    classes = {name: len(images.members(name)) for name in images.classes}
    return {
        "schema": records.SCHEMA,
        "verb": "explain",
        "command": call.command,
        "run": {
            "dir": config["run"]["dir"],
            "name": folder.resolve().name,
            "method": record["method"],
            "collapse": Run(folder, "", record).collapse,
        },
        "sides": {side.name: side.about for side in scene.sides},
        "arms": {arm: scene.sides[0].arms[arm].spec.model for arm in scene.arms},
        "images": {
            "name": manifest.name,
            "fingerprint": manifest.fingerprint(),
            "synthetic": manifest.synthetic,
            "number": len(images.keys),
            "classes": classes,
            "shown": [images.keys[row] for row in images.first(scene.examples)],
        },
        "seed": config["seed"],
        "sections": {
            part: {
                "numbers": section.numbers,
                "left_out": section.left_out,
                "files": [p.name for p in section.pictures],
            }
            for part, section in zip(config["parts"], sections, strict=True)
        },
        "git": records.git_state(),
        "versions": records.versions((*PACKAGES, "matplotlib", "umap-learn")),
        "finished": records.now(),
    }


def write(made: JSON, sections: list[Section], out: Path) -> None:
    """The pictures, the record, and last the page that holds all of them."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        shown = []
        for section in sections:
            drawn = [(picture, *_shown(save(picture.make, out, picture.name))) for picture in section.pictures]
            shown.append((section, drawn))
        records.write_json(out / RECORD, made)
    except OSError as why:
        raise ConfigError(f"out={out} cannot be written ({why.strerror}); name a writable folder") from why
    render("explain.html.j2", {"made": made, "sections": shown}, out / PAGE)


def _shown(png: bytes) -> tuple[str, int]:
    """A picture as a data URI, and the pixels of the page, 96 per inch, that it is wide."""
    width = int.from_bytes(png[16:20], "big")  # of its header
    return f"data:image/png;base64,{base64.b64encode(png).decode()}", width * 96 // DPI
