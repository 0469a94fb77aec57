"""`cass-scale shard`: a set of images becomes shards that any number of ranks can read by the plan."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO

from cass_scale import machine
from cass_scale.console import Console
from cass_scale.data.convert import ALLOWANCE, Conversion, convert, estimate, refuse_other, unfinished
from cass_scale.data.convert_beton import BetonConversion, Mode
from cass_scale.data.manifest import Manifest
from cass_scale.data.scan import SHOWN
from cass_scale.data.shrink import Recipe, Resize
from cass_scale.data.webdataset import source_of
from cass_scale.errors import ConfigError, DataError, Problems
from cass_scale.locks import lock
from cass_scale.types import JSON, Call
from cass_scale.verbs import rules, settings
from cass_scale.verbs.wire import Build, without

SAY_EVERY = 10.0  # seconds between lines where there is no terminal for a bar


def run(config: JSON, build: Build, call: Call) -> JSON:
    """Convert; returns what was made. Raises the errors of cass_scale.errors."""
    started = time.perf_counter()
    out = check(config)
    console = Console(quiet=call.quiet)
    manifest: Manifest = build(without(config["data"], "noise"))
    job = make_job(config, manifest, out)
    refuse_other(job)
    todo = unfinished(job)
    need = estimate(job, todo)
    images = sum(len(job.rows(shard)) for shard in todo)
    console.say("\n".join((*manifest.notes, *bad_lines(manifest))))
    console.say(
        f"{len(manifest)} images in {job.shards} {job.parts}, {job.shards - len(todo)} of them made before; "
        f"about {need / 2**20:.1f} MiB to write: {out}"
    )
    refuse_small_disk(out, need)
    record = {
        "out": str(out),
        "images": len(manifest),
        "shards": job.shards,
        "made": len(todo),
        "bytes": need,
        "bad": [{"key": bad.key, "why": bad.why} for bad in manifest.bad],
    }
    if call.dry_run:
        console.say("nothing was written (--dry-run)")
        return record
    threads = config["workers"] if config["workers"] != "auto" else machine.cores()
    with claim(out), console.bar(images, 0, unit="image"):
        made = convert(job, todo, threads, Watch(console, images))
    size = job.size()
    console.say(f"done: {out}, {size / 2**20:.1f} MiB  (next: cass-scale pretrain data.path={out})")
    return record | {"bytes": size, "fingerprint": made.fingerprint(), "seconds": time.perf_counter() - started}


def check(config: JSON) -> Path:
    """Every problem of the values at once; returns the folder to write."""
    problems = Problems()
    settings.check_values(config, rules.SHARD, problems)
    out = Path(config["out"]).expanduser().absolute()
    problems.check(settings.writable(out), f"out={out}: not writable; choose a folder you may write to")
    settings.refuse_noise(config, problems)
    mode, ffcv = config["mode"], config["format"] == "ffcv"
    problems.check(ffcv or mode == "auto", f"mode={mode} is one of format=ffcv; tars hold image files")
    lossy = ffcv and mode in ("jpg", "mixed")
    problems.check(not lossy or config["quality"] is not None, f"quality=null: mode={mode} needs that of its JPEGs")
    problems.raise_if_any()
    return out


def make_job(config: JSON, manifest: Manifest, out: Path) -> Conversion:
    """The conversion of the asked format; what is `auto` depends on it."""
    ffcv, source, per_shard = config["format"] == "ffcv", source_of(manifest), config["samples_per_shard"]
    usual: Resize = "square" if ffcv else "short"
    recipe = Recipe(config["size"], usual if config["resize"] == "auto" else config["resize"], config["quality"])
    if not ffcv:
        return Conversion(manifest, source, out, recipe, per_shard)
    mode: Mode = "raw" if config["mode"] == "auto" else config["mode"]
    return BetonConversion(manifest, source, out, recipe, per_shard, mode, config["jpg_share"])


def claim(out: Path) -> IO[str]:
    """The folder, made and held for this process. Raises ConfigError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return lock(out, "out")
    except OSError as error:
        raise ConfigError(f"out={out} cannot be written: {error.strerror}; choose a folder you may write to") from error


def bad_lines(manifest: Manifest) -> list[str]:
    """What was left out, counted; the first few by name, all of them in the manifest."""
    if not manifest.bad:
        return []
    more = [f"  and {len(manifest.bad) - SHOWN} more"] if len(manifest.bad) > SHOWN else []
    return [
        f"{len(manifest.bad)} bad images are left out and listed in the manifest:",
        *(f"  {bad.key}: {bad.why}" for bad in manifest.bad[:SHOWN]),
        *more,
    ]


def refuse_small_disk(out: Path, need: int) -> None:
    """Raise DataError when the disk has not the room, before anything is written."""
    free = machine.free_disk(out)
    if need * ALLOWANCE > free:
        raise DataError(
            f"out={out} needs about {need * ALLOWANCE / 2**20:.0f} MiB and its disk has {free / 2**20:.0f} MiB free; "
            "free some, choose another disk, or a smaller size or quality"
        )


class Watch:
    """Counts images: in a terminal the bar shows the rate and the time left, elsewhere a line now and then does."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.done = console, total, 0
        self.began = self.said = time.monotonic()

    def __call__(self) -> None:
        """One image more."""
        self.done += 1
        now = time.monotonic()
        rate = self.done / max(now - self.began, 1e-9)
        self.console.step(self.done, f"{rate:.1f} images/s")
        if not self.console.drawing and now - self.said > SAY_EVERY:
            self.said, left = now, (self.total - self.done) / rate
            self.console.say(f"image {self.done}/{self.total}  {rate:.1f} images/s  {left:.0f} s left")
