"""What an evaluation learns from and what it scores: the sets, their labelled rows, and whether anything leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cass_scale.data.layouts import shard_format, table
from cass_scale.data.manifest import SPLITS, Manifest
from cass_scale.data.parts import file_of
from cass_scale.errors import ConfigError, DataError
from cass_scale.evaluation.draws import Pool, folds
from cass_scale.types import JSON
from cass_scale.verbs.folder import MANIFEST
from cass_scale.verbs.wire import Build, without

PARTS = 10  # of the training images, one of which validates where there is no validation part
Rows = dict[str, Tensor]  # "train", "val", "test" -> manifest ids; "val" may be empty


@dataclass(frozen=True)
class Task:
    """Labelled images: those to learn from, and those to score on, which may be another set's."""

    learn: Manifest
    test: Manifest  # the same object, unless the set is shifted; its labels are numbered as those of `learn`
    rows: Rows  # train and val of `learn`, test of `test`
    split: str  # what is scored: test, val where there is no test, all of another set
    path: str | None  # where another set lies
    remarks: tuple[str, ...] = ()  # what a reader of the scores must know

    @property
    def shift(self) -> bool:
        """Whether what was learnt from one set is scored on another."""
        return self.test is not self.learn

    def path_of(self, manifest: Manifest) -> str | None:
        """Where a set lies that is not the run's own."""
        return None if self.shift and manifest is self.learn else self.path

    def pool(self) -> Pool:
        """What may be learnt from."""
        labels, manifest = self.learn.label_tensor(), self.learn
        classes = torch.arange(len(manifest.classes))
        wanted = labels.clamp(min=0) if manifest.multilabel else labels[:, None] == classes
        train, val = (self.rows[part].numpy() for part in ("train", "val"))
        return Pool(train, val, wanted.double().numpy(), manifest.group_tensor().numpy(), manifest.classes)


def find_task(config: JSON, trained: JSON, build: Build, folder: Path) -> Task:
    """The task of a command. Raises DataError when it has no labels or images, or when test images were trained on.

    `data.path` names another set: with the run's classes it is scored by what its own training images taught (a
    shift), else it is learnt from and scored by itself; `data.learn` decides otherwise.
    """
    path = config["data"]["path"]
    pretrained, asked = asked_for(path, trained, build, folder)
    if path is not None and is_shift(config["data"]["learn"], pretrained, asked):
        own: Manifest = build(without(trained["data"], "noise"))
        other = replace(asked, classes=own.classes)
        rows = {"train": labelled(own, "train"), "val": labelled(own, "val"), "test": labelled(other)}
        task = Task(own, other, require(rows, own.name, other.name), "all", path)
    else:
        task = Task(asked, asked, *held_back(asked), path)
    seen = [] if trained["data"]["noise"] else pretrained.rows("train").tolist()
    remarks = leaks(task, {pretrained.sha256[i] for i in seen}, config["leaks"])
    remarks += shared_groups(task, set() if path else {pretrained.groups[i] for i in seen})
    return replace(task, remarks=(*remarks, *unseen(task), *more_classes(task, pretrained)))


def asked_for(path: str | None, trained: JSON, build: Build, folder: Path) -> tuple[Manifest, Manifest]:
    """The set that the run in `folder` was pretrained on, as it then was; and the one at `path`, or that same one."""
    pretrained = Manifest.read(folder / MANIFEST)
    node = trained["data"] if path is None else other_data(path, trained, pretrained)
    return pretrained, build(without(node, "noise"))


def other_data(path: str, trained: JSON, pretrained: Manifest) -> JSON:
    """Configuration of another set, cut and shown as the run's own was."""
    shown: JSON = {"path": path, "window": pretrained.window.value if pretrained.window else "auto"}
    if shard_format(path):
        return {"_target_": "cass_scale.data.shards.shards", **shown}
    cut = {key: trained["data"][key] for key in ("slices", "tiles") if key in trained["data"]}
    return {"_target_": "cass_scale.data.sources.folder", **shown, **cut}


def is_shift(how: Literal["auto", "run", "path"], own: Manifest, other: Manifest) -> bool:
    """Whether the other set is scored by what the run's own set teaches. Raises DataError when it cannot be."""
    same_images = _images(own) == _images(other)
    fits = bool(other.classes) and set(other.classes) <= set(own.classes)
    if how == "path" or (how == "auto" and (same_images or not fits)):
        return False
    if not fits:
        more = ", ".join(sorted(set(other.classes) - set(own.classes))) or "no labels"
        raise DataError(
            f"data.learn=run: {other.name} has {more}, which {own.name} has not; data.learn=path learns from "
            f"{other.name} itself"
        )
    if own.multilabel != other.multilabel:
        kinds = ["several labels" if manifest.multilabel else "one label" for manifest in (own, other)]
        raise DataError(
            f"{own.name} gives an image {kinds[0]}, {other.name} {kinds[1]}: one cannot be scored by the other; "
            f"data.learn=path learns from {other.name} itself"
        )
    return True


def _images(manifest: Manifest) -> set[tuple[str, str, str]]:
    """What stays of a set in another place or form: shards and betons may keep other bytes, in another order."""
    return set(zip(manifest.keys, manifest.labels, manifest.splits, strict=True))


def labelled(manifest: Manifest, split: str | None = None) -> Tensor:
    """Ids of one split, or of all, that have a label."""
    ids = manifest.rows(split)
    return ids[manifest.labelled()[ids]]


def held_back(manifest: Manifest) -> tuple[Rows, str]:
    """Labelled ids by part, and the name of the part that is scored: test, or val where there is no test.

    Raises DataError when the set has no labels or no held-back images.
    """
    if not manifest.classes:
        raise DataError(f"{manifest.name} has no labels to score with: add labels.csv (path,label), or class folders")
    part = {split: labelled(manifest, split) for split in SPLITS}
    split = "test" if len(part["test"]) else "val"
    if split == "val":
        part |= {"val": part["val"][:0], "test": part["val"]}
    return require(part, manifest.name, manifest.name), split


