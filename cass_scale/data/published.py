"""Published sets: read in the layout that they are downloaded in, and held against what their publisher counts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from cass_scale.data.layouts import Listing
from cass_scale.data.manifest import SPLITS, Manifest, find_classes
from cass_scale.data.sources import DEFAULT_SPLIT, Examined, Found, Survey, examine, gather
from cass_scale.errors import ConfigError, DataError
from cass_scale.types import JSON

Layout = Callable[[Path], Found]  # one of adapters.py; raises DataError where a folder is not laid out so
Counts = Literal["check", "note"]


def published(
    path: str | os.PathLike[str],
    *,
    layout: Layout,
    name: str,
    page: str,
    licence: str,
    expected: JSON | None = None,
    counts: Counts = "check",
    max_bad: float = 0.01,
    seed: int = 0,
    split: Sequence[float] = DEFAULT_SPLIT,
    workers: int | None = None,
) -> Manifest:
    """The manifest of a published set below `path`, as `layout` finds it; `split` is drawn where none is published.

    `expected` holds numbers of `images`, `groups`, `train`, `val`, `test`, and `classes` by name, null for any number;
    others are an error, or with `counts="note"` a note. Raises DataError naming the page, and ConfigError.
    """
    found = _find(path, layout, name, page, licence, expected, counts)
    return gather(found, name=name, max_bad=max_bad, seed=seed, split=split, workers=workers)


def survey(
    path: str | os.PathLike[str],
    *,
    layout: Layout,
    name: str,
    page: str,
    licence: str,
    expected: JSON | None = None,
    counts: Counts = "check",
    split: Sequence[float] = DEFAULT_SPLIT,
    workers: int | None = None,
) -> Survey:
    """What `published` takes, to be read anew."""
    found = _find(path, layout, name, page, licence, expected, counts)
    remedy = (
        "`cass-scale split` with the same `data` and out=clean.csv draws a split that does not leak; put clean.csv "
        f"into {found.root} as labels.csv, and give data.path={found.root} alone"
    )

    def reread() -> Examined:
        manifest, looks = examine(found, name=name, split=split, workers=workers)
        return Examined(manifest, looks, {"group": manifest.groups} if any(manifest.groups) else {})

    return Survey(found.root, len(found.listing.keys), remedy, reread)


def _find(
    path: str | os.PathLike[str],
    layout: Layout,
    name: str,
    page: str,
    licence: str,
    expected: JSON | None,
    counts: Counts,
) -> Found:
    if counts not in ("check", "note"):
        raise ConfigError(f"data.counts={counts!r} is unknown; choose check or note")
    try:
        found = layout(Path(path).expanduser().absolute())
    except DataError as error:
        raise DataError(f"{error}\n  {name} as it is published: {page}") from error
    notes = [*found.listing.notes, f"licence: {licence} ({page})"]
    if odd := _unexpected(found.listing, found.expected or expected or {}):
        if counts == "check":
            raise DataError(
                f"{found.root} is not {name} as its publisher counts it: {'; '.join(odd)}. Download it again from "
                f"{page}; if the publisher has changed it, data.counts=note goes on with what is there"
            )
        notes.append(f"not as published: {'; '.join(odd)}")
    return found._replace(listing=found.listing._replace(notes=notes))


def _unexpected(listing: Listing, expected: JSON) -> list[str]:
    """Each number that differs, with the one that was expected."""
    classes, multilabel = find_classes(listing.labels)
    labels = Counter(c for label in listing.labels for c in (label.split("|") if multilabel else [label]))
    found: dict[str, int] = {
        "images": len(listing.keys),
        "groups": len(set(listing.groups) - {""}),
        **{split: listing.splits.count(split) for split in SPLITS},
        **{f"of class {c}": labels[c] for c in classes},
    }
    wanted: dict[str, Any] = {key: n for key, n in expected.items() if key != "classes"}
    wanted |= {f"of class {c}": n for c, n in expected.get("classes", {}).items()}
    odd = [f"{found.get(k, 0)} {k}, expected {n}" for k, n in wanted.items() if n is not None and found.get(k, 0) != n]
    odd += [f"none {k}" for k, n in wanted.items() if n is None and not found.get(k)]
    known = expected.get("classes", classes)
    return odd + [f"{labels[c]} of class {c}, which is not expected" for c in classes if c not in known]
