"""What the harness costs beside a bare hand-written loop that does the same work.

    python benchmarks/overhead.py --arms paper_random --batch 4 --steps 8 --repeats 3 --out FOLDER

Both sides run in processes of their own, in turns, so that drift of the machine hits both: the same images from
the same stream, the same views, arms, precision and optimizer. The bare side has no Accelerate, record, meter,
monitor or checkpoint. Step time is the median over steps 2.. of each process; what the monitor and the checkpoint
take is given beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
Sides = dict[str, list[dict[str, Any]]]
sys.path.insert(0, str(ROOT))


def bare(words: list[str], steps: int) -> None:
    """The loop a person would write by hand; prints one JSON line."""
    import torch

    from cass_scale.cli import build, compose_config
    from cass_scale.precision import resolve
    from cass_scale.schedule import make_schedule
    from cass_scale.types import Progress
    from cass_scale.verbs import settings, wire
    from cass_scale.views import make_views

    config = compose_config("pretrain", words)
    seed, size, device = config["seed"], config["train"]["batch_size"], wire.choose_device("auto")
    dtype = resolve(config["train"]["precision"], device).autocast_dtype
    stream = bare_stream(config, build, device)
    method = wire.make_method(config, build, settings.arm_specs(config)).to(device)
    optimizer = wire.make_optimizer(method, config["optim"], device)
    rate, views, times = make_schedule(batch_size=size, **config["schedule"]), build(config["views"]), []
    total = config["train"]["epochs"] * stream.steps_per_epoch * size
    batches = ((epoch, batch) for epoch in range(config["train"]["epochs"]) for batch in stream.epoch(epoch))
    start = time.perf_counter()
    for step, (epoch, batch) in zip(range(steps), batches, strict=False):
        at = Progress(epoch, step, step * size, total)
        for group in optimizer.param_groups:
            group["lr"] = rate(at, config["optim"]["lr"])
        crops = make_views(batch.images, views, batch.index, seed=seed, epoch=epoch)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = method(crops, batch, at).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
    report(times, device.type)


def bare_stream(config: dict[str, Any], build: Any, device: Any) -> Any:
    """The stream that the harness would open."""
    from cass_scale.data.plan import Plan
    from cass_scale.verbs import wire

    manifest = build(wire.without(config["data"], "noise"))
    plan = Plan(manifest.rows("train"), config["train"]["batch_size"], seed=config["seed"])
    node = {**config["stream"], "workers": wire.workers(config["stream"]["workers"])}
    return build(node, manifest=manifest, plan=plan, size=config["arms"]["image_size"], device=device)


def harness(words: list[str], steps: int) -> None:
    """The same through `cass-scale pretrain`; prints one JSON line."""
    import torch

    from cass_scale import pretrain, records

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        record = pretrain(*words, f"train.max_steps={steps}", "train.log_every=1", f"run.dir={run}", quiet=True)
        rows = [row for row in records.read_metrics(run / records.METRICS) if row["step"] >= 1]
    times = [words_batch(words) / row["images_per_s"] for row in rows]
    spans = {name: record["spans"].get(name, 0.0) for name in ("observe", "checkpoint")}
    report(times, "cuda" if torch.cuda.is_available() else "cpu", **spans)


def words_batch(words: list[str]) -> int:
    """The global batch size among the overrides."""
    return int(next(word for word in words if word.startswith("train.batch_size=")).split("=")[1])


def report(times: list[float], device: str, **extra: float) -> None:
    """Step times in seconds and peak memory in bytes, as one JSON line."""
    import torch

    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    print(json.dumps({"times": times, "peak": peak, **extra}))


def child(role: str, words: list[str], steps: int) -> dict[str, Any]:
    """One process of one side."""
    command = [sys.executable, __file__, "--role", role, "--steps", str(steps), "--", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{role} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Run both sides in turns and print the table; with --out leave a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=["bare", "harness"])
    parser.add_argument("--arms", default="paper_random")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    if options.role:
        {"bare": bare, "harness": harness}[options.role](options.words, options.steps)
        return
    words = [
        f"arms={options.arms}",
        f"train.batch_size={options.batch}",
        f"train.precision={options.precision}",
        "stream.workers=1",
        *options.words,
    ]
    sides: Sides = {"bare": [], "harness": []}
    for turn in range(options.repeats):
        for role in sorted(sides, reverse=bool(turn % 2)):
            sides[role].append(child(role, words, options.steps))
            print(
                f"turn {turn + 1}, {role}: {median(sides[role][-1]['times'][1:]):.3f} s per step",
                flush=True,
            )
    from benchmarks.evidence import write_record

    question = "Overhead: the harness beside a bare loop on the same work"
    write_record(options.out, question, summarise(sides, options.steps), sides, vars(options) | {"words": words})


def summarise(sides: Sides, steps: int) -> str:
    """The result as a markdown table."""
    step = {role: [t for run in runs for t in run["times"][1:]] for role, runs in sides.items()}
    peak = {role: median(run["peak"] for run in runs) for role, runs in sides.items()}
    turns = [
        median(h["times"][1:]) / median(b["times"][1:]) for b, h in zip(sides["bare"], sides["harness"], strict=True)
    ]
    aside = {name: median(run[name] for run in sides["harness"]) for name in ("observe", "checkpoint")}
    rows = [
        f"| {role} | {median(times):.3f} | {min(times):.3f} to {max(times):.3f} | {peak[role] / 2**30:.2f} |"
        for role, times in step.items()
    ]
    return "\n".join(
        [
            "| side | median step, s | spread (min to max), s | peak memory, GiB |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Harness / bare: {median(turns):.3f} in time (median of turns: {', '.join(f'{t:.3f}' for t in turns)}), "
            f"{peak['harness'] / peak['bare']:.3f} in peak memory.",
            f"Beside the {steps} steps: the monitor {aside['observe']:.2f} s (a look before the first step "
            f"and one after the last), one checkpoint {aside['checkpoint']:.2f} s.",
        ]
    )


if __name__ == "__main__":
    main()
