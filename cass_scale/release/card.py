"""A model card: what an encoder is, what it was made from and at which cost, what it scored, and what is wrong with it.

It leaves the house, so it names no file, folder, patient or class: a folder's classes may be its patients.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from cass_scale.encoders import Encoder
from cass_scale.monitor import PAIR
from cass_scale.results import METRICS, NULL, PROTOCOLS, Cell, Run, Table
from cass_scale.types import JSON

SECTIONS = ("method", "objective", "views", "arms", "normalise", "optim", "schedule", "swa", "train", "seed")
TIMM = """```python
import timm

encoder = timm.create_model("{where}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config({{}}, model=encoder))
features = encoder(transform(image).unsqueeze(0))  # a PIL image in RGB -> [1, {dim}]
```

`num_classes=N` in `create_model` adds a fresh classifier."""
ONNX = """```python
import onnxruntime

session = onnxruntime.InferenceSession("{where}")
(features,) = session.run(None, {{"images": images}})  # float32 [batch, 3, {size}, {size}] in [0, 1] -> [batch, {dim}]
```

Images are squashed to {size} x {size}; mean and std are inside the file."""


class Terms(NamedTuple):
    """Licences of the weights and of their data, and the data's page, as far as they are known."""

    weights: str | None
    data: str | None
    page: str | None


def card(run: Run, arm: str, encoder: Encoder, config: JSON, tables: list[Table], terms: Terms, where: str) -> str:
    """Markdown with the hub's YAML head.

    config: the run's own, resolved. tables: what results.tables makes of the run and its controls. where: what timm
    loads the encoder by, or the name of its ONNX file.
    """
    onnx = where.endswith(".onnx")
    data = plain(run.part("data").get("name", "data without a name"))
    parts = [
        f"---\n{yaml.safe_dump(head(terms, 'onnx' if onnx else 'timm'), sort_keys=False)}---",
        f"# {encoder.spec.model}, pretrained with {run.method} on {data}",
        *warnings(run, arm),
        f"An image encoder, pretrained without labels: an image in, {encoder.dim} features out. It is a start for "
        "classifiers, and no medical device.",
        "## How to load it",
        (ONNX if onnx else TIMM).format(where=where, dim=encoder.dim, size=encoder.image_size),
        "## What it was made from, and how",
        "\n".join(f"- **{name}**: {value}" for name, value in facts(run, arm, encoder, terms).items()),
        configuration(config),
        "## Scores",
        *scores(run, arm, tables),
        "## Licence",
        licence(encoder, terms),
    ]
    return "\n\n".join(parts) + "\n"


def plain(value: object) -> str:
    """Text that breaks no table and no line."""
    return " ".join(str(value).split()).replace("|", "\\|")


def head(terms: Terms, library: str) -> JSON:
    """What the hub reads; a licence that it has no abbreviation for is `other`."""
    name = terms.weights or "terms of the training data"
    short = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    known = {"license": name} if name == short else {"license": "other", "license_name": short}
    link = {"license_link": terms.page} if terms.page and not terms.weights else {}
    tags = ["image-feature-extraction", library, "self-supervised", "cass-scale"]
    return {**known, **link, "library_name": library, "pipeline_tag": tags[0], "tags": tags}


def warnings(run: Run, arm: str) -> list[str]:
    """What a reader must know before the rest."""
    data, found = run.part("data"), []
    if run.collapse:
        seen = "; ".join(f"{entry['arm']} at step {entry['step']}: {plain(entry['why'])}" for entry in run.collapse)
        own = any(entry["arm"] in (arm, PAIR) for entry in run.collapse)
        who = "This encoder" if own else "The encoder that was trained beside this one"
        found.append(f"**{who} collapsed in training**, as the run's monitor saw it: {seen}.")
    if run.method == NULL:
        found.append("**A control**: no weight was moved; only BatchNorm statistics are not those of the start.")
    if data.get("noise"):
        found.append("**A control**: trained on Gaussian noise in place of images.")
    if data.get("synthetic"):
        found.append("**Synthetic data**, drawn by a program: nothing here speaks of patients.")
    return [f"> {text}" for text in found]


