"""`cass-scale study`: a grid of pretrainings and their evaluations, one process per row; what is done is not redone."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cass_scale import dist, grid, hardware, records
from cass_scale.checkpoint import StopSignal
from cass_scale.console import Console
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.errors import EXIT_FAILED, EXIT_OK, ConfigError, Preempted, Problems
from cass_scale.forecast import Forecast, Shape, forecast
from cass_scale.grid import Row
from cass_scale.locks import busy, lock
from cass_scale.measure.peaks import matrix_product
from cass_scale.page import hours
from cass_scale.slots import Ended, Job, work
from cass_scale.studies import STUDY, row_done, row_seconds, scored
from cass_scale.types import JSON, Call
from cass_scale.verbs import pretrain, rules, settings, wire
from cass_scale.verbs.folder import free, total_steps
from cass_scale.verbs.task import held_back
from cass_scale.verbs.wire import Build, choose_device, without

ROW = (sys.executable, "-m", "cass_scale.verbs.row")
PATIENCE = 60  # seconds that rows of a killed study may take to save and leave


def run(config: JSON, build: Build, call: Call) -> JSON:
    """Run what is left of the study; returns study.json, `exit_code` 1 when a row failed. Raises Preempted."""
    console = Console(quiet=call.quiet)
    study, rows, folder = settle(config)
    configs = check(rows, build)
    manifest = check_data(configs, rows, build)
    seeds = len({row.seed for row in rows})
    if seeds < grid.SEEDS_FOR_INTERVAL:
        console.warn(f"{seeds} seed(s): an interval needs {grid.SEEDS_FOR_INTERVAL}; the report will give none")
    if call.dry_run:
        return dry_run(rows, configs, manifest, folder, build, console)
    slots = choose_slots(config["jobs"], rows)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder, "out"):
        begin(folder, study, rows, config, slots, call)
        failed = run_rows(rows, folder, slots, console, keep=config["keep_checkpoints"])
    console.say(
        f"{len(rows) - failed} of {len(rows)} rows done; next: cass-scale report runs={folder} out={folder}.html"
    )
    return records.read_json(folder / STUDY) | {"exit_code": EXIT_FAILED if failed else EXIT_OK}


def settle(config: JSON) -> tuple[JSON, list[Row], Path]:
    """The study as its preset has it, its rows and its folder. Raises ConfigError with everything wrong."""
    problems = Problems()
    settings.check_values(config, rules.STUDY, problems)
    one = dist.world() == 1
    problems.check(one, "study starts its rows itself: start it without accelerate launch, torchrun or srun -n")
    problems.raise_if_any()
    preset, name = config["preset"], config["study"]["name"]
    study = grid.shrunk(config["study"], preset)
    with problems.collecting():
        rows = grid.plan(study, config, config["words"])
    folder = Path(config["out"] or f"runs/study-{name}{'' if preset == 'paper' else f'-{preset}'}")
    problems.check(settings.writable(folder), f"out={folder}: not writable; choose a folder you may write to")
    problems.raise_if_any()
    return study, rows, folder


def check(rows: Sequence[Row], build: Build) -> dict[Shape, JSON]:
    """The configuration of every shape of row. Raises ConfigError with the problems of all, each with its rows."""
    from cass_scale.cli import compose_config

    first: dict[Shape, Row] = {}
    for row in rows:
        first.setdefault(row.shape, row)
    configs, wrong = {}, defaultdict[str, list[Shape]](list)
    scoring: dict[tuple[str, ...], list[str]] = {}  # most rows are scored alike
    for shape, row in first.items():
        problems = Problems()
        with problems.collecting():
            configs[shape] = compose_config("pretrain", row.words)
            pretrain.check(configs[shape], build)
        for words in row.evaluations.values():
            if words not in scoring:
                one = Problems()
                with one.collecting():
                    config = compose_config("evaluate", words)
                    settings.check_values(config, rules.EVALUATE, one)
                    settings.check_amounts(config, one)
                scoring[words] = one.found
            problems.found += scoring[words]
        for problem in dict.fromkeys(problems.found):
            wrong[problem].append(shape)
    if wrong:
        raise ConfigError(*(f"{problem} ({_where(shapes, list(first))})" for problem, shapes in wrong.items()))
    return configs


def _where(shapes: Sequence[Shape], all_shapes: Sequence[Shape]) -> str:
    if len(shapes) == len(all_shapes):
        return "in every row"
    names = dict.fromkeys(name for name, _ in shapes)
    whole = [n for n in names if sum(n == name for name, _ in shapes) == sum(n == name for name, _ in all_shapes)]
    parts = [*whole, *(f"{name} at {setting}" for name, setting in shapes if name not in whole)]
    return f"rows {', '.join(parts[:6])}{f' and {len(parts) - 6} more' if len(parts) > 6 else ''}"


def check_data(configs: Mapping[Shape, JSON], rows: Sequence[Row], build: Build) -> Manifest:
    """The images, read once. Raises DataError when they are fewer than a batch, or lack labels that a score needs."""
    manifest: Manifest = build(without(next(iter(configs.values()))["data"], "noise"))
    Plan(manifest.rows("train"), max(config["train"]["batch_size"] for config in configs.values()), seed=0)
    if any(row.evaluations for row in rows):
        held_back(manifest)
    return manifest


def choose_slots(jobs: int | None, rows: Sequence[Row]) -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is in each slot: one slot per visible device, or `jobs` of them; None: no device."""
    on_cpu = any("train.device=cpu" in row.words for row in rows)
    count = 0 if on_cpu else torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = (named.split(",") if named else [str(i) for i in range(count)])[:count]
    number = jobs or max(1, count)
    return [devices[i % count] if devices else None for i in range(number)]


