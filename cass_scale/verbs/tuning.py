"""Fine-tuning as a verb does it: one run folder per arm and training, and none of them is done twice."""

from __future__ import annotations

import copy
import hashlib
import io
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from cass_scale import encoders, records
from cass_scale.encoders import Encoder
from cass_scale.errors import NonFinite
from cass_scale.evaluation import heads
from cass_scale.evaluation.draws import Condition, Draw
from cass_scale.evaluation.finetune import Recipe, Trained, finetune
from cass_scale.evaluation.metrics import Array
from cass_scale.meter import Meter
from cass_scale.run import Run
from cass_scale.types import JSON, Stream
from cass_scale.verbs.job import Job

SAID = "probability.npy"
DIVERGED = Trained(np.empty((0, 0), np.float32), math.inf)  # a point of a grid that cannot be trained by


class Tuned:
    """Learns on the one loop, every arm anew in every training."""

    def __init__(self, job: Job, arms: dict[str, Encoder]) -> None:
        self.job, self.arms = job, arms
        self.places: list[Path] = []  # of the last call's trainings
        self.options = recipes(job.protocol)

    def __call__(self, condition: Condition, folder: Path) -> tuple[dict[str, Array], JSON]:
        """By arm, probabilities [S, N, C] of the test images, and what each training chose; runs lie in `folder`.

        With a grid the first training tries every recipe; the one with the lowest validation loss trains the others.
        The first training's encoders and heads stay in `folder`.
        """
        said: dict[str, list[Array]] = {arm: [] for arm in self.arms}
        best: dict[str, Recipe] = {}
        self.places = []
        for draw in condition.draws:
            with streams(self.job, draw, self.options[0].batch_size) as opened:
                for arm, encoder in self.arms.items():
                    tried = [best[arm]] if arm in best else self.options
                    places = [folder / arm / training(self.job, condition, draw, one) for one in tried]
                    self.places += places
                    pairs = zip(tried, places, strict=True)
                    rows = [row(self.job, draw, arm, encoder, one, opened, place) for one, place in pairs]
                    first = min(range(len(rows)), key=lambda i: rows[i].loss)
                    if rows[first] is DIVERGED:
                        raise NonFinite(f"{arm}: training diverged at every point of protocol.grid; add lower lr to it")
                    said[arm].append(rows[first].probability)
                    if arm not in best:
                        best[arm] = tried[first]
                        keep(self.job, arm, encoder, best[arm], places[first], folder)
        searched, times = grid(self.job.protocol), len(condition.draws)
        point = {arm: {name: getattr(best[arm], name) for name in searched} for arm in self.arms}
        chosen = {arm: {"chosen": [point[arm]] * times} for arm in self.arms} if searched else {}
        return {arm: np.stack(each) for arm, each in said.items()}, chosen

    @property
    def record(self) -> JSON:
        """Device-hours of the last call's trainings, every point of a grid, those that were done before too."""
        each = [records.read(place)["device_hours"] for place in self.places]
        return {"device_hours": {kind: sum(one[kind] for one in each) for kind in each[0]}}


def grid(protocol: JSON) -> JSON:
    """Settings that are searched, each with its values."""
    return dict(protocol.get("grid") or {})


def recipes(protocol: JSON) -> list[Recipe]:
    """The recipe of a protocol, or one for every point of its grid."""
    plain, searched = Recipe(**{field.name: protocol[field.name] for field in fields(Recipe)}), grid(protocol)
    return [replace(plain, **dict(zip(searched, point, strict=True))) for point in product(*searched.values())]


@contextmanager
def streams(job: Job, draw: Draw, batch: int) -> Iterator[dict[str, Stream]]:
    """Training, validation and test images of one training."""
    task, size = job.task, job.config["batch_size"]
    opened = {
        "train": job.stream(task.learn, draw.train, batch=batch, seed=draw.seed, shuffle=True, keep=True),
        "val": job.stream(task.learn, draw.val, batch=size, keep=True),
        "test": job.stream(task.test, task.rows["test"], batch=size),
    }
    try:
        yield opened
    finally:
        for stream in opened.values():
            stream.close()


