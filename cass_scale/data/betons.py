"""A .beton beside its manifest: whether it is the one that was made, and what its images show."""

from __future__ import annotations

import numpy as np

from cass_scale.data import beton
from cass_scale.data.cache import is_still
from cass_scale.data.decode import BadImage
from cass_scale.data.index import file_sha256
from cass_scale.data.layouts import BETON, MADE, MANIFEST, SHARDS
from cass_scale.data.look import Look, look
from cass_scale.data.manifest import Bad, Manifest
from cass_scale.data.ranges import LocalRanges, read_checked
from cass_scale.data.scan import Checked, chunks, judge, spread
from cass_scale.errors import DataError
from cass_scale.types import JSON

AGAIN = "restore it, or make it again with `cass-scale shard format=ffcv`"


def check_beton(manifest: Manifest, head: JSON, *, anew: bool = False) -> None:
    """Raise DataError unless the .beton beside a manifest is the one that shards.json (`head`) describes.

    FFCV checks nothing when it reads: the file is read whole and held against its sha256 when it changed since the
    last time, or in any case `anew`.
    """
    path = manifest.root / BETON
    try:
        size, digest, fingerprint = (head[MADE][key] for key in ("bytes", "sha256", "manifest"))
    except (KeyError, TypeError) as error:
        place = manifest.root / SHARDS
        raise DataError(f"{place} does not describe a beton ({error}); make the shards again") from error
    if fingerprint != manifest.fingerprint():
        raise DataError(f"{manifest.root / MANIFEST} does not belong to the {BETON} beside it; {AGAIN}")
    try:
        if (found := path.stat().st_size) != size:
            raise DataError(f"{path} is {found} bytes long and was made {size}: cut off or replaced; {AGAIN}")
        beton.check_header(path, len(manifest))
        if not (file_sha256(path) == digest if anew else is_still(path, digest)):
            raise DataError(f"the sha256 of {path} is not that of {SHARDS}, it was changed; {AGAIN}")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; {AGAIN}") from error


def look_at_beton(manifest: Manifest, head: JSON, workers: int | None) -> tuple[dict[int, Look], list[Bad]]:
    """Everything read anew: the looks of good images by row, and what is damaged."""
    path, files = manifest.root / BETON, LocalRanges()
    damaged: list[Bad] = []
    try:
        check_beton(manifest, head, anew=True)
    except DataError as error:
        damaged.append(Bad(BETON, str(error)))
    images = beton.read_images(path, len(manifest))

    def check(row: int) -> Checked:
        key, (mode, width, height, address) = manifest.keys[row], images[row]
        try:
            data = read_checked(files, path, address, manifest.sizes[row], manifest.sha256[row])
        except BadImage as error:
            return Checked(key, "", 0, str(error))
        if mode != beton.RAW:
            return judge(key, data, True)
        if len(data) != width * height * 3:
            return Checked(key, "", 0, f"its pixels are not those of {width} x {height}")
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
        return Checked(key, manifest.sha256[row], len(data), "", look=look(pixels))

    found = spread(check, chunks(range(len(images))), workers)
    damaged += [Bad(f"{BETON}: {manifest.keys[row]}", one.why) for row, one in enumerate(found) if one.why]
    return {row: one.look for row, one in enumerate(found) if one.look is not None}, damaged
