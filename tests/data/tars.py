"""Shards for tests: made by our converter, or by hand as anybody's tool might."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cass_scale.data import sources
from cass_scale.data.convert import Conversion, convert, refuse_other, unfinished
from cass_scale.data.convert_beton import BetonConversion
from cass_scale.data.dali import DaliStream
from cass_scale.data.ffcv import FFCVStream
from cass_scale.data.folder import Files, FolderStream
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.data.shrink import Recipe
from cass_scale.data.webdataset import WebDatasetStream
from cass_scale.types import Stream
from tests.data.images import fill, labels_csv

STREAMS = {"folder": FolderStream, "webdataset": WebDatasetStream, "dali": DaliStream, "ffcv": FFCVStream}
CACHING = ("folder", "webdataset")  # keep decoded images
NEEDS = {"dali": "nvidia.dali", "ffcv": "ffcv"}
SIZE = 12  # of the images in a batch
AS_IT_IS, SQUARE = Recipe(None), Recipe(SIZE, "square")


def grouped(folder: Path, number: int, side: int = 20, kind: str = "png") -> Manifest:
    """Lossless images of three groups and two classes, all for training."""
    keys = [f"{i:02d}.{kind}" for i in range(number)]
    fill(folder, *keys, side=side)
    rows = [(k, "ab"[i % 2], "train", f"p{i // 10}" if i else "") for i, k in enumerate(keys)]
    return sources.folder(labels_csv(folder, "path,label,split,group_id", *rows))


def sharded(manifest: Manifest, out: Path, recipe: Recipe = AS_IT_IS, per_shard: int = 7, workers: int = 2) -> Manifest:
    """The manifest after a conversion of whatever is still to be converted."""
    job = Conversion(manifest, Files(manifest), out, recipe, per_shard)
    refuse_other(job)
    return convert(job, unfinished(job), workers, lambda: None)


def betoned(
    manifest: Manifest, out: Path, recipe: Recipe = SQUARE, per_shard: int = 7, workers: int = 2, **how: Any
) -> Manifest:
    """The same into a .beton."""
    job = BetonConversion(manifest, Files(manifest), out, recipe, per_shard, **how)
    refuse_other(job)
    return convert(job, unfinished(job), workers, lambda: None)


def open_stream(kind: str, manifest: Manifest, plan: Plan, workers: int = 0, **options: Any) -> Stream:
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind], reason=f"needs the extra `{kind}`")
    made: Stream = STREAMS[kind](manifest, plan, **{"size": SIZE, "workers": workers, "device": "cpu", **options})
    return made


def write_tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    """A tar of plain files, or of whatever members are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path
