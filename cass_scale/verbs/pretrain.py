"""`cass-scale pretrain`: data, method and loop wired together; one run folder is left behind."""

from __future__ import annotations

import math
import os
import platform
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from cass_scale import encoders, hardware, precision, records, rng
from cass_scale.average import Average
from cass_scale.backends.engine import Engine
from cass_scale.colour import to_unit
from cass_scale.console import Console
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.encoders import ArmSpec
from cass_scale.errors import Collapsed, ConfigError, MissingExtra, Problems
from cass_scale.ledger import Todo
from cass_scale.meter import Meter
from cass_scale.methods.base import Method
from cass_scale.monitor import Monitor
from cass_scale.pulse import Pulse
from cass_scale.run import Run
from cass_scale.samples import save_grid
from cass_scale.schedule import make_schedule
from cass_scale.traces import steps as traced_steps
from cass_scale.traces import tracer
from cass_scale.train import train
from cass_scale.types import JSON, Call, Progress, Stream, ViewSpec
from cass_scale.verbs import emulation, exchange, rules, settings, spread, wire
from cass_scale.verbs.folder import begin, check_shared, claim, outcome, proceed
from cass_scale.verbs.wire import Build, Place, without
from cass_scale.views import make_views


def run(config: JSON, build: Build, call: Call) -> JSON:
    """Train what `config` says; returns run.json. Raises the errors of cass_scale.errors."""
    try:
        return pretrain(config, build, call)
    except torch.OutOfMemoryError as error:
        from cass_scale.measure.fit import too_large  # which knows this module

        traceback.clear_frames(error.__traceback__)  # else the run's tensors would stand in the way of the trial
        raise too_large(config) from None


def pretrain(config: JSON, build: Build, call: Call) -> JSON:
    """`run`, but for what it does where the memory ends."""
    specs, kind = check(config, build)
    device, limits = wire.choose_device(config["train"]["device"]), hardware.read(config["hardware"])
    resolved = hardware.resolve(limits, config["train"]["precision"], device)
    refuse_scaled_leftovers(resolved, config)
    folder = Path(config["run"]["dir"] or default_dir(config))
    train_keys = config["train"]
    given = {key: train_keys[key] for key in ("trackers", "backend", "ranks")}
    given |= {"handlers": [exchange.gradients(train_keys)], "limits": limits}
    place = wire.open_place(device, resolved, project=folder, **given)
    folder = Path(place.agreed(str(folder)))  # a name made of the time may differ between ranks
    meter = Meter(place.device, place.world, call.born)
    with Pulse(meter, hang=60 * config["train"]["hang_minutes"]) as pulse, pulse.explaining():
        return run_at(place, folder, config, build, call, specs, kind, pulse)


def run_at(
    place: Place,
    folder: Path,
    config: JSON,
    build: Build,
    call: Call,
    specs: dict[str, ArmSpec],
    kind: type[Method],
    pulse: Pulse,
) -> JSON:
    """What `run` does once all ranks can speak to each other."""
    console, meter, train_keys = Console(main=place.main, quiet=call.quiet), pulse.meter, config["train"]
    with place.accelerator.main_process_first(), meter.host("prepare"):
        manifest: Manifest = build(without(config["data"], "noise"))
        ids = wire.training_rows(manifest, kind.needs)
        parts = {"accumulate": train_keys["accumulate"], "rank": place.rank, "world": place.world}
        plan = Plan(ids, train_keys["batch_size"], seed=config["seed"], tail=train_keys["tail"], **parts)
    if labels := "label" in kind.needs:
        specs = {name: replace(spec, outputs=len(manifest.classes)) for name, spec in specs.items()}
    if call.dry_run:
        return dry_run(config, build, specs, manifest, plan, place.precision, console)
    with meter.host("prepare"):
        size = config["arms"]["image_size"]
        opened = wire.open_stream(config["stream"], build, manifest, plan, size, place, with_labels=labels)
        stream = wire.noisy(config, opened)
        method = wire.make_method(config, build, specs).to(place.device)
        wire.check_needs(config, method, stream)
        flops = wire.cost(config, build, specs, 2).flops_per_image if train_keys["count_flops"] else None
    with claim(folder, config, manifest, place) as fresh:
        if fresh:
            begin(folder, config, manifest, specs, stream.steps_per_epoch, place, call, flops)
        elif place.main:
            proceed(folder, config, stream.steps_per_epoch, place, call)
        place.accelerator.wait_for_everyone()
        check_shared(folder, manifest)
        the_run = Run(folder, meter, console, keep=train_keys["keep"], main=place.main)
        observe_run(the_run, pulse, place, config["profile"]["steps"])
        sizes = f"{len(ids)} images for training, {stream.steps_per_epoch} steps per epoch"
        console.say("\n".join((*manifest.notes, *place.notes, f"{sizes}, {place.precision.why}; {folder}")))
        about = {"method": config["method"]["name"], "seed": config["seed"], "batch_size": train_keys["batch_size"]}
        with outcome(the_run), closing(stream), wire.tracking(place, the_run, about), pulse.explaining():
            work(config, build, method, stream, manifest, place, the_run)
    return records.read(folder)


