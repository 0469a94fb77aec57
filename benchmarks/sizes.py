"""What `cass-scale shard size=...` costs: disk, reading speed, and the detail that is lost at the size of training.

    python benchmarks/sizes.py --data DIR [DIR ...] --out benchmarks/records/DATE_sizes_HARDWARE

Each set is converted with every size; the images are then read at `--side` px from each, in turns. Detail is the
PSNR of what the encoders get against what they get from the originals.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks.evidence import write_record
from cass_scale import shard
from cass_scale.data.decode import Pixels, decode
from cass_scale.data.shards import shards
from cass_scale.data.stream import Source
from cass_scale.data.webdataset import Shards
from cass_scale.measure.turns import spread

KEEP = "kept"


def convert(words: list[str], size: str, out: Path) -> dict[str, Any]:
    """Shards of one size; how long that took and how large they are."""
    made = shard(*words, f"size={'null' if size == KEEP else size}", f"out={out}", quiet=True)
    return {"seconds": made["seconds"], "bytes": made["bytes"], "images": made["images"]}


def read(source: Source, rows: range, side: int) -> tuple[float, list[Pixels]]:
    """Seconds of reading and decoding `rows` with one thread, and the images."""
    begun = time.perf_counter()
    images = [decode(source.read(row), side) for row in rows]
    return time.perf_counter() - begun, images


def psnr(one: list[Pixels], two: list[Pixels]) -> float:
    """Median over images, dB; infinite where they are equal."""
    errors = [float(np.square(a.astype(np.float64) - b).mean()) for a, b in zip(one, two, strict=True)]
    error = median(errors)
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def measure(words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """One set: every size converted, then read in turns."""
    with tempfile.TemporaryDirectory() as folder:
        found = {size: convert(words, size, Path(folder) / size) for size in [KEEP, *options.sizes]}
        manifests = {size: shards(Path(folder) / size) for size in found}
        rows = range(min(options.images, len(manifests[KEEP])))
        seconds: dict[str, list[float]] = {size: [] for size in found}
        images = {}
        for _ in range(options.turns):
            for size, manifest in manifests.items():
                took, images[size] = read(Shards(manifest), rows, options.side)
                seconds[size].append(took)
    for size, one in found.items():
        one |= {"read": [len(rows) / took for took in seconds[size]], "psnr": psnr(images[size], images[KEEP])}
    return {"name": manifests[KEEP].name, "sizes": found}


def table(results: list[dict[str, Any]], side: int) -> str:
    """One row per set and size."""
    lines = [
        f"| set | size | KiB per image | read at {side} px, images/s, median (range) | detail kept, PSNR dB |",
        "|---|---|---:|---:|---:|",
    ]
    for result in results:
        for size, one in result["sizes"].items():
            detail = "all" if one["psnr"] == float("inf") else f"{one['psnr']:.1f}"
            disk = one["bytes"] / one["images"] / 1024
            lines.append(f"| {result['name']} | {size} | {disk:.1f} | {spread(one['read'])} | {detail} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every set and print the table; with --out leave a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--phantom", type=int, default=40, help="large synthetic photographs; 0: none")
    parser.add_argument("--scale", type=float, default=4.0, help="of their sides")
    parser.add_argument("--sizes", nargs="+", default=["512", "384", "256", "128"])
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--images", type=int, default=200, help="read of each set, at most")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sets = [[f"source={path}"] for path in options.data]
    sets += (
        [["data=phantom", f"data.images={options.phantom}", f"data.scale={options.scale}"]] if options.phantom else []
    )
    results = [measure(words, options) for words in sets]
    kept = vars(options) | {"data": [path.name for path in options.data]}
    question = "Sizes: what shards of smaller images cost and save"
    write_record(options.out, question, table(results, options.side), results, kept)


if __name__ == "__main__":
    main()
