"""What the harness costs beside a bare hand-written loop that does the same work.

    python benchmarks/overhead.py --arms paper_random --batch 4 --steps 8 --repeats 3 --out benchmarks/records/DATE_overhead_HARDWARE

Both sides run in processes of their own, in turns, so that drift of the machine hits both: the same images from the
same stream, the same views, arms, precision and optimizer. The bare side has no Accelerate, record, meter, monitor or
checkpoint. Step time is the median over steps 2.. of each process; the monitor and the last checkpoint are given beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def bare(words: list[str], steps: int) -> None:
    """The loop a person would write by hand; prints one JSON line."""
    import torch

    from cass_scale.cli import build, compose_config
    from cass_scale.data.plan import Plan
    from cass_scale.errors import Problems
    from cass_scale.precision import resolve
    from cass_scale.schedule import make_schedule
    from cass_scale.types import Batch, Progress
    from cass_scale.verbs import settings, wire
    from cass_scale.views import make_views

    config = compose_config("pretrain", words)
    keys, device = config["train"], wire.choose_device(config["train"]["device"])
    dtype = resolve(keys["precision"], device).autocast_dtype
    manifest = build(wire.without(config["data"], "noise"))
    plan = Plan(manifest.rows("train"), keys["batch_size"], seed=config["seed"])
    workers = wire.workers(config["stream"]["workers"])
    stream = build({**config["stream"], "workers": workers}, manifest=manifest, plan=plan, size=config["arms"]["image_size"], device=device)
    method = wire.make_method(config, build, settings.arm_specs(config, Problems())).to(device)
    optimizer = wire.make_optimizer(method, config["optim"], device)
    rate = make_schedule(batch_size=keys["batch_size"], **config["schedule"])
    views, total, times = build(config["views"]), keys["epochs"] * plan.steps_per_epoch, []
    step = 0
    for epoch in range(keys["epochs"]):
        for batch in stream.epoch(epoch):
            start = time.perf_counter()
            at = Progress(epoch, step, step * keys["batch_size"], total * keys["batch_size"])
            for group in optimizer.param_groups:
                group["lr"] = rate(at, config["optim"]["lr"])
            crops = make_views(batch.images, views, batch.index, seed=config["seed"], epoch=epoch)
            with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                loss = method(crops, Batch(batch.images, batch.index), at).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            step += 1
            if step == steps:
                report(times, device.type)
                return


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

    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"times": times, "peak": peak, **extra}))


def child(role: str, words: list[str], steps: int) -> dict[str, object]:
    """One process of one side."""
    command = [sys.executable, __file__, "--role", role, "--steps", str(steps), "--", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{role} failed:\n{done.stderr[-3000:]}")
    result: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
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
    words = [f"arms={options.arms}", f"train.batch_size={options.batch}", f"train.precision={options.precision}", "stream.workers=1", *options.words]
    sides: dict[str, list[dict[str, object]]] = {"bare": [], "harness": []}
    for turn in range(options.repeats):
        for role in sorted(sides, reverse=bool(turn % 2)):
            sides[role].append(child(role, words, options.steps))
            print(f"turn {turn + 1}, {role}: {statistics.median(sides[role][-1]['times'][1:]):.3f} s per step", flush=True)  # type: ignore[index]
    from evidence import write_record

    write_record(options.out, "overhead", summarise(sides, options.steps), sides, vars(options) | {"words": words})


def summarise(sides: dict[str, list[dict[str, object]]], steps: int) -> str:
    """The result as a markdown table."""
    step = {role: [t for run in runs for t in run["times"][1:]] for role, runs in sides.items()}  # type: ignore[index]
    peak = {role: statistics.median(run["peak"] for run in runs) for role, runs in sides.items()}  # type: ignore[type-var]
    median = {role: statistics.median(times) for role, times in step.items()}
    pairs = [statistics.median(h["times"][1:]) / statistics.median(b["times"][1:]) for b, h in zip(sides["bare"], sides["harness"], strict=True)]  # type: ignore[index]
    lines = [
        "| side | median step, s | spread (min to max), s | peak memory, GiB |",
        "|---|---|---|---|",
        *(f"| {r} | {median[r]:.3f} | {min(step[r]):.3f} to {max(step[r]):.3f} | {peak[r] / 2**30:.2f} |" for r in ("bare", "harness")),  # type: ignore[operator]
        "",
        f"Harness / bare: {median['harness'] / median['bare']:.3f} in time (by turn: {', '.join(f'{p:.3f}' for p in pairs)}), "
        f"{peak['harness'] / peak['bare']:.3f} in peak memory.",  # type: ignore[operator]
        f"Beside the steps, in {steps} steps: the monitor {statistics.median(r['observe'] for r in sides['harness']):.2f} s "  # type: ignore[type-var]
        f"(looks before the first step and after the last), one checkpoint {statistics.median(r['checkpoint'] for r in sides['harness']):.2f} s.",  # type: ignore[type-var]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
