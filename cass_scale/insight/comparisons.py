"""Sections that compare features: CKA of layers, maps of the embedding, how far classes are apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations, product

import numpy as np

from cass_scale.evaluation.indicators import NEIGHBOURS, indicators
from cass_scale.evaluation.metrics import Array
from cass_scale.insight.embedding import plane, separation
from cass_scale.insight.figures import matrices, scatters
from cass_scale.insight.layers import LEAST, cka, grams, layers
from cass_scale.insight.scene import Scene, Side
from cass_scale.insight.sections import Picture, Section
from cass_scale.insight.unsuited import Unsuited
from cass_scale.types import JSON

Key = tuple[str, str]  # side, arm
PLANES = {"tsne": "t-SNE", "umap": "UMAP"}
OTHER = "other"  # group of the images without a class
COLUMNS = {  # of the table: name -> title and form
    "silhouette": ("Silhouette", ".3f"),
    "purity": ("Purity", ".3f"),
    "chance": ("by chance", ".3f"),
    "rankme": ("RankMe", ".1f"),
    "alpha_req": ("alpha-ReQ", ".2f"),
}
NOTE = (
    f"Silhouette: from -1 to 1, 0 where classes overlap. Purity: share of an image's {NEIGHBOURS} nearest that are of "
    "its class. RankMe: how many directions are in use, more is better. alpha-ReQ: how fast the spectrum falls, best "
    f"near 1. Agreement: share of an image's {NEIGHBOURS} nearest that both arms name. The last three need no labels."
)


def cka_section(scene: Scene) -> Section:
    """CKA between the arms, and of each arm with itself and its other sides: the motivation of CASS, section 3."""
    section = Section(
        "How alike the layers see",
        "Linear CKA, layer by layer: 1 means the same but for a rotation and scale, 0 means unrelated. The last row "
        "and column are the features that the encoder gives out; grey: all images are answered alike.",
    )
    with section.possible("all arms"):
        if len(scene.images.keys) < LEAST:
            raise Unsuited(f"{len(scene.images.keys)} images are too few to compare layers on; {LEAST} are needed")
        every = {(side, arm): e for arm in scene.arms for side, e in scene.encoders(arm).items()}
        rows = range(len(scene.images.keys))
        made = {key: grams(encoder, scene.batches(encoder, rows)) for key, encoder in every.items()}
        names = {key: layers(encoder) for key, encoder in every.items()}
        for name, title, caption, pairs in _panels(scene):
            shown = {panel: (cka(made[a], made[b]).numpy(), names[a], names[b]) for panel, (a, b) in pairs.items()}
            section.numbers[name] = {panel: _matrix(*found) for panel, found in shown.items()}
            section.pictures.append(Picture(f"cka-{name}", title, caption, partial(matrices, shown)))
    return section


def _panels(scene: Scene) -> list[tuple[str, str, str, dict[str, tuple[Key, Key]]]]:
    """Name, title and caption of every figure, and which two are compared in each of its panels."""
    found = []
    first = scene.sides[0].name
    for a, b in combinations(scene.arms, 2):
        sides = [side.name for side in scene.sides if {a, b} <= side.arms.keys()]
        pairs = {side: ((side, a), (side, b)) for side in sides}
        found.append((f"{a}-{b}", f"{a} and {b}", f"Rows: layers of {a}; columns: layers of {b}.", pairs))
    for arm in scene.arms:
        others = scene.encoders(arm)
        pairs = {f"with {side}" if side != first else "with itself": ((first, arm), (side, arm)) for side in others}
        caption = f"Rows: layers of {first}; columns: its own, or those of what it is compared with."
        found.append((arm, f"{arm} of {first}", caption, pairs))
    return found


def _matrix(values: Array, rows: Sequence[str], columns: Sequence[str]) -> JSON:
    """For the record."""
    return {"rows": list(rows), "columns": list(columns), "cka": values.round(4).tolist()}


def embedding_section(scene: Scene, how: Sequence[str]) -> Section:
    """t-SNE or UMAP of every arm's features; class separation and label-free indicators in numbers."""
    section = Section(
        "What the features keep apart",
        "Every point is an image. Only neighbourhoods mean anything on such a map, not distances between groups; the "
        "numbers are computed on the features themselves, by cosine around their mean.",
        note=NOTE,
    )
    groups, names = _groups(scene)
    for one in scene.sides:
        section.numbers[one.name] = _measured(section, scene, one, groups)
        section.rows.extend(_rows(one.name, section.numbers[one.name]))
    for arm in scene.arms:
        lines: dict[str, dict[str, tuple[Array, str]]] = {}
        for side, kind in product(scene.encoders(arm), how):
            with section.possible(arm):
                points = plane(kind, scene.features(side, arm).numpy(), scene.seed)
                lines.setdefault(PLANES[kind], {})[side] = points, _note(section.numbers[side]["arms"][arm])
        if lines:
            make = partial(scatters, lines, groups, names)
            title, caption = f"{arm}: features on a plane", f"{len(groups)} images, coloured by their (first) class."
            section.pictures.append(Picture(f"embedding-{arm}", title, caption, make))
    return section


def _groups(scene: Scene) -> tuple[Array, list[str]]:
    """The first class of every image as a number [N], and the names that the numbers stand for."""
    first = [names[0] if names else OTHER for names in scene.images.labels]
    names = sorted(set(first), key=lambda name: (name == OTHER, name))
    return np.array([names.index(name) for name in first]), names


def _measured(section: Section, scene: Scene, side: Side, groups: Array) -> JSON:
    """Indicators of a side's arms and their agreement, as `indicators` gives them; class separation beside them."""
    features = {}
    for arm in (arm for arm in scene.arms if arm in side.arms):
        with section.possible(arm):
            features[arm] = scene.features(side.name, arm).numpy()
    found = indicators(features)
    labels = scene.images.labels
    several, known = any(len(names) > 1 for names in labels), np.array([len(names) > 0 for names in labels])
    for arm, x in features.items():
        with section.possible("class separation"):
            if several:
                raise Unsuited("an image may have several classes here")
            found["arms"][arm] |= separation(x[known], groups[known])
    return found


def _rows(side: str, found: JSON) -> list[dict[str, str]]:
    """Rows of the table: the numbers of one side."""
    rows = []
    for arm, numbers in found["arms"].items():
        cells = {title: _text(numbers.get(name), form) for name, (title, form) in COLUMNS.items()}
        pair = {p: _text(v["mutual_knn"], ".2f") for p, v in found["pairs"].items() if p.split(", ")[0] == arm}
        rows.append({"Side": side, "Arm": arm, **cells, "Agreement": "; ".join(pair.values())})
    return rows


def _note(numbers: JSON) -> str:
    """What stands under a map."""
    known = [f"{word} {numbers[word]:.2f}" for word in ("silhouette", "purity") if word in numbers]
    return ", ".join(known)


def _text(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
