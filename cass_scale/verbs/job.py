"""An evaluation at work: what was asked for, the run it is about, the images, and where it computes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from numpy.typing import ArrayLike

from cass_scale.console import Console
from cass_scale.data.layouts import shard_format
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.types import JSON, Stream, ViewSpec
from cass_scale.verbs.task import Task
from cass_scale.verbs.wire import Build, Place, open_stream


@dataclass(frozen=True)
class Job:
    """The verb's configuration, the run's own, the labelled images, and the place."""

    config: JSON
    trained: JSON
    build: Build
    task: Task
    place: Place
    console: Console

    @property
    def protocol(self) -> JSON:
        """Settings of the protocol."""
        return dict(self.config["protocol"])

    @property
    def image_size(self) -> int:
        """Side of the images that the encoders take."""
        return int(self.trained["arms"]["image_size"])

    @property
    def views(self) -> ViewSpec:
        """How training images are varied: the first crop of `views=`, one of it, in the encoders' size."""
        spec: ViewSpec = self.build(self.config["views"])
        return ViewSpec((replace(spec.crops[0], size=self.image_size, count=1),))

    def stream(
        self,
        manifest: Manifest,
        ids: ArrayLike,
        *,
        batch: int,
        seed: int = 0,
        shuffle: bool = False,
        keep: bool = False,
    ) -> Stream:
        """Labelled batches of `ids`; decoded images are kept in memory where they are read more than once."""
        rows = torch.as_tensor(ids)
        plan = Plan(rows, min(batch, len(rows)), seed=seed, shuffle=shuffle, tail="drop" if shuffle else "keep")
        node, size = self.stream_of(manifest), self.image_size
        return open_stream(node, self.build, manifest, plan, size, self.place, keep=keep, with_labels=True)

    def stream_of(self, manifest: Manifest) -> JSON:
        """The stream that reads a set."""
        return stream_for(self.trained["stream"], self.task.path_of(manifest))


def stream_for(trained: JSON, path: str | None) -> JSON:
    """The run's stream, or for another set the one that can read it."""
    if path is None:
        return trained
    if trained["_target_"].endswith(".DaliStream") and shard_format(path) != "ffcv":  # it reads files and tars
        return trained
    kinds = {None: "folder.FolderStream", "webdataset": "webdataset.WebDatasetStream", "ffcv": "ffcv.FFCVStream"}
    kind = shard_format(path)
    keys = ("workers",) if kind == "ffcv" else ("workers", "cache_bytes")
    return {key: trained[key] for key in keys if key in trained} | {"_target_": f"cass_scale.data.{kinds[kind]}"}
