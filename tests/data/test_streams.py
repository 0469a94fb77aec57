"""The contract of all streams: one order, whatever the backend, the ranks, the workers and the place to start from."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cass_scale.data import sources
from cass_scale.data.manifest import Manifest
from cass_scale.data.plan import Plan
from cass_scale.data.shards import shards
from cass_scale.data.shrink import Recipe
from cass_scale.types import Batch, Stream
from tests.data.tars import CACHING, STREAMS, betoned, grouped, open_stream, sharded

OWN_DECODER = {"dali": 1.5}  # kind -> how far its pixels may lie from Pillow's on the mean, of 255, in random pixels
BATCH = 24  # for 1, 2, 3 and 8 ranks
IMAGES = 52


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    """The same images for each stream: as files, as shards of 7, or as raw pixels of the size of the batches."""
    place = tmp_path_factory.mktemp("sets")
    folder = grouped(place / "images", IMAGES)
    shards = sharded(folder, place / "shards")
    return {"folder": folder, "webdataset": shards, "dali": shards, "ffcv": betoned(folder, place / "beton")}


@pytest.fixture(autouse=True)
def no_child_stays() -> Iterator[None]:
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


def read(stream: Stream, epoch: int, start: int = 0) -> list[Batch]:
    try:
        return list(stream.epoch(epoch, start))
    finally:
        stream.close()


def same(one: list[Batch], two: list[Batch]) -> bool:
    fields = [(x, y) for a, b in zip(one, two, strict=True) for x, y in zip(a, b, strict=True)]
    return all(x is y if x is None or y is None else torch.equal(x, y) for x, y in fields)


@pytest.fixture(scope="module")
def from_files(manifests: dict[str, Manifest]) -> list[Batch]:
    """Epoch 3 as one rank reads it from files, without workers."""
    plan = Plan(manifests["folder"].rows("train"), BATCH, seed=5)
    return read(open_stream("folder", manifests["folder"], plan, with_labels=True), 3)


@pytest.fixture
def alone(kind: str, manifests: dict[str, Manifest], from_files: list[Batch]) -> list[Batch]:
    """What all ranks' streams of a kind must give together, to the bit; a decoder of its own has its own pixels."""
    if kind not in OWN_DECODER:
        return from_files
    plan = Plan(manifests[kind].rows("train"), BATCH, seed=5)
    own = read(open_stream(kind, manifests[kind], plan, with_labels=True), 3)
    assert same([b._replace(images=f.images) for b, f in zip(own, from_files, strict=True)], from_files)
    away = [(b.images.float() - f.images.float()).abs().mean() for b, f in zip(own, from_files, strict=True)]
    assert max(away) < OWN_DECODER[kind]
    return own


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", STREAMS)
def test_ranks_together_read_the_one_order(
    kind: str, world: int, workers: int, manifests: dict[str, Manifest], alone: list[Batch]
) -> None:
    manifest = manifests[kind]
    plans = [Plan(manifest.rows("train"), BATCH, seed=5, rank=rank, world=world) for rank in range(world)]
    streams = [open_stream(kind, manifest, plan, workers, with_labels=True) for plan in plans]
    assert {(s.steps_per_epoch, s.batch_size) for s in streams} == {(2, BATCH // world)}
    assert all(s.provides == {"index", "group", "label"} for s in streams)
    ranks = [read(stream, 3) for stream in streams]
    assert {len(batches) for batches in ranks} == {2}
    merged = [[torch.cat(parts) for parts in zip(*(r[step] for r in ranks), strict=True)] for step in range(2)]
    assert same([Batch(*fields) for fields in merged], alone)
    seen = torch.cat([b.index for batches in ranks for b in batches])
    assert len(seen.unique()) == len(seen) == 2 * BATCH


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("kind", STREAMS)
def test_starting_late_equals_skipping(
    kind: str, workers: int, manifests: dict[str, Manifest], alone: list[Batch]
) -> None:
    plan = Plan(manifests[kind].rows("train"), BATCH, seed=5)
    late = read(open_stream(kind, manifests[kind], plan, workers, with_labels=True), 3, start=1)
    assert same(late, alone[1:])


@pytest.mark.parametrize("kind", [kind for kind in STREAMS if kind != "ffcv"])
def test_starting_late_reads_nothing_that_was_skipped(kind: str, manifests: dict[str, Manifest]) -> None:
    options = {"cache_bytes": 0} if kind in CACHING else {}
    stream = open_stream(kind, manifests[kind], Plan(manifests[kind].rows("train"), 2, seed=0), **options)
    source, seen = (stream._loader.dataset if kind in CACHING else stream).source, []  # type: ignore[attr-defined]
    plain = source.read
    source.read = lambda row: seen.append(row) or plain(row)
    (last,) = list(stream.epoch(0, start=IMAGES // 2 - 1))
    assert seen == last.index.tolist() and len(seen) == 2


@pytest.mark.parametrize("options", [{"cache_bytes": 0}, {"cache_bytes": 1 << 20}, {}], ids=["read", "kept", ""])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", STREAMS)
def test_a_batch_belongs_to_who_asked_for_it(
    kind: str, workers: int, options: dict[str, int], manifests: dict[str, Manifest]
) -> None:
    if options and kind not in CACHING:
        return
    plan = Plan(manifests[kind].rows("train"), 8, seed=5)
    stream = open_stream(kind, manifests[kind], plan, workers, **options)
    kept = list(stream.epoch(0))
    assert len({b.images.data_ptr() for b in kept}) == len(kept) and all(b.images.is_contiguous() for b in kept)
    want = [b.images.clone() for b in kept]
    for batch in kept:
        batch.images.zero_()
    again = list(stream.epoch(0))
    assert all(torch.equal(b.images, w) for b, w in zip(again, want, strict=True))
    stream.close()


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("kind", STREAMS)
def test_a_kept_tail_comes_once_and_in_order(kind: str, world: int, manifests: dict[str, Manifest]) -> None:
    manifest = manifests[kind]
    ranks = []
    for rank in range(world):
        plan = Plan(manifest.rows(), BATCH, seed=0, rank=rank, world=world, shuffle=False, tail="keep")
        ranks.append(read(open_stream(kind, manifest, plan), 0))
    steps = [[r[step].index for r in ranks if step < len(r)] for step in range(3)]
    assert torch.equal(torch.cat([ids for step in steps for ids in step]), torch.arange(IMAGES))


def test_shards_of_a_lossless_set_are_the_same_set(manifests: dict[str, Manifest]) -> None:
    folder, shards = manifests["folder"], manifests["webdataset"]
    assert shards.fingerprint() == folder.fingerprint()
    assert (shards.keys, shards.labels, shards.groups, shards.splits) == (
        folder.keys, folder.labels, folder.groups, folder.splits,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["chest_xray_multilabel", "histology_tiff_unlabelled"])
def test_real_sets_are_the_same_from_shards(name: str, shared: Path, tmp_path: Path) -> None:
    """Patients, several labels per image, TIFF: nothing is lost on the way, and every batch is the same."""
    folder = sources.folder(shared / "data" / name)
    made = sharded(folder, tmp_path / "shards", per_shard=100)
    assert made.fingerprint() == folder.fingerprint()
    betoned(folder, tmp_path / "beton", Recipe(64, "square"))
    plan = Plan(folder.rows("train"), 8, seed=0)
    places = {"folder": folder, "webdataset": shards(tmp_path / "shards"), "ffcv": shards(tmp_path / "beton")}
    one, two, three = (
        read(open_stream(kind, manifest, plan, size=64, with_labels=True), 1) for kind, manifest in places.items()
    )
    assert same(one, two) and same(one, three) and len(one) == plan.steps_per_epoch
