"""The files of a set of shards, and their indexes: where images lie in their tar, their checksums, what is known."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cass_scale.data.manifest import Bad, replacing
from cass_scale.errors import DataError
from cass_scale.types import JSON

SCHEMA = 1
SUFFIX = ".index"


def shard_name(number: int) -> str:
    """Without extension."""
    return f"shard-{number:06d}"


def parse_header(data: bytes, place: object) -> JSON:
    """What `shards.json` holds; `place` is for the DataError where it is broken."""
    try:
        head: JSON = json.loads(data)
        if head["format"] != "ffcv":
            head |= {key: int(head[key]) for key in ("shards", "samples_per_shard")}
            if min(head["shards"], head["samples_per_shard"]) < 1:
                raise ValueError("a number in it is not positive")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place} cannot be read ({error}); make the shards again") from error
    return head


class Sample(NamedTuple):
    """One image of a tar. `split` is '' where the tar does not say."""

    key: str  # the member's name
    offset: int  # of its first byte in the tar
    length: int  # bytes
    sha256: str
    label: str = ""
    group: str = ""
    split: str = ""


@dataclass(frozen=True)
class ShardIndex:
    """All images of one tar, in its order; `bad` are those that cannot be used."""

    tar: str  # file name
    size: int  # bytes
    sha256: str  # of the whole tar
    samples: tuple[Sample, ...]
    bad: tuple[Bad, ...] = ()
    depth: int = 8  # bits per channel: 16 where every image has more than 8

    def write(self, path: Path) -> None:
        """One file, atomically: the checksum of the rest, then a line of JSON, then CSV with Sample's columns."""
        head = {
            "schema": SCHEMA,
            "tar": self.tar,
            "size": self.size,
            "sha256": self.sha256,
            "samples": len(self.samples),
            "bad": [[b.key, b.why] for b in self.bad],
            "depth": self.depth,
        }
        rows = io.StringIO()
        csv.writer(rows, lineterminator="\n").writerows([Sample._fields, *self.samples])
        body = f"{json.dumps(head)}\n{rows.getvalue()}".encode()
        with replacing(path) as temporary, open(temporary, "wb") as f:
            f.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            f.flush()
            os.fsync(f.fileno())

    @staticmethod
    def read(path: Path) -> ShardIndex:
        """What `write` wrote. Raises DataError when it is absent, broken or was changed."""
        try:
            digest, _, body = path.read_bytes().partition(b"\n")
            if hashlib.sha256(body).hexdigest().encode() != digest:
                raise ValueError("its checksum does not match its content")
            first, _, rest = body.decode().partition("\n")
            return _from_text(json.loads(first), rest)
        except OSError as error:
            raise DataError(f"cannot read the index {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise DataError(f"{path} is no index of schema {SCHEMA} ({error}); make the shard again") from error


def _from_text(head: JSON, text: str) -> ShardIndex:
    if head["schema"] != SCHEMA:
        raise ValueError(f"its schema is {head['schema']}")
    rows = csv.reader(io.StringIO(text, newline=""))
    if tuple(next(rows, ())) != Sample._fields:
        raise ValueError(f"its columns are not {','.join(Sample._fields)}")
    samples = tuple(Sample(key, int(offset), int(length), *rest) for key, offset, length, *rest in rows)
    bad = tuple(Bad(key, why) for key, why in head["bad"])
    return ShardIndex(str(head["tar"]), int(head["size"]), str(head["sha256"]), samples, bad, head.get("depth", 8))


def check_size(index: ShardIndex, root: Path) -> None:
    """Raise DataError unless the tar is there and as long as when it was indexed."""
    path = root / index.tar
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; restore it, or make the shards again") from error
    if size != index.size:
        raise DataError(
            f"{path} is {size} bytes long, its index says {index.size}: cut off or replaced; "
            "restore it, or make the shards again"
        )


def file_sha256(path: Path) -> str:
    """Of a whole file, in hexadecimal."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