def observe_run(run: Run, pulse: Pulse, place: Place, profiled: str | int | None) -> None:
    """This rank's log file, heartbeat and, on request, profile: what watches a run from outside of its loop."""
    run.console.keep(run.folder / "logs" / f"rank_{place.rank}.log")
    run.console.note(f"rank {place.rank} of {place.world}, process {os.getpid()} on {platform.node()}, {place.device}")
    pulse.folder, pulse.log = run.folder, run.console.log
    pulse.on_end = lambda text: run.update(status="failed", finished=records.now(), error=text)
    hooks: list[Callable[[int | None], None]] = [pulse.step]
    if profiled is not None:
        trace = run.folder / "profile" / f"rank_{place.rank}_steps_{profiled}.json"
        hooks.append(tracer(str(profiled), trace, place.device))

    def before_step(step: int | None) -> None:
        for hook in hooks:
            hook(step)

    run.before_step = before_step
    pulse.step(0)  # a start that hangs, in the first exchange of weights or a read of the probe, is named, too


def work(
    config: JSON, build: Build, method: Method, stream: Stream, manifest: Manifest, place: Place, run: Run
) -> None:
    """The training itself, and what is left when it ends."""
    swa = config["swa"]
    torch.manual_seed(config["seed"] + place.rank)  # dropout and stochastic depth draw from the global state
    views: ViewSpec = build(config["views"])
    memory: JSON = {}
    average = Average(method, start=swa["start"], every=swa["every"]) if swa["enabled"] else None
    optimizer = wire.make_optimizer(method, config["optim"], place.device)
    engine = spread.start(place.told, method, optimizer, place.accelerator)
    done = train(
        engine,
        stream,
        wire.make_rates(config),
        views,
        make_todo(config),
        run,
        observe=observer(config, build, engine, manifest, place, run, memory, views),
        memory=memory,
        average=average,
    )
    export(engine, manifest, config, run)
    run.update(
        status="done", finished=records.now(), steps=done.step, images_seen=done.samples, metrics=run.last,
        exported=method.exported,
    )  # fmt: skip
    if run.main and place.hardware:
        more = {
            "differs": emulation.differs(config),
            "prediction": emulation.prediction(place, records.read(run.folder)),
        }
        run.update(hardware=place.hardware | more)
    run.console.say(f"done: {run.folder}, {speed(run)}  (next: cass-scale evaluate run.dir={run.folder})")


def export(engine: Engine, manifest: Manifest, config: JSON, run: Run) -> None:
    """One whole file per encoder, from any backend, by the main rank."""
    state, method = engine.model_state(), engine.method
    if not run.main:
        return
    note = {"data": manifest.name, "synthetic": str(manifest.synthetic), "method": config["method"]["name"]}
    (run.folder / "export").mkdir(exist_ok=True)
    places = {module: f"{name}." for name, module in method.named_modules()}
    for name, encoder in method.encoders().items():
        at = places[encoder.body]
        body = {key.removeprefix(at): x for key, x in state.items() if key.startswith(at)}
        encoders.export(encoder, run.folder / "export" / f"{name}.safetensors", note, body)


