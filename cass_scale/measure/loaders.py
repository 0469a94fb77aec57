"""`cass-scale bench name=loaders`: our streams beside other loaders, on the same files, with the same output."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from cass_scale import machine
from cass_scale.data.cache import make_once
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.errors import ConfigError, DataError
from cass_scale.evidence import Finding
from cass_scale.measure import rivals
from cass_scale.measure.turns import end_of, failed, in_turns, ratio, spread, told
from cass_scale.types import JSON, Stream
from cass_scale.verbs.wire import Build, choose_device

QUESTION = "Loaders: our streams beside others, the same files and the same output"


class Side(NamedTuple):
    """One way to read. `kind` is the form of the set that it reads; `open` is None for streams of ours."""

    shown: str
    kind: str  # of KINDS
    open: rivals.Open | None = None
    words: tuple[str, ...] = ()  # configuration of a stream of ours
    beside: str = "imagefolder"  # the side it is held against


NO_CACHE = "stream.cache_bytes=0"
SIDES = {
    "folder": Side("**folder**", "files", words=("stream=folder", NO_CACHE)),
    "folder_cached": Side("**folder**, kept decoded in memory", "files", words=("stream=folder",)),
    "webdataset": Side("**webdataset**", "tars", words=("stream=webdataset", NO_CACHE)),
    "dali": Side("**dali** over files", "files", words=("stream=dali",), beside="dali_reader"),
    "ffcv_raw": Side("**ffcv**, raw", "raw", words=("stream=ffcv",), beside="ffcv_raw_loader"),
    "ffcv_jpg": Side("**ffcv**, jpg", "jpg", words=("stream=ffcv",), beside="ffcv_jpg_loader"),
    "imagefolder": Side("torchvision ImageFolder, PIL", "files", rivals.image_folder),
    "imagefolder_v2": Side("torchvision ImageFolder, tensors", "files", rivals.image_folder_v2),
    "webdataset_library": Side("webdataset library", "tars", rivals.webdataset_library),
    "dali_reader": Side("DALI's own reader", "files", rivals.dali_reader),
    "ffcv_raw_loader": Side("FFCV's own Loader, raw", "raw", rivals.ffcv_loader),
    "ffcv_jpg_loader": Side("FFCV's own Loader, jpg", "jpg", rivals.ffcv_loader),
    "litdata": Side("litdata", "chunks", rivals.litdata_stream),
}


def run(config: JSON, build: Build, say: Callable[[str], None]) -> Finding:
    """Prepare the set in every form, let the sides take turns; returns the finding."""
    options = config["bench"]
    chosen = options["only"] or list(SIDES)
    if unknown := ", ".join(set(chosen) - set(SIDES)):
        raise ConfigError(f"bench.only: there is no side {unknown}; there are {', '.join(SIDES)}")
    manifest: Manifest = build({k: v for k, v in config["data"].items() if k != "noise"})
    if len(manifest) < options["batch"]:
        raise DataError(f"{len(manifest)} images are fewer than bench.batch={options['batch']}; give a smaller batch")
    forms = prepare(manifest, options["images"], options["size"], {SIDES[name].kind for name in chosen}, say)
    sides = {}
    for workers in options["workers"]:
        for name in chosen:
            job = {"side": name, "path": str(forms[SIDES[name].kind]), "workers": workers}
            job |= {key: options[key] for key in ("size", "batch", "epochs")}
            sides[f"{name}/{workers}"] = [__name__, json.dumps(job)]
    figures = in_turns(sides, options["turns"], say, until=end_of(options["limit"]))
    images, size = min(len(manifest), options["images"]), options["size"]
    head = f"{images} images of {manifest.name} as uint8 [3, {size}, {size}], batches of {options['batch']}."
    tables = [table(figures, workers) for workers in options["workers"]]
    return Finding(QUESTION, "\n\n".join([head, *tables, legend(figures)]), figures)


def prepare(manifest: Manifest, images: int, size: int, kinds: Set[str], say: Callable[[str], None]) -> dict[str, Path]:
    """The first `images` files of the set in the forms `kinds`, and as files, made once in the cache folder."""
    from cass_scale.cli import run_verb
    from cass_scale.types import Call

    if not all((manifest.root / key).is_file() for key in manifest.keys[:images]):
        raise ConfigError(f"data.path={manifest.root}: loaders are compared on files; give a folder of images")
    made = machine.cache_folder() / "bench" / _key(manifest, images)
    say(f"the set in all its forms: {made}")

    def link(folder: Path) -> None:
        (folder / "all").mkdir()
        for row, key in enumerate(manifest.keys[:images]):
            (folder / "all" / f"{row:06d}{Path(key).suffix}").symlink_to(manifest.root / key)

    forms = {"files": make_once(made / "files", link)}
    recipes = {
        "tars": ("format=webdataset", "size=null"),
        "raw": ("format=ffcv", "mode=raw", f"size={size}"),
        "jpg": ("format=ffcv", "mode=jpg", f"size={size}"),
    }
    for kind in kinds & recipes.keys():
        forms[kind] = made / f"{kind}-{size}"
        run_verb("shard", [f"source={forms['files']}", f"out={forms[kind]}", *recipes[kind]], Call("", quiet=True))
    if "chunks" in kinds:
        forms["chunks"] = make_once(made / "chunks", lambda folder: rivals.litdata_set(forms["files"], folder))
    return forms


def _key(manifest: Manifest, images: int) -> str:
    return hashlib.sha256(f"{manifest.root} {manifest.fingerprint()} {images}".encode()).hexdigest()[:32]


def child(job: JSON) -> JSON:
    """Read `epochs` epochs with one side; seconds, CPU seconds and memory of each, and the time to the first batch."""
    begun, rows = time.perf_counter(), []
    side, device = SIDES[job["side"]], choose_device("auto")
    arguments = (Path(job["path"]), job["size"], job["batch"], job["workers"], device)
    epochs = side.open(*arguments) if side.open else _stream(side.words, *arguments)
    first = None
    for epoch in range(job["epochs"]):
        start, cpu, images = time.perf_counter(), _cpu_seconds(), 0
        for batch in epochs(epoch):
            _check(batch, job["size"])
            first = first or time.perf_counter() - begun
            images += len(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        rows.append({"images": images, "seconds": seconds, "cpu": _cpu_seconds() - cpu, "memory": _memory()})
    return {"start": first, "epochs": rows}


def _stream(
    words: tuple[str, ...], path: Path, size: int, batch: int, workers: int, device: torch.device
) -> rivals.Epochs:
    from cass_scale.cli import build, compose_config

    labels = [] if any(path.glob("*.json")) else ["data.labels=none"]
    config = compose_config("pretrain", [f"data.path={path}", *labels, *words])
    manifest = build({k: v for k, v in config["data"].items() if k != "noise"})
    plan = Plan(manifest.rows(), batch, seed=0)
    node = config["stream"] | {"workers": workers}
    stream: Stream = build(node, manifest=manifest, plan=plan, size=size, device=device)
    return lambda epoch: (batch.images for batch in stream.epoch(epoch))


def _check(images: Tensor, size: int) -> None:
    if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
        raise TypeError(f"uint8 [B, 3, {size}, {size}] is due, not {images.dtype} {list(images.shape)}")


def _processes() -> Iterator[psutil.Process]:
    here = psutil.Process()
    yield here
    yield from here.children(recursive=True)


def _cpu_seconds() -> float:
    total = 0.0
    for process in _processes():
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _memory() -> int:
    """Bytes of this process and those it started; what they share counts once."""
    return sum(process.memory_full_info().pss for process in _processes())


def table(figures: dict[str, list[JSON]], workers: int) -> str:
    """One row a side: the median over turns of its epochs after the first."""
    lines = [
        f"| {workers} worker{'s' if workers > 1 else ''} | images/s, median (range) | / ImageFolder | CPU ms per image "
        "| first epoch, images/s | to the first batch, s | memory, MiB | growth |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    beside = figures.get(f"imagefolder/{workers}", [])
    for name, side in SIDES.items():
        results = figures.get(f"{name}/{workers}", [])
        if not results:
            continue
        if why := told(results):
            lines.append(f"| {side.shown} | {why} | | | | | | |")
            continue
        share = "" if failed(beside) or not beside else f"{ratio(speeds(results), speeds(beside)):.2f}"
        memory = [result["epochs"][-1]["memory"] for result in results]
        growth = [
            result["epochs"][-1]["memory"] / result["epochs"][min(1, len(result["epochs"]) - 1)]["memory"]
            for result in results
        ]
        first = median(result["epochs"][0]["images"] / result["epochs"][0]["seconds"] for result in results)
        cells = [
            side.shown,
            spread(speeds(results)),
            share,
            f"{1e3 * median(_later(result, 'cpu') / _later(result, 'images') for result in results):.2f}",
            f"{first:,.0f}",
            f"{median(result['start'] for result in results):.1f}",
            f"{median(memory) / 2**20:,.0f}",
            f"{median(growth):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def legend(figures: dict[str, list[JSON]]) -> str:
    """How each stream of ours does beside the library that it is built on."""
    found = []
    for key, results in figures.items():
        name, workers = key.split("/")
        other = f"{SIDES[name].beside}/{workers}"
        paired = SIDES[name].open is None and SIDES[name].beside != "imagefolder" and other in figures
        if paired and not failed([*results, *figures[other]]):
            share = ratio(speeds(results), speeds(figures[other]))
            found.append(f"{name} / {SIDES[name].beside}, {workers} workers: {share:.2f}")
    return "images/s, by turn, " + "; ".join(found) + "." if found else ""


def speeds(results: list[JSON]) -> list[float]:
    """Images per second of each turn, without the first epoch where there is another."""
    return [_later(result, "images") / _later(result, "seconds") for result in results]


def _later(result: JSON, what: str) -> float:
    epochs = result["epochs"]
    return float(sum(epoch[what] for epoch in (epochs[1:] or epochs)))


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
