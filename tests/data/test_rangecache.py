"""The cache of ranges: bounded, whoever fills it; nothing in it is believed without its checksum."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
import random
import shutil
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from cass_scale.data import rangecache
from cass_scale.data.mirror import mirror
from cass_scale.data.rangecache import RangeCache
from cass_scale.data.shards import shards
from tests.data.stores import http_store
from tests.data.tars import grouped, sharded
from tests.data.test_remote import read, same

pytestmark = pytest.mark.usefixtures("own_cache", "impatient")
PIECE = 4096
LIMIT = 4 << 20


def work(folder: Path, seed: int, turns: int, started: multiprocessing.synchronize.Event) -> None:
    """Read pieces at random and keep what was not there; the exit code tells whether a wrong one was read."""
    cache, dice, wrong = RangeCache(folder, LIMIT), random.Random(seed), 0
    started.set()
    for _ in range(turns):
        number = dice.randrange(1, 4096)
        path, offset = folder / f"{number % 4}.tar", number * PIECE
        piece = number.to_bytes(4, "big") * (PIECE // 4)
        kept = cache.open_range(path, offset, PIECE) if path.exists() else b""
        if kept.strip(bytes(1)):
            wrong += kept != piece
        else:
            cache.put(path, offset, piece)
    sys.exit(wrong > 0)


def used(place: Path) -> int:
    """Bytes on the disk."""
    return sum(p.stat().st_blocks * 512 for p in place.rglob("*.tar"))


def a_set(place: Path, opened: float, pieces: int = 0) -> Path:
    """A folder as a set that was opened then, with one tar."""
    place.mkdir(parents=True)
    (place / rangecache.OPENED).touch()
    (place / "a.tar").write_bytes(b"x" * PIECE * pieces)
    os.utime(place / rangecache.OPENED, (opened, opened))
    return place


def fill(cache: RangeCache, pieces: int, name: str = "b.tar") -> int:
    """How many of `pieces` were kept."""
    path = cache.folder / name
    for i in range(pieces):
        cache.put(path, i * PIECE, b"y" * PIECE)
    if cache.limit and not path.exists():
        return 0
    return sum(cache.open_range(path, i * PIECE, PIECE) == b"y" * PIECE for i in range(pieces))


def test_within_a_set_what_came_first_stays(tmp_path: Path) -> None:
    cache = RangeCache(a_set(tmp_path / "mine", time.time()), LIMIT)
    kept = fill(cache, 4000)
    assert 0.75 * LIMIT < used(tmp_path) <= LIMIT and kept * PIECE > 0.4 * LIMIT
    assert cache.open_range(cache.folder / "b.tar", 0, PIECE) == b"y" * PIECE
    assert not cache.open_range(cache.folder / "b.tar", 3999 * PIECE, PIECE)


def test_sets_opened_longest_ago_give_way_first(tmp_path: Path) -> None:
    old, newer = (a_set(tmp_path / name, time.time() - age, 400) for name, age in (("a", 10), ("b", 20)))
    old, newer = newer, old
    cache = RangeCache(a_set(tmp_path / "mine", time.time()), LIMIT)
    fill(cache, 100)
    assert used(old) == 0 and used(newer) == 400 * PIECE, "only as many as are needed"
    assert (old / "a.tar").exists(), "another process may have it open"
    fill(cache, 4000)
    assert used(newer) == 0 and 0.75 * LIMIT < used(tmp_path) <= LIMIT
    other = RangeCache(newer, LIMIT)
    os.utime(newer / rangecache.OPENED, (1, 1))
    assert fill(other, 100) == 0, "a set does not take the room of one that was opened later"


def test_a_lowered_limit_and_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = a_set(tmp_path / "mine", time.time(), 100)
    (mine / "b.tar").write_bytes(b"x" * PIECE * 100)
    fill(RangeCache(mine, 150 * PIECE), 1, "c.tar")
    assert used(mine) <= 150 * PIECE
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(rangecache.shutil, "disk_usage", lambda _: usage(20 * PIECE))
    fill(RangeCache(mine, LIMIT), 1, "c.tar")
    assert used(mine) == 0, "at most half of what would be free without it"


def test_a_full_cache_is_not_looked_at_for_every_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    cache = RangeCache(a_set(tmp_path / "mine", time.time()), LIMIT)
    plain = RangeCache._make_room
    monkeypatch.setattr(RangeCache, "_make_room", lambda self: looks.append(0) or plain(self))
    fill(cache, 4000)
    first = len(looks)
    fill(cache, 4000)
    assert 10 < first < 500 and len(looks) == first
    monkeypatch.setattr(rangecache.time, "monotonic", lambda: float("inf"))
    fill(cache, 1, "c.tar")
    assert len(looks) == first + 1, "but now and then"


def test_no_room_no_right_to_write_and_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = a_set(tmp_path / "mine", time.time(), 100)
    assert fill(RangeCache(mine, 0), 9) == 0 and used(mine) == 100 * PIECE, "0 neither writes nor takes away"
    assert RangeCache(mine, 0).open_range(mine / "a.tar", 0, PIECE) == b""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rangecache.os, "pwrite", full)
    assert fill(RangeCache(mine, LIMIT), 9) == 0
    shutil.rmtree(mine)
    assert fill(RangeCache(mine, LIMIT), 9) == 0, "somebody removed the folder"


def test_many_processes_one_killed(tmp_path: Path) -> None:
    """Four that fill 16 MiB of ranges into a cache of 4, one of them killed at work."""
    mine, fork = a_set(tmp_path / "mine", time.time()), multiprocessing.get_context("fork")
    started = fork.Event()
    others = [fork.Process(target=work, args=(mine, seed, 8000, fork.Event())) for seed in range(3)]
    killed = fork.Process(target=work, args=(mine, 9, 10**9, started))
    for process in (*others, killed):
        process.start()
    most = 0
    while any(other.is_alive() for other in others):
        most = max(most, used(mine))
        time.sleep(0.01)
    assert started.is_set() and killed.is_alive()
    killed.kill()
    killed.join()
    assert [other.exitcode for other in others] == [0, 0, 0], "something wrong was read"
    assert 0.5 * LIMIT < used(mine) <= most <= LIMIT
    again = fork.Process(target=work, args=(mine, 4, 2000, started))
    again.start()
    again.join(60)
    assert again.exitcode == 0 and used(mine) <= LIMIT, "no lock was left"


def test_what_is_kept_is_not_believed(tmp_path: Path) -> None:
    """Torn, spoilt, emptied, cut: each costs one more request, and the image is right."""
    sharded(grouped(tmp_path / "images", 21, kind="bmp"), tmp_path / "store/shards")
    with http_store(tmp_path / "store") as store:
        url, dice = f"{store.url}/shards", random.Random(0)
        wanted = read(shards(tmp_path / "store/shards"))
        manifest = shards(url)
        read(manifest)
        for round in range(30):
            for tar in mirror(url).glob("*.tar"):
                whole = tar.read_bytes()
                at, length = dice.randrange(len(whole) + 1), dice.randrange(2000)
                spoilt = whole[:at] + dice.randbytes(length) + whole[at + length :]
                tar.write_bytes(dice.choice([spoilt, whole[:at], whole[:at] + bytes(len(whole) - at)]))
            assert same(read(manifest, workers=round == 0), wanted)
        store.asked.clear()
        assert same(read(manifest), wanted) and not store.asked, "it has mended itself"
