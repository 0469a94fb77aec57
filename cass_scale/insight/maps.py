"""Sections of maps over images: attention, first convolutions, Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from cass_scale.encoders import Encoder
from cass_scale.evaluation.metrics import Array
from cass_scale.insight.attention import attention
from cass_scale.insight.convolutions import first_convolutions, grad_cam, towards
from cass_scale.insight.figures import Tile, tiles
from cass_scale.insight.scene import Scene
from cass_scale.insight.sections import Picture, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
Kinds = dict[str, Tensor]  # kind of map -> [n, h, w]
ALL = "all"
HEADS = "heads"
EVEN = "1 is what every patch has where all are looked at alike"
LEAST_TOP = 2.0  # of a colour scale in multiples of even attention: a nearly even map shall look even


def attention_section(scene: Scene) -> Section:
    """Figures 3 and 7 to 10 of CASS, for every arm that is a Vision Transformer."""
    section = Section(
        "Where the Transformer looks",
        "Attention to the patches of an image: that of the class token, or of all patches where the features are their "
        "mean. The last layer's maps show what the features are gathered from; rollout follows it through all layers.",
    )
    single, groups = scene.images.first(scene.examples), _groups(scene)
    rows = sorted({*single, *groups[ALL]})
    for arm in scene.arms:
        if found := _ask(section, scene, arm, lambda _, encoder: _attend(scene, encoder, rows)):
            section.pictures.extend(_attention_pictures(scene, arm, single, groups, rows, found))
    return section


def _ask(section: Section, scene: Scene, arm: str, question: Callable[[str, Encoder], T]) -> dict[str, T]:
    """Answers by side, of those sides of an arm that can give one; why others cannot is noted in the section."""
    found = {}
    for side, encoder in scene.encoders(arm).items():
        with section.possible(arm):
            found[side] = question(side, encoder)
    return found


def _attention_pictures(
    scene: Scene, arm: str, single: list[int], groups: dict[str, list[int]], rows: list[int], found: dict[str, Kinds]
) -> list[Picture]:
    places = {row: place for place, row in enumerate(rows)}
    some = {name: [places[row] for row in members] for name, members in groups.items()}
    heads = {side: maps.pop(HEADS)[places[single[0]]] for side, maps in found.items()}
    return [
        Picture(
            f"attention-{arm}-images", f"{arm}: single images",
            "The mean of the last layer's heads, and rollout. Below each map stands its highest value in multiples of "
            f"even attention ({EVEN}); colours run up to it, at least to {LEAST_TOP:g}.",
            partial(_of_images, scene, {row: places[row] for row in single}, found),
        ),
        Picture(
            f"attention-{arm}-heads", f"{arm}: every head of the last layer",
            f"On the first image ({scene.images.name(single[0])}), with scales as above.",
            partial(_of_heads, scene, single[0], heads),
        ),
        Picture(
            f"attention-{arm}-classes", f"{arm}: averaged over images",
            f"Means over up to {scene.per_class} images of a class, in multiples of even attention. In a row, maps of "
            "one kind share a scale.",
            partial(_of_classes, scene, groups, some, found),
        ),
    ]  # fmt: skip


def _groups(scene: Scene) -> dict[str, list[int]]:
    """Images to average over: of all classes together, and of each."""
    images, most = scene.images, scene.per_class
    by_class = {name: images.members(name)[:most] for name in images.classes}
    together = sorted({row for members in by_class.values() for row in members})
    return {ALL: together or list(range(min(most, len(images.keys))))} | by_class


def _attend(scene: Scene, encoder: Encoder, rows: Sequence[int]) -> Kinds:
    """Maps of some images as multiples of even attention; under HEADS, [n, heads, h, w], the last layer's heads."""
    parts = [attention(encoder, images) for images in scene.batches(encoder, rows)]
    heads, flow = (torch.cat(maps).cpu() * maps[0].shape[-2:].numel() for maps in zip(*parts, strict=True))
    return {HEADS: heads, "last layer": heads.mean(dim=1), "rollout": flow}


def _columns(found: dict[str, Kinds]) -> list[tuple[str, str]]:
    """Kind and side of every column: all sides of a kind beside one another."""
    kinds = next(iter(found.values()))
    return [(kind, side) for kind in kinds for side in found]


def _over(image: Array, heat: Tensor) -> Tile:
    """A map in multiples of even attention over its image."""
    most = float(heat.max())
    return Tile(image, heat.numpy(), max(LEAST_TOP, most), f"{most:.1f}")


def _of_images(scene: Scene, places: dict[int, int], found: dict[str, Kinds]) -> Figure:
    columns = _columns(found)
    rows = {
        f"{number}. {scene.images.name(row)}": [
            Tile(scene.picture(row)),
            *(_over(scene.picture(row), found[side][kind][place]) for kind, side in columns),
        ]
        for number, (row, place) in enumerate(places.items(), 1)
    }
    return tiles(rows, ["image", *(f"{side},\n{kind}" for kind, side in columns)])


