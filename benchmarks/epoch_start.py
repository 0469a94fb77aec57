"""What a run over a million images waits for: the manifest at its opening, and the first batch of each epoch.

    python benchmarks/epoch_start.py --samples 1000000 --out benchmarks/records/DATE_epoch-start_HARDWARE

The index is synthetic and of full size: a manifest with a row per image and, for shards, an index per 1000 of them.
The images are not: each tar holds one small PNG, to which all rows of its index point, and of the files only those are
there that the measured batches ask for. Every turn is a process of its own and resumes in the middle of an epoch.
"Open" happens once per run: manifest and indexes are read, plan and stream made; imports are not counted, nor, for
files, what a first opening adds: it lists them and reads each one. Memory is the proportional set size: of the process
after opening, and of it and its workers at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from cass_scale.data.dali import DaliStream  # noqa: E402
from cass_scale.data.folder import FolderStream  # noqa: E402
from cass_scale.data.index import SUFFIX, Sample, ShardIndex  # noqa: E402
from cass_scale.data.layouts import MANIFEST, SHARDS  # noqa: E402
from cass_scale.data.manifest import Manifest  # noqa: E402
from cass_scale.data.plan import Plan  # noqa: E402
from cass_scale.data.shards import shard_name, shards  # noqa: E402
from cass_scale.data.webdataset import WebDatasetStream  # noqa: E402
from cass_scale.types import Batch, Stream  # noqa: E402

STREAMS = {"folder": FolderStream, "webdataset": WebDatasetStream, "dali": DaliStream}
PER_SHARD, SIDE, BATCH, EPOCH = 1000, 32, 96, 7
THERE = 32  # batches whose files are there, from each start on: workers read ahead of the one that is measured
COLUMNS = {"open": "open, s", "resume": f"resumed at 3/4 of epoch {EPOCH}, s", "next": "the epoch after it, s"}


def make(root: Path, samples: int) -> None:
    """The set, below `root`: `files` and `tars`, each with its manifest."""
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(image, "PNG")
    manifest = make_manifest(root / "files", samples, image.getvalue())
    manifest.write(root / "files" / MANIFEST)
    plan = make_plan(manifest)
    for epoch, start in ((EPOCH, middle(plan)), (EPOCH + 1, 0)):
        for _, ids in zip(range(THERE), plan.batches(epoch, start), strict=False):
            for row in ids.tolist():
                place = manifest.root / manifest.keys[row]
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(image.getvalue())
    make_shards(root / "tars", manifest, image.getvalue())


def make_manifest(root: Path, samples: int, image: bytes) -> Manifest:
    """A row per image: some fifty bytes of path, a class, a patient."""
    rows, digest = range(samples), hashlib.sha256(image).hexdigest()
    labels = tuple(f"class-{i % 97:03d}" for i in rows)
    return Manifest(
        name="synthetic", root=root, keys=tuple(f"part-{i // 1000:05d}/a-synthetic-image-{i:09d}.png" for i in rows),
        labels=labels, groups=tuple(f"patient-{i // 5:07d}" for i in rows), splits=("train",) * samples,
        sha256=(digest,) * samples, sizes=(len(image),) * samples, classes=tuple(sorted(set(labels))),
        multilabel=False, synthetic=True,
    )  # fmt: skip


def make_shards(root: Path, manifest: Manifest, image: bytes) -> None:
    """The same rows as shards of `cass-scale shard`, but with one image per tar for all of its rows."""
    manifest.write(root / MANIFEST)
    tar, digest = bytes(512) + image, hashlib.sha256(image).hexdigest()
    starts = range(0, len(manifest), PER_SHARD)
    for number, start in enumerate(starts):
        rows = range(start, min(start + PER_SHARD, len(manifest)))
        columns = zip(manifest.labels[start:], manifest.groups[start:], manifest.splits[start:], strict=True)
        samples = tuple(
            Sample(f"{row:09d}.png", 512, len(image), digest, *about) for row, about in zip(rows, columns, strict=False)
        )
        (root / f"{shard_name(number)}.tar").write_bytes(tar)
        index = ShardIndex(f"{shard_name(number)}.tar", len(tar), hashlib.sha256(tar).hexdigest(), samples)
        index.write(root / f"{shard_name(number)}{SUFFIX}")
    head = {"format": "webdataset", "shards": len(starts), "samples_per_shard": PER_SHARD}
    (root / SHARDS).write_text(json.dumps(head))


def make_plan(manifest: Manifest) -> Plan:
    return Plan(manifest.rows("train"), BATCH, seed=0, tail="carry")


def middle(plan: Plan) -> int:
    return plan.steps_per_epoch * 3 // 4


def measure(kind: str, root: Path, workers: int) -> dict[str, float]:
    """Seconds and bytes of one turn, in this process."""
    marks = [time.perf_counter()]
    manifest = Manifest.read(root / "files" / MANIFEST) if kind == "folder" else shards(root / "tars")
    plan = make_plan(manifest)
    stream: Stream = STREAMS[kind](manifest, plan, size=SIDE, workers=workers, device="cpu")
    marks.append(time.perf_counter())
    opened = proportional()
    for epoch, start in ((EPOCH, middle(plan)), (EPOCH + 1, 0)):
        marks.append(time.perf_counter())
        batch: Batch = next(stream.epoch(epoch, start))
        marks.append(time.perf_counter())
        assert batch.index.tolist() == plan.order(epoch)[start * BATCH :][:BATCH].tolist()
    at_end = proportional()
    stream.close()
    seconds = dict(zip(COLUMNS, (marks[1] - marks[0], marks[3] - marks[2], marks[5] - marks[4]), strict=True))
    return seconds | {"opened_bytes": opened, "end_bytes": at_end}


def proportional() -> int:
    """Bytes of memory of this process and its children, what they share counted once."""
    here = psutil.Process()
    return sum(int(process.memory_full_info().pss) for process in (here, *here.children(recursive=True)))


def turn(kind: str, root: Path, workers: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", kind, "--root", str(root), "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} with {workers} workers failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(sides: dict[str, list[dict[str, float]]], samples: int) -> str:
    """Medians with their spread, from the raw figures alone."""
    heads = ["stream", *COLUMNS.values(), "memory after opening, MiB", "at the end, with workers, MiB"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, turns in sides.items():
        cells = [name]
        for column in COLUMNS:
            all_turns = [one[column] for one in turns]
            cells.append(f"{median(all_turns):.2f} ({min(all_turns):.2f} to {max(all_turns):.2f})")
        cells += [f"{median(one[key] for one in turns) / 2**20:,.0f}" for key in ("opened_bytes", "end_bytes")]
        lines.append(f"| {' | '.join(cells)} |")
    worst = max(one[column] for turns in sides.values() for one in turns for column in ("resume", "next"))
    said = (
        f"{samples:,} images, batches of {BATCH}. Seconds to the first batch; no epoch took longer than {worst:.2f} s."
    )
    return "\n".join([said, "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="record folder")
    parser.add_argument("--measure", choices=STREAMS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.root, options.workers)))
        return
    from benchmarks.evidence import write_record

    kinds = [kind for kind in STREAMS if kind != "dali" or find_spec("nvidia")]
    sides: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        make(Path(place), options.samples)
        for number in range(options.repeats):
            for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
                for workers in sorted({0, options.workers}):
                    sides.setdefault(f"{kind}, {workers} workers", []).append(turn(kind, Path(place), workers))
    asked: dict[str, Any] = {key: getattr(options, key) for key in ("samples", "workers", "repeats")}
    question = "What does a run over a million images wait for?"
    write_record(options.out, question, table(sides, options.samples), sides, asked)


if __name__ == "__main__":
    main()
