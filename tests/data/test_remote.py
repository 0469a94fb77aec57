"""Shards at a URL: the same batches as from a folder, whatever the network does on the way, or a clear error."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch

from cass_scale.data import remote
from cass_scale.data.index import ShardIndex
from cass_scale.data.manifest import Manifest
from cass_scale.data.mirror import mirror
from cass_scale.data.plan import Plan
from cass_scale.data.shards import shards, survey
from cass_scale.errors import ConfigError, DataError, MissingExtra
from tests.data.stores import HttpStore, free_port, http_store
from tests.data.tars import grouped, open_stream, sharded

pytestmark = pytest.mark.usefixtures("own_cache", "impatient")
IMAGES = 21  # in three shards
TAR = "shard-000001.tar"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one set, `shards`. Of a format that would not notice a changed byte by itself."""
    place = tmp_path_factory.mktemp("store")
    sharded(grouped(place / "images", IMAGES, kind="bmp"), place / "shards")
    return place


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Iterator[HttpStore]:
    shutil.copytree(made / "shards", tmp_path / "store/shards")
    with http_store(tmp_path / "store") as server:
        yield server


def read(manifest: Manifest, workers: int = 0, **options: int) -> list[torch.Tensor]:
    """All images, in the order of an epoch."""
    plan = Plan(manifest.rows("train"), 3, seed=1)
    stream = open_stream("webdataset", manifest, plan, workers, cache_bytes=0, **options)
    try:
        return [batch.images for batch in stream.epoch(2)]
    finally:
        stream.close()


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def wanted(made: Path) -> list[torch.Tensor]:
    return read(shards(made / "shards"))


def said(url: str) -> str:
    """What a person reads when the set cannot be read."""
    with pytest.raises(DataError) as error:
        read(shards(url))
    assert error.value.exit_code == 3
    return str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_as_from_a_folder(
    workers: int, store: HttpStore, made: Path, wanted: list[torch.Tensor]
) -> None:
    local, far = shards(made / "shards"), shards(f"{store.url}/shards/")
    assert far.fingerprint() == local.fingerprint() and far.name == local.name
    assert far.url == far.place == f"{store.url}/shards"
    assert same(read(far, workers), wanted)


def test_dali_reads_them_too(store: HttpStore, made: Path) -> None:
    got = []
    for manifest in (shards(made / "shards"), shards(f"{store.url}/shards")):
        with closing(open_stream("dali", manifest, Plan(manifest.rows("train"), 3, seed=1), 1)) as stream:
            got.append([batch.images for batch in stream.epoch(2)])
    assert same(*got) and store.asked.count(f"/shards/{TAR}") == 7


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_from_memory(workers: int, made: Path, wanted: list[torch.Tensor]) -> None:
    fsspec.filesystem("memory").put(str(made / "shards"), "/deep/er/", recursive=True)
    assert same(read(shards("memory://deep/er/shards"), workers), wanted)


def test_only_parts_of_tars_are_asked_for_and_only_once(store: HttpStore, wanted: list[torch.Tensor]) -> None:
    manifest = shards(f"{store.url}/shards")
    assert not [path for path in store.asked if path.endswith(".tar")], "nothing is read before it is needed"
    assert same(read(manifest), wanted)
    parts = [(path, h.get("Range")) for path, h in zip(store.asked, store.headers, strict=True) if ".tar" in path]
    assert len(parts) == len(set(parts)) == IMAGES and all(part for _, part in parts)
    assert same(read(manifest), wanted) and same(read(manifest, 2), wanted)
    assert len([path for path in store.asked if path.endswith(".tar")]) == IMAGES, "the second epoch is local"


def test_without_a_cache_every_epoch_asks(store: HttpStore, wanted: list[torch.Tensor], own_cache: Path) -> None:
    manifest = shards(f"{store.url}/shards")
    for _ in range(2):
        assert same(read(manifest, remote_cache_bytes=0), wanted)
    assert len([path for path in store.asked if path.endswith(".tar")]) == 2 * IMAGES
    assert not list(own_cache.rglob("*.tar"))


