"""Is a set of images sound: files that decode, no picture and no patient on both sides of a split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cass_scale.data.look import SIDE, Look
from cass_scale.data.manifest import SPLITS, Bad, Manifest
from cass_scale.data.near import blank, near
from cass_scale.data.sets import Sets
from cass_scale.data.sources import Examined
from cass_scale.types import JSON

BYTES, PIXELS, NEAR = KINDS = ("same bytes", "same pixels", "near duplicate")  # from the strictest on
FEW = 10
RESTORE = (
    "restore them from a copy; or, of shards made by `cass-scale shard`, delete each damaged tar with its index and "
    "give that command again, which makes what is missing"
)


class Link(NamedTuple):
    """Two rows of a manifest that show the same picture: the second is the first after `turn`."""

    first: int
    second: int
    kind: str
    turn: str = "as it is"
    correlation: float = 1.0


def copies(manifest: Manifest, looks: Sequence[Look]) -> tuple[Sets, list[Link]]:
    """Sets of images that show the same picture, and the links that make them so."""
    sets = Sets(len(manifest))
    links = [Link(a, b, BYTES) for a, b in sets.join_equal(manifest.sha256)]
    links += [Link(a, b, PIXELS) for a, b in sets.join_equal([one.pixels for one in looks])]
    distinct = np.unique([look.pixels for look in looks], return_index=True)[1]
    distinct.sort()
    for found in near(thumbs([looks[i] for i in distinct])):
        a, b = int(distinct[found.first]), int(distinct[found.second])
        sets.join(a, b)
        links.append(Link(a, b, NEAR, found.turn, round(found.correlation, 4)))
    return sets, links


def thumbs(looks: Sequence[Look]) -> NDArray[np.uint8]:
    """The small copies as one array: uint8 [N, SIDE * SIDE]."""
    return np.frombuffer(b"".join(look.thumb for look in looks), np.uint8).reshape(-1, SIDE * SIDE)


def inspect(examined: Examined, *, few: int = FEW) -> JSON:
    """Everything that can be said about the images, as plain values."""
    manifest, looks, owners, damaged = examined
    sets, links = copies(manifest, looks)
    found = _sets(manifest, sets, links)
    groups = {column: _astride(values, manifest.splits) for column, values in owners.items()}
    return {
        "name": manifest.name,
        "path": str(manifest.root),
        "images": len(manifest),
        "fingerprint": manifest.fingerprint(),
        "notes": list(manifest.notes),
        "multilabel": manifest.multilabel,
        "splits": {s: n for s in SPLITS if (n := manifest.splits.count(s))},
        "classes": (classes := _classes(manifest)),
        "few": [c for c, counts in classes.items() if sum(counts.values()) < few],
        "sizes": _sizes(manifest, looks),
        "bad": _plain(manifest.bad),
        "damaged": _plain(damaged),
        "blank": [manifest.keys[i] for i in np.flatnonzero(blank(thumbs(looks)))],
        "copies": _count(found),
        "sets": found,
        "groups": groups,
        "leaked": {"copies": _leaked(found), **{column: _leaked(rows) for column, rows in groups.items()}},
    }


def changed(now: Manifest, then: Manifest) -> JSON:
    """Images that an earlier manifest names and that are gone, or whose bytes differ now."""
    known = dict(zip(now.keys, now.sha256, strict=True))
    pairs = list(zip(then.keys, then.sha256, strict=True))
    return {
        "gone": [key for key, _ in pairs if key not in known],
        "changed": [key for key, sha256 in pairs if known.get(key, sha256) != sha256],
    }


def faults(found: JSON, max_bad: float, remedy: str) -> list[JSON]:
    """What makes the images unfit to measure with, each with what would mend it; [] when they are clean."""
    out = []
    if found["damaged"]:
        shown = _some([f"{one['key']}: {one['why']}" for one in found["damaged"]])
        out.append({"what": f"{len(found['damaged'])} shards or images are damaged: {shown}", "mend": RESTORE})
    bad, files = len(found["bad"]), found["images"] + len(found["bad"])
    if bad > max_bad * files:
        what = f"{bad} of {files} files cannot be used, more than data.max_bad={max_bad:g}"
        out.append({"what": what, "mend": "repair or remove the files listed, or raise data.max_bad to skip them"})
    for kind, leaked in found["leaked"].items():
        if leaked:
            shares = ", ".join(f"{n} of {found['splits'][split]} {split} images" for split, n in leaked.items())
            kin = "the same picture" if kind == "copies" else f"the same {kind}"
            out.append({"what": f"{kin} on both sides of a split: {shares}", "mend": remedy})
    for how, keys in found.get("against", {}).items():
        if keys:
            what = f"{len(keys)} images are {how} since that manifest was written: {_some(keys)}"
            out.append({"what": what, "mend": "restore them from the source, or pretrain anew on what is there now"})
    return out


def remarks(found: JSON, few: int = FEW) -> list[str]:
    """What is worth knowing and no reason to stop."""
    within = sum(len(one["images"]) - 1 for one in found["sets"] if len(one["splits"]) == 1)
    differ = sum(one["labelled_differently"] for one in found["copies"].values())
    absent = [f"{c} in {s}" for c, counts in found["classes"].items() for s, n in counts.items() if not n]
    said = {
        f"{within} images repeat another of the same split: they add weight, not knowledge": within,
        f"{differ} sets of copies are labelled differently: one of the labels is wrong": differ,
        f"classes with fewer than {few} images, too few to score: {_some(found['few'])}": found["few"],
        f"no image of {_some(absent)}": absent,
        f"{len(found['blank'])} images are of one grey and were not compared: {_some(found['blank'])}": found["blank"],
        f"{len(found['bad'])} unusable files are skipped": found["bad"],
    }
    return [text for text, there in said.items() if there]


def _plain(found: Sequence[Bad]) -> list[JSON]:
    return [{"key": bad.key, "why": bad.why} for bad in found]


def _some(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _sets(manifest: Manifest, sets: Sets, links: Sequence[Link]) -> list[JSON]:
    """One entry per set of copies, those across splits first."""
    of: dict[int, list[Link]] = defaultdict(list)
    for link in links:
        of[int(sets.of[link.first])].append(link)
    out: list[JSON] = []
    for rows in sets.several():
        mine = of[int(sets.of[rows[0]])]
        out.append(
            {
                "kind": max((link.kind for link in mine), key=KINDS.index),
                "splits": dict(Counter(manifest.splits[i] for i in rows)),
                "labels": sorted({manifest.labels[i] for i in rows}),
                "images": [manifest.keys[i] for i in rows],
                "links": [
                    link._asdict() | {"first": manifest.keys[link.first], "second": manifest.keys[link.second]}
                    for link in mine
                ],
            }
        )
    return sorted(out, key=lambda one: len(one["splits"]) == 1)


def _count(found: Sequence[JSON]) -> dict[str, dict[str, int]]:
    """Per kind: sets, images in them, sets across splits, sets whose images are labelled differently."""
    out = {}
    for kind in KINDS:
        mine = [one for one in found if one["kind"] == kind]
        out[kind] = {
            "sets": len(mine),
            "images": sum(len(one["images"]) for one in mine),
            "across": sum(len(one["splits"]) > 1 for one in mine),
            "labelled_differently": sum(len(one["labels"]) > 1 for one in mine),
        }
    return out


def _astride(values: Sequence[str], splits: Sequence[str]) -> list[JSON]:
    """Patients or groups with images in more than one split, and how many in each."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for value, split in zip(values, splits, strict=True):
        if value:
            counts[value][split] += 1
    return [{"group": value, "splits": dict(found)} for value, found in sorted(counts.items()) if len(found) > 1]


