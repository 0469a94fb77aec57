"""Run folders as the verbs leave them, and a reader of the page made from them."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from cass_scale import records
from cass_scale.page import report

ARMS = {
    "cnn": {"model": "resnet18", "weights": "resnet18.a1_in1k"},
    "vit": {"model": "vit_small_patch14_reg4_dinov2", "weights": "file"},
}
DATA: dict[str, Any] = {
    "name": "brain_mri",
    "path": "data/brain_mri",
    "images": 970,
    "classes": ["glioma", "meningioma", "notumor", "pituitary"],
    "multilabel": False,
    "bad": [],
    "synthetic": False,
    "noise": False,
    "fingerprint": "9f2c41d07b3e5a68",
}
STEPS = 400


def rows(method: str, steps: int = STEPS) -> list[dict[str, Any]]:
    """Curves of the shape that collapsed, healthy and null runs have."""
    out = []
    for step in range(10, steps + 1, 10):
        t = step / STEPS
        row: dict[str, Any] = {"step": step, "epoch": step / 42, "images": 16 * step, "lr": 1e-4 * (1 - t)}
        row |= {"images_per_s": 31.0 + math.sin(step), "data_wait": 0.06, "seconds": 0.52 * step}
        if method == "cass":
            level, same, rank = (
                2.0 * math.exp(-12 * t) + 4e-6,
                1 - 0.25 * math.exp(-20 * t),
                40 * math.exp(-4 * t) + 1,
            )
            row |= {"loss": level, "probe/matched": level, "probe/shuffled": level * 1.002}
        elif method == "cass_null":
            same, rank = 0.74, 41.0
            row |= {"loss": 1.97, "probe/matched": 1.97, "probe/shuffled": 1.98}
        else:
            same, rank = 0.5 - 0.4 * t, 41 + 15 * t
            row |= {"loss": 2.7 - 1.9 * t, "probe/matched": 1.9 - 1.5 * t, "probe/shuffled": 1.95 - 0.1 * t}
        for arm, shift in (("cnn", 0.0), ("vit", 0.2)):
            row[f"probe/{arm}/between_cosine"] = same + shift * (1 - same)
            row[f"probe/{arm}/rankme_outputs"] = rank * (1 - shift)
            row[f"probe/{arm}/rankme_features"] = rank * (1.5 - shift)
        out.append(row)
    return out


def add_run(root: Path, name: str, method: str, *, steps: int = STEPS, **fields: Any) -> Path:
    """A run folder as `cass-scale pretrain` leaves it."""
    folder = root / name
    record: dict[str, Any] = {
        "status": "done", "verb": "pretrain", "method": method, "arms": ARMS, "data": DATA, "seed": 0,
        "command": f"cass-scale pretrain method={method} data.path=data/brain_mri run.dir=runs/{name}",
        "world_size": 1, "precision": "bf16", "batch_size": 16, "epochs": 8.0, "steps": steps,
        "total_steps": STEPS, "image_size": 98, "images_seen": 16 * steps, "peak_memory_bytes": 1_450_000_000,
        "git": {"sha": "3f1c" * 10, "dirty": False}, "config_hash": "0123456789abcdef",
        "versions": {"torch": "2.13.0", "timm": "1.0.31"}, "finished": "2026-11-20T10:00:00+00:00",
        "device": {"kind": "cpu", "name": "Xeon", "count": 1, "cores": 2},
        "spans": {"data": 12.1, "views": 9.4, "step": 171.0, "monitor": 6.5, "checkpoint": 2.2, "other": 7.0},
        "device_hours": {"total": 0.0578, "train": 0.0535}, "metrics": {},
    }  # fmt: skip
    records.create(folder, record | fields)
    log = records.MetricsLog(folder / "metrics.jsonl")
    for row in rows(method, steps):
        log.append(row)
    records.atomic_write_text(folder / "config.yaml", f"method:\n  _target_: cass_scale.methods.{method}\nseed: 0\n")
    records.write_json(folder / "env.json", records.env())
    return folder


def add_scores(
    folder: Path, scores: dict[str, tuple[float, ...]], *, weights: str = "run", half: float = 0.0, **fields: Any
) -> None:
    """An evaluation as `cass-scale evaluate` leaves it; scores: macro F1, balanced accuracy, AUC, each +- `half`."""
    names = ("macro_f1", "balanced_accuracy", "auc")
    value = {
        "schema": 1, "protocol": "knn", "weights": weights, "seed": 0,
        "split": "test", "n_train": 679, "n_test": 194,
        "data": {"name": "brain_mri", "fingerprint": DATA["fingerprint"]}, "classes": DATA["classes"],
        "arms": {arm: dict(zip(names, three, strict=True)) for arm, three in scores.items()},
    }  # fmt: skip
    for row in value["arms"].values() if half else []:
        row["intervals"] = {name: [x - half, x + half] for name, x in row.items()}
    value |= fields
    (folder / "evaluate").mkdir(exist_ok=True)
    name = value.pop("name", f"{value['protocol']}-{weights}")
    records.write_json(folder / "evaluate" / f"{name}.json", value)


def sample_png(path: Path) -> None:
    """A small picture in place of the sample views."""
    from matplotlib import image

    image.imsave(path, [[(x % 32) / 32 * (y % 32) / 32 for x in range(256)] for y in range(64)], cmap="gray")


def demo(root: Path) -> Path:
    """The demo's runs: published CASS (collapsed), contrast, null control; and one that was stopped."""
    seen = [{"step": 50, "arm": "cnn", "why": "cosine between different images 0.998, at the start 0.741"}]
    seen.append({"step": 30, "arm": "vit", "why": "cosine between different images 1.000, at the start 0.991"})
    bad = [{"key": "glioma/cut.jpg", "why": "truncated after 120 of 4,096 bytes"}]
    cass = add_run(root, "cass", "cass", collapse=seen, data=DATA | {"bad": bad})
    contrast = add_run(root, "contrast", "cass_contrast", git={"sha": "3f1c" * 10, "dirty": True})
    null = add_run(root, "null", "cass_null")
    add_scores(cass, {"cnn": (0.722, 0.731, 0.901), "vit": (0.695, 0.70, 0.88)}, half=0.035)
    add_scores(cass, {"cnn": (0.850, 0.853, 0.962), "vit": (0.814, 0.82, 0.95)}, weights="initial", half=0.035)
    add_scores(cass, {"cnn": (0.602, 0.611, 0.83), "vit": (0.553, 0.56, 0.79)}, weights="random", half=0.035)
    add_scores(contrast, {"cnn": (0.860, 0.862, 0.97), "vit": (0.950, 0.951, 0.99)}, half=0.035)
    add_scores(contrast, {"cnn": (0.850, 0.853, 0.962), "vit": (0.814, 0.82, 0.95)}, weights="initial", half=0.035)
    add_scores(null, {"cnn": (0.825, 0.83, 0.95), "vit": (0.814, 0.82, 0.95)}, half=0.035)
    for folder in (cass, contrast):
        sample_png(folder / "samples.png")
    stopped = add_run(root, "stopped", "cass", steps=120, status="preempted", error="SIGTERM", finished=None)
    add_scores(stopped, {"cnn": (0.999, 0.999, 0.999), "vit": (0.999, 0.999, 0.999)})
    return root


class Page(HTMLParser):
    """What the tests ask of a page: text, tags with attributes, tables as rows of cell texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.tables = "", [], []
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.tables[-1][-1][-1] += data.strip() + " "


def page_of(runs: Path) -> tuple[Page, str]:
    html = report(runs, runs.parent / "report.html").read_text()
    return Page(html), html


def scores(page: Page, number: int = 0) -> list[list[str]]:
    found = [table for table in page.tables if table[0][0].strip() == "Encoder"]
    return [[" ".join(cell.split()) for cell in row] for row in found[number]]


def squeezed(page: Page) -> str:
    return " ".join(page.text.split())
