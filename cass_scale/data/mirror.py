"""What is small of a set of shards at a URL, copied into the cache folder, so that all that reads it reads files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from cass_scale.data.cache import make_once
from cass_scale.data.index import SCHEMA, SUFFIX, ShardIndex, parse_header, shard_name
from cass_scale.data.layouts import MANIFEST, SHARDS
from cass_scale.data.manifest import Manifest, replacing
from cass_scale.data.remote import NotThere, check, fetch
from cass_scale.errors import DataError
from cass_scale.machine import cache_folder

HEADER_BYTES = 1 << 20  # more than any header has
FRONT_BYTES = 128  # of a manifest: schema, fingerprint and name
COPIES = 16  # files fetched at a time
Read = TypeVar("Read")


def mirror(url: str) -> Path:
    """Header, manifest and indexes of the shards at `url`, copied into the cache folder once; the tars stay there.

    The header and the front of the manifest, which has the fingerprint, are asked for every time: other shards at
    the same URL are another copy. Raises DataError and ConfigError.
    """
    check(url)
    try:
        head = fetch(url, SHARDS, 0, HEADER_BYTES, first=True)
    except NotThere as error:
        raise DataError(
            f"{error} Shards of other tools are not indexed from afar, which would read all of them: where they lie, "
            "run `cass-scale shard source=DIR out=SHARDS` once"
        ) from None
    known = parse_header(head, f"{url}/{SHARDS}")
    if known["format"] == "ffcv":
        raise DataError(
            f"data.path={url} holds a beton, which is read from a folder only: copy it to one, or make tars"
        )
    fetch(url, SHARDS, 1, 1)  # refuses a server that cannot send a part, before it is asked for one of a tar
    content = f"{SCHEMA} {url}\n".encode() + head + fetch(url, MANIFEST, 0, FRONT_BYTES)

    def fill(folder: Path) -> None:
        (folder / SHARDS).write_bytes(head)
        _copy(folder / MANIFEST, Manifest.read, url)
        paths = (folder / f"{shard_name(i)}{SUFFIX}" for i in range(known["shards"]))
        with ThreadPoolExecutor(COPIES) as pool:
            list(pool.map(lambda path: _copy(path, ShardIndex.read, url), paths))

    place = make_once(cache_folder() / "remote" / hashlib.sha256(content).hexdigest()[:32], fill)
    header = place / SHARDS
    if not header.is_file() or header.read_bytes() != head:  # a copy may rot, or be empty after a power cut
        with replacing(header) as temporary:
            temporary.write_bytes(head)
    return place


def read_own(path: Path, read: Callable[[Path], Read], url: str) -> Read:
    """A file of a set, which holds its own checksum; where it is a copy from `url` and spoilt, it is fetched again."""
    try:
        return read(path)
    except DataError:
        if not url:
            raise
    return _copy(path, read, url)


def _copy(path: Path, read: Callable[[Path], Read], url: str, *, again: bool = True) -> Read:
    with replacing(path) as temporary:
        temporary.write_bytes(fetch(url, path.name))
    try:
        return read(path)
    except DataError as error:
        if again:
            return _copy(path, read, url, again=False)
        raise DataError(f"{url}/{path.name} is broken: copy the shards again, or make them again") from error