def begin(
    folder: Path, study: JSON, rows: Sequence[Row], config: JSON, slots: Sequence[str | None], call: Call
) -> None:
    """Write study.json: the plan, beside what it held before; code and machine are in each run's own record.

    Raises ConfigError when a row of it was another one.
    """
    path = folder / STUDY
    fresh: JSON = {"rows": {}, "failed": {}, "started": records.now()}
    old = records.read_json(path) if path.exists() else fresh
    about = {key: study[key] for key in ("name", "title", "axis", "standard")} | {"preset": config["preset"]}
    new = {row.folder: row.record() for row in rows}
    both = [key for key in new if key in old["rows"]]
    was, now = ((one["name"], one["preset"]) for one in (old if old["rows"] else about, about))
    clash = [f"name={was[0]} preset={was[1]} -> name={now[0]} preset={now[1]}"] if was != now else []
    clash += [f"{key}: {change}" for key in both for change in _changes(old["rows"][key], new[key])]
    if clash:
        more = f"; and {len(clash) - 3} more" if len(clash) > 3 else ""
        raise ConfigError(
            f"out={folder} holds another study ({'; '.join(clash[:3])}{more}): give the same words, or another out"
        )
    for key in both:
        new[key]["evaluations"] = old["rows"][key]["evaluations"] | new[key]["evaluations"]
    sharing = max(old.get("jobs_per_device", 1), max(list(slots).count(slot) for slot in slots))
    records.write_json(path, old | about | {
        "schema": records.SCHEMA, "verb": "study", "command": call.command,
        "target": config["target"], "settings": list(study["settings"]), "protocols": list(study["protocols"]),
        "rows": old["rows"] | new, "jobs_per_device": sharing, "finished": None,
    })  # fmt: skip


def _changes(old: JSON, new: JSON) -> list[str]:
    """What differs between two records of a row and would change its run; evaluations may be added."""
    common = old["evaluations"].keys() & new["evaluations"].keys()
    pairs = [("", old["words"], new["words"])]
    pairs += [(f"{name} ", old["evaluations"][name], new["evaluations"][name]) for name in sorted(common)]
    both_ways = [(what, _only(was, now), _only(now, was)) for what, was, now in pairs]
    return [f"{what}{gone or 'nothing'} -> {come or 'nothing'}" for what, gone, come in both_ways if gone or come]


def _only(words: Sequence[str], others: Sequence[str]) -> str:
    return " ".join(word for word in words if word not in others and not free(word.partition("=")[0]))


def commands(row: Row, folder: Path) -> list[list[str]]:
    """What is left to do of a row, as words of `cass-scale`."""
    place = folder / row.folder
    there = scored(place)
    todo = [] if row_done(place) else [["pretrain", *row.words, f"run.dir={place}", "--quiet"]]
    due = [words for words in row.evaluations.values() if grid.score_of(words) not in there]
    return todo + [["evaluate", *words, f"run.dir={place}", "--quiet"] for words in due]