def _leaked(found: Sequence[JSON]) -> dict[str, int]:
    """Images per split that have kin in another one."""
    total: Counter[str] = Counter()
    for one in found:
        if len(one["splits"]) > 1:
            total.update(one["splits"])
    return {split: total[split] for split in SPLITS if total[split]}


def _classes(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Images per class and split."""
    counts = Counter(
        (c, split)
        for label, split in zip(manifest.labels, manifest.splits, strict=True)
        for c in (label.split("|") if manifest.multilabel else [label])
    )
    here = [split for split in SPLITS if split in manifest.splits]
    return {c: {split: counts[c, split] for split in here} for c in manifest.classes}


def _sizes(manifest: Manifest, looks: Sequence[Look]) -> dict[str, Any]:
    """Smallest, middle and largest of widths, heights and bytes; the shapes that occur most."""
    columns = {"width": [s.width for s in looks], "height": [s.height for s in looks], "bytes": list(manifest.sizes)}
    out: dict[str, Any] = {c: np.quantile(v, (0, 0.5, 1), method="nearest").tolist() for c, v in columns.items()}
    shapes = Counter(f"{look.width}x{look.height}" for look in looks)
    return out | {"total_bytes": sum(manifest.sizes), "shapes": dict(shapes.most_common(5)), "distinct": len(shapes)}