def training(job: Job, condition: Condition, draw: Draw, recipe: Recipe) -> str:
    """The name of a training's folder."""
    words = [f"{'fold' if condition.about['folds'] else 'seed'}{draw.number}"]
    return "-".join(words + [f"{name}{getattr(recipe, name):g}" for name in grid(job.protocol)])


def keep(job: Job, arm: str, encoder: Encoder, recipe: Recipe, here: Path, folder: Path) -> None:
    """Leave in `folder` what answers new images; the training's checkpoint may be gone, then it was left before."""
    best, learn = here / "checkpoints" / "best.pt", job.task.learn
    exclusive: heads.Link = "softmax" if recipe.loss == "cross_entropy" else "shares"
    link: heads.Link = "sigmoid" if learn.multilabel else exclusive
    if best.exists():
        heads.keep_tuned(folder, arm, encoder, best, link, learn.classes, learn.multilabel)


def row(
    job: Job, draw: Draw, arm: str, encoder: Encoder, recipe: Recipe, opened: dict[str, Stream], here: Path
) -> Trained:
    """One training: read back where it was done, gone on with where it was killed, else done.

    Raises NonFinite when it diverges; as a point of a grid it is DIVERGED instead.
    """
    about = identity(job, draw, arm, encoder, recipe)
    kept = done(here, about)
    if kept:
        return kept
    begin_or_continue(here, about)
    run = Run(here, Meter(job.place.device, job.place.world), job.console, keep=1)
    job.console.say(f"{arm}, {here.name}: {len(draw.train)} images to learn from; {here}")
    manifest = job.task.learn
    chosen = manifest.label_tensor()[torch.from_numpy(draw.train)]
    counts = chosen.sum(0) if manifest.multilabel else torch.bincount(chosen, minlength=len(manifest.classes))
    try:
        trained = finetune(
            arm, copy.deepcopy(encoder), opened, counts, job.views, job.place.accelerator, run, recipe,
            multilabel=manifest.multilabel, seed=draw.seed,
        )  # fmt: skip
    except NonFinite as why:
        run.update(status="diverged", finished=records.now(), error=str(why))
        if not grid(job.protocol):
            raise
        return DIVERGED
    finally:
        job.place.accelerator.free_memory()  # it holds on to every model that it has prepared
    buffer = io.BytesIO()
    np.save(buffer, trained.probability, allow_pickle=False)
    records.atomic_write_bytes(here / SAID, buffer.getvalue())
    run.update(status="done", finished=records.now(), loss=trained.loss)
    for checkpoint in run.checkpoints.all():  # best.pt stays: the weights that were scored
        checkpoint.unlink()
    return trained


def identity(job: Job, draw: Draw, arm: str, encoder: Encoder, recipe: Recipe) -> JSON:
    """All that decides a training."""
    task = job.task
    ids = [draw.train, draw.val, task.rows["test"].numpy()]
    return {
        "verb": "finetune",
        "arm": arm,
        "settings": asdict(recipe) | {"views": repr(job.views)},
        "seed": draw.seed,
        "precision": job.place.precision.name,
        "data": [manifest.fingerprint() for manifest in (task.learn, task.test)],
        "rows": hashlib.sha256(b"|".join(some.astype(np.int64).tobytes() for some in ids)).hexdigest()[:16],
        "encoder": encoders.digest(encoder),
    }


def done(folder: Path, about: JSON) -> Trained | None:
    """What this very training left when it ended, if it did."""
    old = records.read(folder) if (folder / records.RUN).exists() else {}
    if old | about == old and old["status"] == "diverged":
        return DIVERGED
    if old | about != old or old["status"] != "done":
        return None
    try:
        return Trained(np.load(folder / SAID, allow_pickle=False), old["loss"])
    except (OSError, ValueError):
        return None


def begin_or_continue(folder: Path, about: JSON) -> None:
    """Keep what a killed training of exactly this left, to go on from there; anything else was another one's."""
    old = records.read(folder) if (folder / records.RUN).exists() else {}
    if old | about != old or old["status"] == "done":  # done, but its answers are lost
        shutil.rmtree(folder, ignore_errors=True)
        records.create(folder, about)