@pytest.mark.parametrize("fault", ["cut", "slow", "500", "502", "503", "429", "408"])
@pytest.mark.parametrize("end", [".tar", "shard-000002.index", "manifest.csv", "shards.json"])
def test_trouble_that_passes_is_waited_out(
    fault: str, end: str, store: HttpStore, wanted: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WHOLE_FILE", 0.1)
    monkeypatch.setattr(remote, "ATTEMPT", 0.1)
    store.faults[end] = iter([fault, "", fault, fault])
    assert same(read(shards(f"{store.url}/shards")), wanted)


def test_workers_wait_it_out_too(store: HttpStore, wanted: list[torch.Tensor]) -> None:
    manifest = shards(f"{store.url}/shards")
    store.faults[".tar"] = itertools.islice(itertools.cycle(["500", "cut", ""]), 20)
    assert same(read(manifest, 2), wanted)


@pytest.mark.parametrize("workers", [0, 1])
def test_trouble_that_stays_is_given_up(workers: int, store: HttpStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.5)
    manifest = shards(f"{store.url}/shards")
    store.faults[TAR] = itertools.repeat("503")
    with pytest.raises(DataError) as error:
        read(manifest, workers)
    text = str(error.value)
    assert text.startswith(f"{store.url}/shards/{TAR}: given up after ") and "Traceback" not in text
    assert "the last one: 503 Service Unavailable" in text and "run the same command again" in text
    attempts = int(text.split("attempts: ")[1].split(",")[0])
    assert store.asked.count(f"/shards/{TAR}") >= attempts > 2


def test_pauses_grow_and_end(store: HttpStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append))
    monkeypatch.setattr(remote, "PAUSE", 0.5)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 4.0)
    monkeypatch.setattr(remote, "PATIENCE", 60.0)
    store.faults[TAR] = iter(["500"] * 6)
    remote.fetch(f"{store.url}/shards", TAR, 0, 9)
    most = [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert all(top / 2 <= pause <= top for pause, top in zip(pauses, most, strict=True))


def test_a_byte_spoilt_on_the_way_once(store: HttpStore, wanted: list[torch.Tensor]) -> None:
    store.faults[".tar"] = iter(["flip", "", "", "flip"])
    assert same(read(shards(f"{store.url}/shards")), wanted)


def test_a_byte_spoilt_on_the_way_always(store: HttpStore, wanted: list[torch.Tensor]) -> None:
    store.faults[TAR] = itertools.repeat("flip")
    text = said(f"{store.url}/shards")
    assert text.startswith(f"{store.url}/shards/{TAR}: ") and "its sha256 is not that of the index" in text
    assert store.asked.count(f"/shards/{TAR}") == 2, "it is asked for twice, not for ever"
    store.faults.clear()
    assert same(read(shards(f"{store.url}/shards")), wanted), "what was spoilt is not believed later"


@pytest.mark.parametrize("name", ["manifest.csv", "shard-000001.index"])
def test_a_small_file_spoilt_on_the_way(name: str, store: HttpStore, own_cache: Path) -> None:
    store.faults[name] = itertools.repeat("flip")
    assert said(f"{store.url}/shards") == (
        f"{store.url}/shards/{name} is broken: copy the shards again, or make them again"
    )
    assert not list(own_cache.rglob("*.index")), "half a copy stays"
    store.faults[name] = iter(["flip"])
    assert len(shards(f"{store.url}/shards")) == IMAGES


def test_a_server_that_sends_whole_files_is_refused(store: HttpStore) -> None:
    store.faults["shards.json"] = itertools.repeat("whole")
    assert "no Range requests" in said(f"{store.url}/shards")
    assert set(store.asked) == {"/shards/shards.json"}, "it is found out with the smallest file"
    store.faults = {".tar": itertools.repeat("whole")}
    assert "no Range requests" in said(f"{store.url}/shards")
    assert len([path for path in store.asked if path.endswith(".tar")]) == 1, "one whole tar at most"


def test_what_is_not_there(store: HttpStore) -> None:
    text = said(f"{store.url}/elsewhere")
    assert text.startswith(f"{store.url}/elsewhere/shards.json is not there (404)")
    assert "Shards of other tools are not indexed from afar" in text and "cass-scale shard source=DIR" in text
    (store.root / "shards" / TAR).unlink()
    assert said(f"{store.url}/shards").startswith(f"{store.url}/shards/{TAR} is not there (404)")
    (store.root / "shards/manifest.csv").rename(store.root / "shards/other.csv")
    assert said(f"{store.url}/shards").startswith(f"{store.url}/shards/manifest.csv is not there (404)")
    assert len([path for path in store.asked if path.endswith(TAR)]) == 1, "nothing of this is tried again"


@pytest.mark.parametrize("status", ["401", "403"])
def test_what_is_refused(status: str, store: HttpStore) -> None:
    store.faults["shards.json"] = itertools.repeat(status)
    text = said(f"{store.url}/shards")
    assert f"shards.json is refused ({status} " in text and "USER:PASSWORD@ before the host" in text
    assert len(store.asked) == 1


def test_an_answer_that_is_no_header(store: HttpStore) -> None:
    (store.root / "shards/shards.json").write_text("<html>Please log in</html>")
    assert f"{store.url}/shards/shards.json cannot be read (Expecting value" in said(f"{store.url}/shards")


def test_a_beton_is_read_from_a_folder_only(store: HttpStore) -> None:
    (store.root / "shards/shards.json").write_text('{"format": "ffcv"}')
    assert "holds a beton, which is read from a folder only: copy it to one" in said(f"{store.url}/shards")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://nowhere.invalid/shards", "cannot be reached (Cannot connect to host nowhere.invalid:80"),
        ("http://127.0.0.1:PORT/shards", "cannot be reached (Cannot connect to host 127.0.0.1"),
        ("http:///shards", "is data.path right?"),
    ],
)
def test_nobody_answers(url: str, why: str) -> None:
    assert why in said(url.replace("PORT", str(free_port())))


