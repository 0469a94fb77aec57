"""kNN and the linear probe as a verb does them: features come out of the cache, or are computed once."""

from __future__ import annotations

from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cass_scale import encoders, records
from cass_scale.data.manifest import Manifest
from cass_scale.encoders import Encoder
from cass_scale.evaluation import heads
from cass_scale.evaluation.draws import Condition, Draw
from cass_scale.evaluation.features import Features, extract, key, remembered
from cass_scale.evaluation.heads import Head
from cass_scale.evaluation.indicators import indicators
from cass_scale.evaluation.knn import knn
from cass_scale.evaluation.linear import fit
from cass_scale.evaluation.metrics import Array, Floats
from cass_scale.evaluation.together import both
from cass_scale.machine import cache_folder
from cass_scale.types import JSON
from cass_scale.verbs.job import Job
from cass_scale.verbs.task import labelled

Answers = tuple[dict[str, Array], JSON]  # by arm: probabilities [S, N, C]; what each training chose, for the record


class Learnt(NamedTuple):
    """What one training says of the test images [N, C], and by which head of which C."""

    probability: Floats
    head: Head | None = None
    c: float | None = None


class Frozen:
    """Learns from features alone."""

    def __init__(self, job: Job, arms: dict[str, Encoder]) -> None:
        self.job, self.arms, task = job, arms, job.task
        self.learn = Bank(job, task.learn, arms)
        self.test = Bank(job, task.test, arms) if task.shift else self.learn

    def __call__(self, condition: Condition, folder: Path) -> Answers:
        """Answers to the test images by each training; the first one's probes of the run's own weights in `folder`."""
        said: dict[str, Array] = {}
        chosen: JSON = {}
        task = self.job.task
        for arm in self.learn.by_arm:
            each = [self._learn(arm, draw) for draw in condition.draws]
            said[arm] = np.stack([one.probability for one in each])
            if each[0].head is None:
                continue
            chosen[arm] = {"chosen": [{"c": one.c} for one in each]}
            if arm in self.arms and self.job.config["weights"] == "run":
                heads.keep(folder, arm, self.arms[arm], each[0].head, task.learn.classes, task.learn.multilabel)
        return said, chosen

    @cached_property
    def record(self) -> JSON:
        """What the training images tell of the arms without their labels."""
        rows = self.job.task.rows["train"].numpy()
        return {"indicators": indicators({arm: self.learn(arm, rows) for arm in self.arms})}

    def _learn(self, arm: str, draw: Draw) -> Learnt:
        protocol, manifest, learn = self.job.protocol, self.job.task.learn, self.learn
        known, labels = learn(arm, draw.train), learn.labels[draw.train]
        asked = self.test(arm, self.job.task.rows["test"].numpy())
        sort: JSON = {"classes": len(manifest.classes), "multilabel": manifest.multilabel}
        if protocol["name"] == "knn":
            return Learnt(knn(known, labels, asked, k=protocol["k"], temperature=protocol["temperature"], **sort))
        held: JSON = {"groups": learn.groups[draw.train]}
        if len(draw.val):
            held = {"val_x": learn(arm, draw.val), "val_y": learn.labels[draw.val]}
        head, c = fit(known, labels, seed=draw.seed, **sort, **held)
        return Learnt(head(asked), head, c)


class Bank:
    """Features of each arm, and of all side by side, and labels, of all labelled images of a set, by id."""

    def __init__(self, job: Job, manifest: Manifest, arms: dict[str, Encoder]) -> None:
        self.ids = labelled(manifest).numpy()
        self.by_arm = features(job, manifest, arms, self.ids)
        self.by_arm |= both(self.by_arm)
        self.labels, self.groups = manifest.label_tensor().numpy(), manifest.group_tensor().numpy()

    def __call__(self, arm: str, ids: Array) -> Array:
        """Features [n, dim] of some images."""
        return self.by_arm[arm][np.searchsorted(self.ids, ids)]


def features(job: Job, manifest: Manifest, arms: dict[str, Encoder], ids: Array) -> Features:
    """Features of `ids` by arm; what the cache folder has is not computed again."""
    place = job.place
    versions = records.versions(("torch", "timm", "pillow"))
    shown = (manifest.depth, manifest.window, job.stream_of(manifest)["_target_"])  # decoders differ by rounding
    about = (manifest.fingerprint(), shown, job.image_size, place.precision.name, place.device.type, versions)
    keys = {arm: key(encoders.digest(encoder), *about) for arm, encoder in arms.items()}

    def compute(missing: list[str]) -> Features:
        job.console.say(f"features of {len(ids)} images of {manifest.name}: {', '.join(missing)}")
        needed = {arm: arms[arm].to(place.device) for arm in missing}
        with closing(job.stream(manifest, ids, batch=job.config["batch_size"])) as stream:
            return extract(needed, stream, place.accelerator.autocast)

    return remembered(cache_folder() / "features", keys, len(ids), compute)
