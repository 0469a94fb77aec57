"""How fast images become views: ours beside torchvision (v2 per image; PIL as in the notebook) and kornia.

    python benchmarks/views.py --size 384 --batch 16 --repeats 30 --out benchmarks/records/DATE_views_HARDWARE

Everybody does the work of `views=official` (two stages of jitter with perspective, jitter with rotation; two
flips) on the same decoded uint8 images of the final size, from the batch on the device to a float32 batch in
0..1 there. One process, turns in rotating order. kornia draws jitter and distortion apart, at the same rates.
CPU time is given too, because a machine that others use stretches the time on the wall. Peak memory is measured
in a process of its own for each, above what it held before its first batch.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from cass_scale.types import Crop, Jitter, Stage, ViewSpec  # noqa: E402
from cass_scale.views import make_views  # noqa: E402

Make = Callable[[Tensor, int], Tensor]  # uint8 [B, 3, S, S] and number of the turn -> float32 [B, 3, S, S] in 0..1
JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
OURS = "cass_scale, batched"
WARM_UP = 3


def ours(size: int) -> Make:
    first = Stage(0.3, Jitter(**JITTER), perspective=0.2, perspective_p=0.5)
    second = Stage(0.3, Jitter(**JITTER), degrees=10)
    spec = ViewSpec((Crop(size, stages=(first, second), vflip=0.3, hflip=0.3),))

    def make(images: Tensor, turn: int) -> Tensor:
        index = torch.arange(len(images), device=images.device) + turn * len(images)
        return make_views(images, spec, index, seed=0, epoch=0)[0]

    return make


def chain(t: Any, size: int, end: list[Any], resize: dict[str, Any]) -> Any:
    """The notebook's transform from torchvision's v1 or v2 module `t`; its affine is nearest, the default."""
    first = [t.ColorJitter(**JITTER), t.RandomPerspective(0.2, p=0.5)]
    second = [t.ColorJitter(**JITTER), t.RandomAffine(degrees=10)]
    stages = [t.RandomApply(first, p=0.3), t.RandomApply(second, p=0.3)]
    flips = [t.RandomVerticalFlip(0.3), t.RandomHorizontalFlip(0.3)]
    return t.Compose([t.Resize((size, size), **resize), *stages, *flips, *end])


def torchvision_v2(size: int) -> Make:
    from torchvision.transforms import v2

    transform = chain(v2, size, [v2.ToDtype(torch.float32, scale=True)], {"antialias": True})
    return lambda images, turn: torch.stack([transform(image) for image in images])


def torchvision_pil(size: int) -> Make:
    from PIL import Image
    from torchvision import transforms

    transform = chain(transforms, size, [transforms.ToTensor()], {})

    def make(images: Tensor, turn: int) -> Tensor:
        pictures = [Image.fromarray(a) for a in images.permute(0, 2, 3, 1).cpu().numpy()]
        return torch.stack([transform(picture) for picture in pictures]).to(images.device)

    return make


def kornia(size: int) -> Make:
    import kornia.augmentation as k

    transform = k.AugmentationSequential(
        *(k.ColorJitter(**JITTER, p=0.3), k.RandomPerspective(0.2, p=0.15)),
        *(k.ColorJitter(**JITTER, p=0.3), k.RandomAffine(10, p=0.3)),
        *(k.RandomVerticalFlip(p=0.3), k.RandomHorizontalFlip(p=0.3)),
    )
    return lambda images, turn: transform(images.float() / 255)


MAKERS: dict[str, Callable[[int], Make]] = {
    OURS: ours,
    "kornia, batched": kornia,
    "torchvision v2, per image": torchvision_v2,
    "torchvision v1 on PIL, per image": torchvision_pil,
}


def pictures(batch: int, size: int, device: torch.device) -> Tensor:
    """Fixed noise of low and high frequencies: no decoder, and nothing that compresses to a special case."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 12, 12, generator=generator)
    fine = torch.rand(batch, 3, size, size, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic") * 0.8 + fine * 0.2
    return (images.clamp(0, 1) * 255).to(torch.uint8).to(device)


def clock(make: Make, images: Tensor, turn: int) -> dict[str, float]:
    """Seconds on the wall and of all cores for one batch, the device's queue emptied before and after."""
    wait = torch.cuda.synchronize if images.is_cuda else lambda: None
    wait()
    start, start_cpu = time.perf_counter(), time.process_time()
    out = make(images, turn)
    wait()
    assert out.shape == images.shape and out.dtype == torch.float32
    return {"wall": time.perf_counter() - start, "cpu": time.process_time() - start_cpu}


def measure_times(images: Tensor, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Every turn of every candidate; the order rotates, so that drift of the machine hits all."""
    makes = {name: build(images.shape[-1]) for name, build in MAKERS.items()}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in makes}
    names = list(makes)
    for turn in range(WARM_UP + repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds = clock(makes[name], images, turn)
            if turn >= WARM_UP:
                times[name].append(seconds)
    return times


def measure_memory(name: str, images: Tensor) -> int:
    """Peak bytes above what the process held before, inputs not counted, over five batches."""
    make = MAKERS[name](images.shape[-1])
    make(images[:1, :, :64, :64] if name != OURS else images[:1], 0)  # loads what is loaded on first use
    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for turn in range(5):
            make(images, turn)
        return torch.cuda.max_memory_allocated() - before
    give_back_memory()
    seen, stop = [resident()], threading.Event()
    watch = threading.Thread(target=lambda: _watch(seen, stop))
    watch.start()
    for turn in range(5):
        make(images, turn)
    stop.set()
    watch.join()
    return max(seen) - seen[0]


def _watch(seen: list[int], stop: threading.Event) -> None:
    while not stop.wait(0.0002):
        seen.append(resident())


def give_back_memory() -> None:
    """What this process freed goes back to the system (glibc), else the next user of it would look frugal."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def resident() -> int:
    """Resident bytes of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def memory_of(name: str, options: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--memory-of", name, "--device", options.device]
    command += ["--size", str(options.size), "--batch", str(options.batch), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"memory of {name} failed:\n{done.stderr[-3000:]}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def summarise(figures: dict[str, Any], options: dict[str, Any]) -> str:
    """The result as a markdown table, from the raw figures alone."""
    batch = options["batch"]
    walls = {name: torch.tensor([t["wall"] for t in turns]) for name, turns in figures["seconds"].items()}
    ours = walls[OURS].quantile(0.5)
    lines = [
        "| | images/s, median (quartiles) | time / ours | CPU ms per image | peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for name, wall in walls.items():
        low, middle, high = (batch / wall.quantile(torch.tensor([0.75, 0.5, 0.25]))).tolist()
        ratio = float(wall.quantile(0.5) / ours)
        cpu = 1000 / batch * float(torch.tensor([t["cpu"] for t in figures["seconds"][name]]).median())
        memory = figures["memory"][name] / 2**20
        rate = f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"
        lines.append(f"| {name} | {rate} | {ratio:.2f} | {cpu:.2f} | {memory:,.0f} |")
    where = f"{options['device']}, threads: {options['threads']}, one process"
    size = f"{options['size']} x {options['size']}"
    work = f"Batches of {batch} images of {size}, {where}, {options['repeats']} turns each."
    return "\n".join([work, "", *lines])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", choices=MAKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    images = pictures(options.batch, options.size, torch.device(options.device))
    if options.memory_of:
        print(measure_memory(options.memory_of, images))
        return
    torch.manual_seed(0)
    memory = {name: memory_of(name, options) for name in MAKERS}
    figures = {"seconds": measure_times(images, options.repeats), "memory": memory}
    asked = {key: value for key, value in vars(options).items() if key != "memory_of"}
    from benchmarks.evidence import write_record

    question = "Views: ours beside torchvision and kornia, the same work"
    write_record(options.out, question, summarise(figures, asked), figures, asked)


if __name__ == "__main__":
    main()