def test_a_pause_of_the_network_in_a_run_is_waited_out(
    store: HttpStore, wanted: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first contact fails at once where nobody answers; later a store may be started anew."""
    manifest = shards(f"{store.url}/shards")
    store.stop()
    back: list[HttpStore] = []

    def come_back(_: float) -> None:
        back.append(HttpStore(store.root, store.server_address[1]).start())

    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=time.monotonic, sleep=come_back))
    assert same(read(manifest), wanted)
    assert len(back) == 1
    back[0].stop()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://host/shards", "shards are read from http, https, s3, gs, memory or a folder"),
        ("s3://KEY:hidden@bucket/shards", "credentials have no place there; set AWS_ACCESS_KEY_ID"),
    ],
)
def test_urls_that_are_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        shards(url)
    assert why in str(error.value) and "hidden" not in str(error.value)


def test_what_reads_every_byte_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.path=s3://bucket/x: .*copy the shards to a folder first"):
        survey("s3://bucket/x")


def test_what_is_not_installed_names_the_extra(store: HttpStore, monkeypatch: pytest.MonkeyPatch) -> None:
    remote._system.cache_clear()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtra, match=r"needs the package aiohttp: `pip install 'cass-scale\[cloud\]'`"):
        shards(f"{store.url}/shards")


def test_a_shard_replaced_under_a_running_job(store: HttpStore) -> None:
    read(shards(f"{store.url}/shards"), remote_cache_bytes=0)
    tar = store.root / "shards" / TAR
    good = tar.read_bytes()
    tar.write_bytes(bytes(reversed(good)))
    assert TAR in said(f"{store.url}/shards")
    tar.write_bytes(good[:100])
    assert f"{TAR} is shorter than its index says" in said(f"{store.url}/shards")


def test_the_copy_is_kept_until_the_shards_change(store: HttpStore, tmp_path: Path) -> None:
    first = mirror(f"{store.url}/shards")
    store.asked.clear()
    assert mirror(f"{store.url}/shards") == first
    assert store.asked == ["/shards/shards.json", "/shards/shards.json", "/shards/manifest.csv"]
    head, other = store.root / "shards/shards.json", tmp_path / "other"
    old = head.read_text()
    sharded(grouped(tmp_path / "images", IMAGES, side=24), other)
    shutil.copytree(other, store.root / "shards", dirs_exist_ok=True)
    wanted = read(shards(other))
    assert mirror(f"{store.url}/shards") != first and same(read(shards(f"{store.url}/shards")), wanted)
    head.write_text(old)  # as if another build of an encoder had made them by the same options
    assert mirror(f"{store.url}/shards") != first and same(read(shards(f"{store.url}/shards")), wanted)


@pytest.mark.parametrize("name", ["shards.json", "manifest.csv", "shard-000001.index"])
@pytest.mark.parametrize("content", [b"", b"rot", None])
def test_a_copy_that_rots_is_mended(
    name: str, content: bytes | None, store: HttpStore, wanted: list[torch.Tensor]
) -> None:
    place = mirror(f"{store.url}/shards") / name
    good = place.read_bytes()
    place.unlink() if content is None else place.write_bytes(content)
    assert same(read(shards(f"{store.url}/shards")), wanted) and place.read_bytes() == good


def test_no_file_system_is_ever_collected(store: HttpStore) -> None:
    """Collected in a worker, by chance in the thread of its loop, one of its parent's would wait there for ever."""
    store.faults["shards.json"] = iter(["403"])
    here = weakref.ref(remote._system("http", os.getpid()))
    said(f"{store.url}/shards")
    gc.collect()
    assert here() is not None and here() is not remote._system("http", os.getpid())


def test_proxies_and_netrc_are_followed(
    store: HttpStore, wanted: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine far.invalid login anna password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", store.url)
    assert same(read(shards("http://far.invalid/shards")), wanted)
    assert {h.get("Authorization") for h in store.headers} == {"Basic YW5uYTpzZWNyZXQ="}


def test_an_index_from_afar_names_no_file_elsewhere(store: HttpStore, tmp_path: Path) -> None:
    place = store.root / "shards/shard-000001.index"
    index = ShardIndex.read(place)
    ShardIndex(f"../../../{tmp_path.name}.tar", index.size, index.sha256, index.samples).write(place)
    assert "shard-000001.index is the index of '../" in said(f"{store.url}/shards")