def speed(run: Run) -> str:
    """Images per second and device over the whole training, and the arithmetic that they took."""
    record = records.read(run.folder) if run.main else {}
    hours = run.meter.device_hours()["train"]
    rate, flops = record.get("images_seen", 0) / max(1e-9, 3600 * hours), record.get("flops_per_image")
    work = f" x {flops / 1e9:.3g} GFLOP per image = {rate * flops / 1e12:.3g} TFLOP/s" if flops else ""
    return f"{rate:.1f} images/s{work} per device"


def check(config: JSON, build: Build) -> tuple[dict[str, ArmSpec], type[Method]]:
    """Every problem of the values at once, before a device or a file is touched; the arms and the method's class."""
    problems = Problems()
    settings.check_values(config, rules.PRETRAIN, problems)
    problems.found += hardware.problems(config["hardware"], config["train"]["precision"], "train.precision")
    specs, kind = settings.check_arms(config, problems), wire.method_class(config, build)
    batch, parts = config["train"]["batch_size"], config["train"]["accumulate"]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if not problems.found:
        whole = batch % (parts * world) == 0
        problems.check(whole, f"train.batch_size={batch} is not divisible by {world} ranks x train.accumulate={parts}")
        problems.check(
            batch // (parts * world) >= 2,
            f"train.batch_size={batch}: BatchNorm needs 2 images per rank and micro-batch",
        )
        for tracker in settings.missing(config["train"]["trackers"]):
            problems.found += MissingExtra(tracker, "trackers", f"train.trackers={tracker}").problems
        views: ViewSpec = build(config["views"])
        settings.check_views(views, specs, config["arms"]["image_size"], problems)
        problems.found += kind.problems(specs, views, config["objective"]["_target_"].rpartition(".")[2])
        with problems.collecting():
            problems.found += spread.problems(config, spread.choose(config["train"]["backend"], os.environ).backend)
        random = [name for name, spec in specs.items() if spec.weights == "random"]
        problems.check(
            not (config["train"]["batch_norm"] == "global_frozen" and random),
            f"train.batch_norm=global_frozen: random weights ({', '.join(random)}) have no statistics; take sync",
        )
        problems.check(
            not (config["swa"]["enabled"] and kind.averaged),
            f"swa.enabled=true: method={config['method']['name']} exports a running mean of its weights already",
        )
        with problems.collecting():
            wire.check_stream(config["stream"])
        with problems.collecting():
            traced_steps(str(config["profile"]["steps"] or 1))
        with problems.collecting():
            make_schedule(batch_size=batch, **config["schedule"])
    folder = config["run"]["dir"]
    problems.found += spread.restarts(folder, os.environ)
    problems.check(
        folder is None or settings.writable(Path(folder)),
        f"run.dir={folder}: not writable; choose a folder you may write to",
    )
    problems.raise_if_any()
    return specs, kind


def refuse_scaled_leftovers(resolved: precision.Resolved, config: JSON) -> None:
    """Raise ConfigError where gradients that are never cleared meet loss scaling."""
    if resolved.use_scaler and not config["train"]["clear_gradients"]:
        raise ConfigError(
            "train.clear_gradients=false (method=cass_official) contradicts fp16: loss scaling would rescale the "
            "gradients of earlier steps again and again; set train.precision=fp32"
        )


def default_dir(config: JSON) -> Path:
    """A name nobody chose: unique to the second, so it is never resumed by accident."""
    source = config["data"]
    data = source.get("name") or Path(source.get("path") or source["_target_"].rpartition(".")[2]).name
    method = "-".join(filter(None, (config["method"]["name"], config["arm"])))
    return Path("runs") / f"{method}-{data}-s{config['seed']}-{time.strftime('%Y%m%d-%H%M%S')}"


