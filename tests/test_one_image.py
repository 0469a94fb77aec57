"""One image walks the nine hops of cass_scale/README.md; each hand-over is looked at."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from cass_scale import evaluate, pretrain, report
from cass_scale.cli import build, compose_config
from cass_scale.data.folder import FolderStream
from cass_scale.data.plan import Plan
from cass_scale.data.sources import folder
from cass_scale.encoders import load_export
from cass_scale.types import Progress
from cass_scale.verbs import settings, wire
from cass_scale.views import make_views

SIZE, BATCH = 32, 4
WORDS = (
    "method=cass_contrast", f"arms.image_size={SIZE}", f"train.batch_size={BATCH}", "train.epochs=1",
    "stream.workers=0",
    "train.device=cpu", "train.precision=fp32", "views=official", "monitor.images=4",
)  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """12 images of two classes; the one that walks is red with a white corner, so that it can be followed."""
    root = tmp_path / "images"
    root.mkdir()
    numbers = np.random.default_rng(0)
    rows = []
    for i in range(12):
        pixels = numbers.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
        pixels[..., 0 if i % 2 == 0 else 2] += 150
        if i == 0:
            pixels[:8, :8] = 255
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
        rows.append((f"{i:02d}.png", ("red", "blue")[i % 2], "train" if i < 8 else "test"))
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return root


def test_from_disk_to_loss(images: Path) -> None:
    config = compose_config("pretrain", [*WORDS, f"data.path={images}"])

    # 1. The manifest has a row for it.
    manifest = folder(images)
    walker = manifest.keys.index("00.png")
    assert (manifest.labels[walker], manifest.splits[walker]) == ("red", "train")

    # 2. The plan places it, once in the epoch.
    plan = Plan(manifest.rows("train"), BATCH, seed=config["seed"])
    step = [g for g, ids in enumerate(plan.batches(0)) if walker in ids.tolist()]
    assert len(step) == 1

    # 3. The stream decodes it: a lossless file of the right size arrives pixel for pixel.
    stream = FolderStream(manifest, plan, size=SIZE, workers=0, device="cpu")
    batch = next(stream.epoch(0, start=step[0]))
    place = batch.index.tolist().index(walker)
    original = torch.from_numpy(np.array(Image.open(images / "00.png"))).permute(2, 0, 1)
    assert batch.images[place].equal(original)

    # 4, 5. The loop asks for its view, which is the same alone as in its batch.
    spec = build(config["views"])
    view = make_views(batch.images, spec, batch.index, seed=config["seed"], epoch=0)[0]
    one = slice(place, place + 1)
    alone = make_views(batch.images[one], spec, batch.index[one], seed=config["seed"], epoch=0)
    assert view.shape == (BATCH, 3, SIZE, SIZE) and alone[0][0].equal(view[place])

    # 6. Both arms look at it, and the objective matches it to itself among the batch.
    method = wire.make_method(config, build, settings.arm_specs(config))
    arms = method.outputs([view])
    out = method([view], batch, Progress(0, 0, 0, 1))
    x, y = (F.normalize(arm.outputs.float(), dim=1) for arm in arms.values())
    logits, target = x @ y.T / 0.1, torch.arange(BATCH)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert set(arms) == {"cnn", "vit"} and torch.isclose(out.loss, expected, atol=1e-4)


def test_from_loss_to_report(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="needs the extra `report`")

    # 7. Two such steps are an epoch; the encoders that leave are those of the last checkpoint.
    run = tmp_path / "runs" / "walk"
    record = pretrain(*WORDS, f"data.path={images}", f"run.dir={run}", quiet=True)
    assert record["steps"] == 2 and record["images_seen"] == 8
    exported = load_file(run / "export" / "vit.safetensors")
    saved = torch.load(run / "checkpoints" / "step_00000002.pt", weights_only=True)["model"]
    assert all(exported[key].equal(saved[f"arms.vit.encoder.body.{key}"]) for key in exported)
    features = load_export(run / "export" / "vit.safetensors").eval()(torch.rand(BATCH, 3, SIZE, SIZE))
    assert features.shape == (BATCH, 192) and torch.isfinite(features).all()

    # 8. It is a neighbour of the held-back images, and the scores are kept.
    scores = evaluate(f"run.dir={run}", "protocol=knn", "device=cpu", quiet=True)
    assert scores["n_train"] == 8 and scores["n_test"] == 4
    kept = json.loads((run / "evaluate" / "knn-run.json").read_text())
    assert kept["arms"] == scores["arms"]

    # 9. The report has the row.
    out_file = tmp_path / "report.html"
    report(f"runs={tmp_path / 'runs'}", f"out={out_file}", quiet=True)
    page = out_file.read_text()
    assert "cass_contrast" in page and f"{scores['arms']['vit']['macro_f1']:.3f}" in page