def run_rows(
    rows: Sequence[Row], folder: Path, slots: Sequence[str | None], console: Console, *, keep: bool = False
) -> int:
    """Run all that is left, tell of each row, keep study.json; returns how many failed. Raises Preempted.

    Checkpoints of rows that are done go, unless they are to be kept: a study of many rows would fill a disk.
    """
    wait_for_leavers(rows, folder)
    by_name = {row.folder: row for row in rows}
    left = {row.folder: todo for row in rows if (todo := commands(row, folder))}
    took = [(row.shape, row_seconds(folder / row.folder)) for row in rows if row.folder not in left]
    failed: dict[str, str] = {}
    if len(left) < len(rows):
        console.say(f"{len(rows) - len(left)} rows were done before")
        warn_of_other_code([folder / row.folder for row in rows if row.folder not in left], console)

    def ended(end: Ended) -> None:
        row = by_name[end.job.name]
        del left[end.job.name]
        if stop.name and end.code:
            return
        if end.why:
            failed[row.folder] = end.why
            console.warn(f"FAILED {row.shown}: {end.why} (log: {end.job.log})")
        else:
            took.append((row.shape, end.seconds))
            if not keep:
                for checkpoints in [*(folder / row.folder).rglob("checkpoints")]:  # also of fine-tunings
                    shutil.rmtree(checkpoints, ignore_errors=True)
        note_end(folder, row, end.why)
        how = "failed" if end.why else f"done in {hours(end.seconds / 3600)}"
        rest = eta(left, by_name, took, len(slots))
        console.say(f"row {len(rows) - len(left)}/{len(rows)}  {row.shown}: {how}{rest}")

    logs = {key: folder / "logs" / f"{key.replace('/', '-')}.log" for key in left}
    jobs = [Job(key, (*ROW, json.dumps(todo)), logs[key]) for key, todo in left.items()]
    with StopSignal() as stop:
        if not work(jobs, slots, ended, lambda: bool(stop.name)):
            raise Preempted(f"{stop.name}: rows under way have saved; the same command again continues the study")
    records.write_json(folder / STUDY, records.read_json(folder / STUDY) | {"finished": records.now()})
    return len(failed)


def warn_of_other_code(done: Iterable[Path], console: Console) -> None:
    """Say which finished rows are of another version of the code than those to come would be."""
    now = records.git_state()["sha"]
    shas = [(records.read(place).get("git") or {}).get("sha") for place in done]
    if others := sorted({str(sha)[:12] for sha in shas if sha != now}):
        number = sum(sha != now for sha in shas)
        console.warn(f"{number} of them are of other code ({', '.join(others)}); this is {str(now)[:12]}")


def eta(left: Iterable[str], rows: Mapping[str, Row], took: Iterable[tuple[Shape, float]], slots: int) -> str:
    """How long the rest will take, for a progress line."""
    shapes = [rows[key].shape for key in left]
    expected = forecast(shapes, took)
    return f"; {len(shapes)} to go, about {hours(expected.seconds / slots / 3600)}" if expected and shapes else ""


def note_end(folder: Path, row: Row, why: str) -> None:
    """Keep in study.json which rows failed, and their last words."""
    record = records.read_json(folder / STUDY)
    failed = {key: text for key, text in record["failed"].items() if key != row.folder}
    records.write_json(folder / STUDY, record | {"failed": failed | ({row.folder: why} if why else {})})


def wait_for_leavers(rows: Sequence[Row], folder: Path) -> None:
    """Rows of a study that was killed save and leave; until then their folders are theirs."""
    deadline = time.monotonic() + PATIENCE
    for place in (folder / row.folder for row in rows):
        while place.is_dir() and time.monotonic() < deadline and busy(place):
            time.sleep(0.2)


def dry_run(
    rows: Sequence[Row], configs: Mapping[Shape, JSON], manifest: Manifest, folder: Path, build: Build, console: Console
) -> JSON:
    """Print every shape of row with its cost, and the predicted device-hours of all that is left; start nothing."""
    left = [row for row in rows if commands(row, folder)]
    took = [(row.shape, row_seconds(folder / row.folder)) for row in rows if row not in left]
    device = choose_device(next(iter(configs.values()))["train"]["device"])
    flops, images = {}, len(manifest.rows("train"))
    for shape, config in configs.items():
        resolved = hardware.resolve(hardware.read(config["hardware"]), config["train"]["precision"], device)
        batch = config["train"]["batch_size"]
        cost = wire.cost(config, build, settings.arm_specs(config), batch)
        flops[shape] = cost.flops_per_image * batch * total_steps(config, images // batch)
    rate = matrix_product(device, resolved.autocast_dtype or torch.float32)
    table = [_dry_line(shape, rows, left, took, flops, rate) for shape in configs]
    console.table(("row", "setting", "seeds", "left", "PFLOP each", "device-hours each"), table)
    expected = forecast([row.shape for row in left], took, flops, rate) or Forecast(0.0, 0, 0, 0)
    console.say(
        f"{len(left)} of {len(rows)} rows to run in {folder}, on {images} images of {manifest.name}\n"
        f"predicted device-hours: {expected.seconds / 3600:.3g} ({expected.why()})\nnothing was started (--dry-run)"
    )
    return {
        "rows": len(rows),
        "left": len(left),
        "device_hours": expected.seconds / 3600,
        "why": expected.why(),
        "flops": sum(flops[row.shape] for row in left),
    }


def _dry_line(shape: Shape, rows: Sequence[Row], left: Sequence[Row], took: Any, flops: Any, rate: float) -> list[str]:
    one = forecast([shape], took, flops, rate)
    seeds, to_run = (sum(row.shape == shape for row in some) for some in (rows, left))
    return [*shape, str(seeds), str(to_run), f"{flops[shape] / 1e15:.3g}", f"{one.seconds / 3600:.3g}" if one else ""]