def make_todo(config: JSON) -> Todo:
    """The loop's orders."""
    keys, monitor = config["train"], config["monitor"]
    names = (
        "epochs",
        "batch_size",
        "max_steps",
        "accumulate",
        "clip",
        "clip_each",
        "clear_gradients",
        "log_every",
        "save_every",
    )
    # A look is a forward pass over the probe; a step costs about three over its batch. auto spends 1 % on looks.
    every = (
        math.ceil(100 / 3 * monitor["images"] / keys["batch_size"]) if monitor["every"] == "auto" else monitor["every"]
    )
    return Todo(seed=config["seed"], observe_every=every, best="probe/lowest_rankme", **{n: keys[n] for n in names})


def observer(
    config: JSON,
    build: Build,
    engine: Engine,
    manifest: Manifest,
    place: Place,
    run: Run,
    memory: JSON,
    views: ViewSpec,
) -> Callable[[Progress], JSON]:
    """The collapse monitor as the loop calls it: measures, warns once per arm, stops when told to."""
    rows = manifest.rows("train")
    some = rows[rng.permutation(config["seed"], 0, len(rows), rng.SUBSET)[: config["monitor"]["images"]]]
    images, index = wire.probe_images(config, build, manifest, some, place)
    if run.main:
        samples = make_views(images[:8], views, index[:8], seed=config["seed"], epoch=0)
        save_grid(run.folder / "samples.png", [to_unit(images[:8]), *samples])
    monitor = Monitor(to_unit(images))

    def observe(at: Progress) -> JSON:
        monitor.baseline = memory.get("baseline")
        row = monitor(lambda view: engine.outputs([view]), engine.method)
        memory["baseline"] = monitor.baseline
        found = monitor.verdict(row)
        run.note_collapse(at.step, found)
        before, memory["flagged"] = memory.get("flagged", []), [arm for arm, _ in found]
        # One look may catch an arm in passing: a random ViT's outputs first draw together, then spread.
        if set(before) & set(memory["flagged"]) and config["train"]["on_collapse"] == "stop":
            raise Collapsed(f"stopped at step {at.step} (train.on_collapse=stop); try method=cass_contrast")
        return row | {"probe/lowest_rankme": min(v for k, v in row.items() if k.endswith("/rankme_features"))}

    return observe


def dry_run(
    config: JSON,
    build: Build,
    specs: dict[str, ArmSpec],
    manifest: Manifest,
    plan: Plan,
    resolved: precision.Resolved,
    console: Console,
) -> JSON:
    """Print the resolved configuration, the steps, and the cost of one step; nothing is started or written."""
    limits = hardware.read(config["hardware"])
    cost = wire.cost(config, build, specs, plan.batch_size, 2 if resolved.autocast_dtype else 4)
    steps = min(config["train"]["epochs"] * plan.steps_per_epoch, config["train"]["max_steps"] or 10**12)
    images = steps * config["train"]["batch_size"]
    giga, peta = cost.flops_per_image / 1e9, cost.flops_per_image * images / 1e15
    lines = [
        yaml.safe_dump(config, sort_keys=False),
        f"data         {manifest.name}: {len(manifest.rows('train'))} training images of {len(manifest)}",
        f"precision    {resolved.why}",
        *([f"hardware     {limits.shown}"] if limits else []),
        f"steps        {steps} of {config['train']['batch_size']} images ({plan.steps_per_epoch} per epoch)",
        f"parameters   {cost.parameters / 1e6:.1f} M",
        f"memory       about {cost.memory_bytes / 2**30:.1f} GiB per device (weights, gradients, Adam, activations)",
        f"compute      {giga:.1f} GFLOP per image, {peta:.3g} PFLOP in all",
        "nothing was started (--dry-run)",
    ]
    console.say("\n".join(lines))
    return {
        "steps": steps,
        "images": images,
        "flops_per_image": cost.flops_per_image,
        "memory_bytes": cost.memory_bytes,
        "parameters": cost.parameters,
    }