def require(rows: Rows, learn: str, test: str) -> Rows:
    """The rows, unless there is nothing to learn from or to score: then DataError."""
    for part, name, lack in (("test", test, "images to hold back"), ("train", learn, "training images")):
        if not len(rows[part]):
            raise DataError(f"{name} has no labelled {lack}: give labels.csv a column split (train, val, test)")
    return rows


def leaks(task: Task, pretrained_on: set[str], how: Literal["refuse", "warn"]) -> list[str]:
    """A remark about test images whose bytes were trained on. Raises DataError, unless they may pass."""
    ids = torch.cat([task.rows["train"], task.rows["val"]]).tolist()
    learnt = {task.learn.sha256[i] for i in ids}
    seen = learnt | pretrained_on
    found = [i for i in task.rows["test"].tolist() if task.test.sha256[i] in seen]
    if not found:
        return []
    known = sum(task.test.sha256[i] in pretrained_on for i in found)
    text = (
        f"{len(found)} of {len(task.rows['test'])} test images have the bytes of training images ({known} of the "
        f"pretraining's), the first is {task.test.keys[found[0]]}: their scores measure memory"
    )
    if how == "refuse":
        raise DataError(
            f"{task.test.name}: {text}. `cass-scale verify` lists such copies and `cass-scale split` draws a split "
            "without; leaks=warn scores all the same"
        )
    return [f"LEAK: {text}"]


def shared_groups(task: Task, pretrained_on: set[str]) -> list[str]:
    """A remark about test images whose patient or group was trained on; in another set a name is somebody else's."""
    ids = [] if task.shift else torch.cat([task.rows["train"], task.rows["val"]]).tolist()
    groups = ({task.learn.groups[i] for i in ids} | pretrained_on) - {""}
    found = [] if task.shift else [i for i in task.rows["test"].tolist() if task.test.groups[i] in groups]
    if not found:
        return []
    names = sorted({task.test.groups[i] for i in found})
    return [
        f"{len(found)} of {len(task.rows['test'])} test images are of patients or groups that were trained on "
        f"({len(names)}, the first is {names[0]}): they are no strangers, and their scores flatter"
    ]


def more_classes(task: Task, pretrained: Manifest) -> list[str]:
    """A remark where another set is no shift because it has classes that the run's own lacks."""
    extra = sorted(set(task.learn.classes) - set(pretrained.classes)) if task.path and pretrained.classes else []
    if not extra:
        return []
    return [f"{task.learn.name} has {', '.join(extra)}, which {pretrained.name} has not: learnt from itself, no shift"]


def unseen(task: Task) -> list[str]:
    """A remark about classes that are scored and were never learnt."""
    train, test = task.learn.label_tensor()[task.rows["train"]], task.test.label_tensor()[task.rows["test"]]
    if task.learn.multilabel:
        missing = torch.nonzero(test.bool().any(dim=0) & ~train.bool().any(dim=0))[:, 0].tolist()
    else:
        missing = sorted(set(test.tolist()) - set(train.tolist()))
    names = ", ".join(task.learn.classes[c] for c in missing)
    return [f"no training image shows {names}: test images of that class cannot be answered right"] if names else []


def with_validation(task: Task, seed: int) -> Task:
    """The task; where it has no validation images, with a tenth of the training ones. Raises DataError if it cannot."""
    if len(task.rows["val"]):
        return task
    pool, ids = task.pool(), task.rows["train"]
    fold = folds(pool.wanted[pool.train], pool.groups[pool.train], PARTS, seed)
    for part in range(PARTS):
        held = fold == part
        if held.any() and (pool.wanted[pool.train[~held]].any(axis=0) == pool.wanted[pool.train].any(axis=0)).all():
            mask = torch.from_numpy(held)
            return replace(task, rows=task.rows | {"train": ids[~mask], "val": ids[mask]})
    raise DataError(
        f"{task.learn.name} has no validation images, and none of its {len(ids)} training images can be held back "
        "without losing a class, as patients and groups stay whole: give labels.csv a column split with val"
    )


def positive_class(name: str | int | None, manifest: Manifest) -> int | None:
    """Number of the class that is found or missed where there are two: the named one, else the second by name.

    None where there is no such pair. Raises ConfigError for a name that is neither of the two.
    """
    binary = len(manifest.classes) == 2 and not manifest.multilabel
    if name is None:
        return 1 if binary else None
    if not binary or str(name) not in manifest.classes:
        lack = f"is neither of {' and '.join(manifest.classes)}" if binary else "needs a set of two exclusive classes"
        raise ConfigError(f"positive={name} {lack} ({manifest.name}); leave it out, or name one of two classes")
    return manifest.classes.index(str(name))


def column(manifest: Manifest, name: str, ids: Tensor) -> Sequence[str]:
    """One value per image, '' = none: of the manifest's label, group, split, or any column of the folder's labels.csv.

    Raises DataError naming the columns that there are.
    """
    own = {"label": manifest.labels, "group": manifest.groups, "split": manifest.splits}
    if name in own:
        return [own[name][i] for i in ids.tolist()]
    rows = table(manifest.root, "auto")
    found = next(iter(rows.values()), {})
    if name not in found:
        raise DataError(f"by={name}: {manifest.name} has no such column; it has {', '.join(sorted({*own, *found}))}")
    keys = [manifest.keys[i] for i in ids.tolist()]  # a row may be about a whole volume or slide
    return [((rows.get(key) or rows.get(file_of(key), {})).get(name) or "").strip() for key in keys]
