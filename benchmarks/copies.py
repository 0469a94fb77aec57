"""What `cass-scale verify` takes for copies: recall and precision on altered copies of real images, and its speed.

python benchmarks/copies.py --data DIR [DIR ...] --out benchmarks/records/DATE_copies_HARDWARE
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.evidence import write_record
from cass_scale.data.look import SIDE, look
from cass_scale.data.near import BITS, CORRELATION, near
from cass_scale.data.sources import folder
from tests.data.copies import ALTERED

MANY = 25_000  # images of random pixels for the speed


def thumbs(images: list[Image.Image]) -> NDArray[np.uint8]:
    """Small copies as `verify` makes them: uint8 [N, SIDE * SIDE]."""
    found = b"".join(look(np.asarray(image.convert("RGB"))).thumb for image in images)
    return np.frombuffer(found, np.uint8).reshape(-1, SIDE * SIDE)


def measure(path: Path) -> dict[str, Any]:
    """False links within the unaltered set; recall and precision per alteration when a copy of every image is added."""
    manifest = folder(path)
    images = [Image.open(manifest.root / key) for key in manifest.keys]
    n, plain = len(images), thumbs(images)
    false = [(manifest.keys[f.first], manifest.keys[f.second], f.correlation) for f in near(plain)]
    rows = {}
    for name, alter in ALTERED.items():
        links = near(np.concatenate([plain, thumbs([alter(image) for image in images])]))
        right = sum(link.second == link.first + n for link in links)
        rows[name] = {"recall": right / n, "precision": right / len(links), "links": len(links)}
    return {"set": manifest.name, "images": n, "false_links": false, "altered": rows}


def seconds() -> float:
    """For comparing all pairs of MANY images under the 8 turns."""
    many = np.random.default_rng(0).integers(0, 256, (MANY, SIDE * SIDE), dtype=np.uint8)
    begun = time.perf_counter()
    near(many)
    return time.perf_counter() - begun


def table(found: list[dict[str, Any]], speed: float) -> str:
    """Recall / precision per alteration and set."""
    heads = [f"{one['set']} ({one['images']})" for one in found]
    lines = [f"| copy | {' | '.join(heads)} |", f"|---{'|---:' * len(found)}|"]
    for name in ALTERED:
        cells = [f"{one['altered'][name]['recall']:.4f} / {one['altered'][name]['precision']:.4f}" for one in found]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    false = " | ".join(str(len(one["false_links"])) for one in found)
    lines.append(f"| pairs taken for copies in the set itself | {false} |")
    return "\n".join([*lines, "", f"{MANY:,} images of random pixels are compared in {speed:.1f} s."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of images without copies")
    parser.add_argument("--out", type=Path, help="record folder")
    options = parser.parse_args()
    found, speed = [measure(path) for path in options.data], seconds()
    question = "Which altered copies does `verify` find, and what does it take for one? (recall / precision)"
    settings = {"data": [path.name for path in options.data], "bits": BITS, "correlation": CORRELATION, "side": SIDE}
    write_record(options.out, question, table(found, speed), {"sets": found, "seconds": speed}, settings)


if __name__ == "__main__":
    main()