def _of_heads(scene: Scene, row: int, heads: dict[str, Tensor]) -> Figure:
    most = max(len(each) for each in heads.values())
    rows = {side: [_over(scene.picture(row), head) for head in each] for side, each in heads.items()}
    return tiles(rows, [f"head {number + 1}" for number in range(most)], side=max(0.85, min(1.7, 11 / most)))


def _of_classes(
    scene: Scene, groups: dict[str, list[int]], places: dict[str, list[int]], found: dict[str, Kinds]
) -> Figure:
    columns = _columns(found)
    rows = {}
    for name, members in groups.items():
        image = torch.stack([torch.from_numpy(scene.picture(row)) for row in members]).mean(dim=0).numpy()
        means = {(kind, side): found[side][kind][places[name]].mean(dim=0) for kind, side in columns}
        line = [Tile(image)]
        for kind, side in columns:
            top = max(float(mean.max()) for (other, _), mean in means.items() if other == kind)
            line.append(Tile(heat=means[kind, side].numpy(), top=max(LEAST_TOP, top)))
        rows[f"{name} ({len(members)})"] = line
    ends = [len(found), len(columns)]  # the last column of each kind
    return tiles(rows, ["mean image", *(f"{side},\n{kind}" for kind, side in columns)], bars=ends)


def convolution_section(scene: Scene) -> Section:
    """Figures 5 and 6 of CASS, for every arm that is a CNN."""
    section = Section(
        "What the first convolutions see",
        "Outputs of the first five convolutions, before any normalisation: the mean absolute value over channels.",
    )
    row = scene.images.first(1)[0]
    for arm in scene.arms:
        if found := _ask(section, scene, arm, lambda _, encoder: _convolve(scene, encoder, row)):
            section.pictures.extend([
                Picture(
                    f"convolutions-{arm}-first", f"{arm}: the first convolution",
                    f"On the first image ({scene.images.name(row)}); every map has its own scale.",
                    partial(_of_first, scene, row, found),
                ),
                Picture(
                    f"convolutions-{arm}", f"{arm}: the first five convolutions",
                    "From nothing (dark) to the highest value. Below each map stand the layer's name and that value.",
                    partial(_of_convolutions, scene, row, found),
                ),
            ])  # fmt: skip
    return section


def _convolve(scene: Scene, encoder: Encoder, row: int) -> dict[str, Tensor]:
    """Maps [h, w] of an image by the name of the convolution."""
    return {name: maps[0].cpu() for name, maps in first_convolutions(encoder, scene.take(encoder, [row])).items()}


def _of_first(scene: Scene, row: int, found: dict[str, dict[str, Tensor]]) -> Figure:
    maps = {side: next(iter(each.values())).numpy() for side, each in found.items()}
    line = [Tile(scene.picture(row)), *(Tile(heat=heat) for heat in maps.values())]
    return tiles({"": line}, ["image", *maps], side=2.2, bars=range(1, len(line)))


def _of_convolutions(scene: Scene, row: int, found: dict[str, dict[str, Tensor]]) -> Figure:
    rows = {
        side: [
            Tile(scene.picture(row)),
            *(Tile(heat=heat.numpy(), note=f"{name}: {float(heat.max()):.3g}") for name, heat in each.items()),
        ]
        for side, each in found.items()
    }
    return tiles(rows, ["image", "first", "second", "third", "fourth", "fifth"], side=1.75)


def grad_cam_section(scene: Scene) -> Section:
    """Grad-CAM on nearest-class-mean scores, for every arm that is a CNN, where classes are known."""
    section = Section(
        "What speaks for the class in the CNN",
        "Grad-CAM. After pretraining there is no classifier; the score is how far an image's features lie in the "
        "direction of its class's mean, seen from the mean of all images: nothing is fitted for it.",
    )
    if len(scene.images.classes) < 2:
        section.left_out.append("all arms: the images are of fewer than two classes: there is no class to ask for")
        return section
    rows = [row for row in scene.images.first(scene.examples) if scene.images.labels[row]]
    for arm in scene.arms:
        if found := _ask(section, scene, arm, partial(_cams, scene, rows, arm)):
            caption = "Every map has its own scale; a dark one means that nothing in the image speaks for its class."
            make = partial(_of_cams, scene, rows, found)
            section.pictures.append(Picture(f"gradcam-{arm}", f"{arm}: Grad-CAM", caption, make))
    return section


def _cams(scene: Scene, rows: Sequence[int], arm: str, side: str, encoder: Encoder) -> Tensor:
    """[n, h, w] for the first class of each image."""
    images = scene.images
    features = scene.features(side, arm)
    asked = [images.labels[row][0] for row in rows]
    every = torch.stack([towards(features, images.members(name)) for name in asked]).to(scene.device)
    return grad_cam(encoder, scene.take(encoder, rows), lambda found: (found.float() * every).sum(dim=1)).cpu()


def _of_cams(scene: Scene, rows: Sequence[int], found: dict[str, Tensor]) -> Figure:
    lines = {
        f"{number}. {scene.images.labels[row][0]}": [
            Tile(scene.picture(row)),
            *(Tile(scene.picture(row), cams[number - 1].numpy(), top=1.0) for cams in found.values()),
        ]
        for number, row in enumerate(rows, 1)
    }
    return tiles(lines, ["image", *found], side=1.7)