def facts(run: Run, arm: str, encoder: Encoder, terms: Terms) -> dict[str, str]:
    """What the run's record says, by name."""
    record, data, spec = run.record, run.part("data"), encoder.spec
    others = [plain(v["model"]) for name, v in run.part("arms").items() if name != arm]
    hours, device, versions = run.part("device_hours"), run.part("device"), run.part("versions")
    bad = f", {len(data['bad'])} unreadable left out" if data.get("bad") else ""
    licensed = ", ".join(plain(x) for x in (terms.data, terms.page) if x) or "licence not known here"
    return {
        "Data": f"{plain(data.get('name'))}, {data.get('images')} images{bad}, of which the training split was seen; "
        f"{licensed}; fingerprint {data.get('fingerprint')}",
        "Encoder": f"{spec.model} of timm, weights at the start: {plain(Path(spec.weights).name)}; "
        f"{sum(p.numel() for p in encoder.body.parameters()) / 1e6:.1f} M parameters",
        "Images": f"squashed to {encoder.image_size} x {encoder.image_size}, RGB in [0, 1], "
        f"mean {list(spec.mean or ())}, std {list(spec.std or ())}",
        "Method": f"{run.method}, objective {record.get('objective')}"
        + (f", trained together with {', '.join(others)}" if others else ""),
        "Amount": f"{record.get('steps')} steps of {record.get('batch_size')} images, {record.get('images_seen')} seen",
        "Precision": str(record.get("precision")),
        "Cost": f"{hours.get('total', 0):.4g} device-hours for the whole run, {hours.get('train', 0):.4g} of them "
        f"training, on {device.get('count')} x {plain(device.get('name'))}",
        "Repeat": f"seed {record.get('seed')}, configuration {record.get('config_hash')}, code "
        f"{str(run.part('git').get('sha'))[:12]}, " + ", ".join(f"{name} {v}" for name, v in versions.items()),
    }


def configuration(config: JSON) -> str:
    """The sections that decide what is learnt, without the place of anything."""
    kept = {name: config[name] for name in SECTIONS if name in config}
    if "arms" in kept:
        kept["arms"] = {name: _without_folders(value) for name, value in kept["arms"].items()}
    text = yaml.safe_dump(kept, sort_keys=False)
    return f"<details><summary>Configuration</summary>\n\n```yaml\n{text}```\n\n</details>"


def _without_folders(value: object) -> object:
    if not isinstance(value, dict) or "weights" not in value:
        return value
    return value | {"weights": Path(value["weights"]).name}


def scores(run: Run, arm: str, tables: list[Table]) -> list[str]:
    """One table per protocol and data set, with the controls that there are."""
    found = [text for table in tables if (text := _scores(run, arm, table))]
    return found or [
        "None: nobody has evaluated these weights on held-back images, so nobody knows what they are worth."
    ]


def _scores(run: Run, arm: str, table: Table) -> str:
    rows = [row for row in table.rows if row.arm == arm and (row.kind != "run" or row.run.folder == run.folder)]
    if not any(row.run.folder == run.folder and row.kind in ("run", "null") for row in rows):
        return ""
    title = f"{PROTOCOLS.get(table.protocol, table.protocol)} on {plain(table.data)}, {table.n_test} images held back"
    amount = f", {plain(table.amount)}" if table.amount else ""
    lines = [
        f"**{title}** ({table.split}), {table.n_train} to learn from{amount}:\n",
        "| weights | " + " | ".join(METRICS.values()) + " |",
        "|---" * (1 + len(METRICS)) + "|",
        *(f"| {row.label} | " + " | ".join(_cell(row.cells[m]) for m in METRICS) + " |" for row in rows),
    ]
    if any(row.kind == "null" for row in rows):
        lines.append(
            "\nIn brackets: the difference to the null control, within noise unless both 95 % intervals lie apart."
        )
    else:
        lines.append("\n**No null control stands beside these scores**: what of them was learnt, nobody can tell.")
    if any("LEAK" in note for note in table.notes):
        lines.append("\n**Test images were among those that were trained on**: these scores measure memory.")
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    value = "n/a" if cell.value is None else f"{cell.value:.3f}"
    value += f" [{cell.interval[0]:.3f}, {cell.interval[1]:.3f}]" if cell.interval else ""
    return value if cell.delta is None else f"{value} ({cell.delta:+.3f}, {cell.verdict})"


def licence(encoder: Encoder, terms: Terms) -> str:
    """Under which terms the weights may be used, in words."""
    start = encoder.spec.weights
    of_start = "" if start == "random" else f" and those of the initial weights ({plain(Path(start).name)})"
    of_data = ", ".join(plain(x) for x in (terms.data, terms.page) if x)
    of_data = f"the terms of the data ({of_data or 'not known here: ask whoever gave the data'}){of_start}"
    if terms.weights:
        return f"{plain(terms.weights)}. Where they ask for more, {of_data} hold as well."
    return f"None was chosen for these weights. They follow {of_data}."
