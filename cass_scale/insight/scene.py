"""What is looked at, and by whom: images, and the same arms in several states side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from cass_scale.colour import to_unit
from cass_scale.encoders import Encoder
from cass_scale.evaluation.metrics import Array
from cass_scale.insight.unsuited import Unsuited


@dataclass(frozen=True)
class Images:
    """N images; `labels` holds each one's classes: none, one or several."""

    keys: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    pixels: Mapping[int, Tensor]  # by side of the square: [N, 3, S, S] as a stream gives them

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Those that occur, sorted."""
        return tuple(sorted({name for names in self.labels for name in names}))

    def members(self, name: str) -> list[int]:
        """Numbers of the images of a class."""
        return [i for i, names in enumerate(self.labels) if name in names]

    def first(self, number: int) -> list[int]:
        """So many images: the first of every class in turn, without labels simply the first."""
        turns = [self.members(name) for name in self.classes] or [list(range(len(self.keys)))]
        rounds = [members[turn] for turn in range(number) for members in turns if turn < len(members)]
        return list(dict.fromkeys(rounds))[:number]

    def name(self, row: int) -> str:
        """What an image is called: its classes, or its file."""
        return ", ".join(self.labels[row]) or self.keys[row].rpartition("/")[2]


@dataclass(frozen=True)
class Side:
    """One state of the arms."""

    name: str
    about: str
    arms: Mapping[str, Encoder]


@dataclass(frozen=True)
class Scene:
    """Images before all sides; encoders are in eval mode and on the device."""

    images: Images
    sides: Sequence[Side]
    device: torch.device
    batch: int
    per_class: int  # images that an average is made of
    examples: int  # images shown on their own
    seed: int
    _known: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)

    @property
    def arms(self) -> list[str]:
        """Arms of the first side: the others show the same ones, or some of them."""
        return list(self.sides[0].arms)

    def encoders(self, arm: str) -> dict[str, Encoder]:
        """An arm by side."""
        return {side.name: side.arms[arm] for side in self.sides if arm in side.arms}

    def take(self, encoder: Encoder, rows: Sequence[int]) -> Tensor:
        """Some images as an encoder takes them: float [n, 3, S, S] in [0, 1], on the device."""
        return to_unit(self.images.pixels[encoder.image_size][list(rows)].to(self.device))

    def batches(self, encoder: Encoder, rows: Sequence[int]) -> Iterator[Tensor]:
        """The same in parts of nearly equal size: at most `batch` (8 or more), at least 4 where there are as many."""
        parts = -(-len(rows) // self.batch)
        for part in torch.tensor_split(torch.tensor(list(rows)), parts):
            yield self.take(encoder, part.tolist())

    def picture(self, row: int) -> Array:
        """An image as it is drawn: float [S, S, 3] in [0, 1]."""
        size = next(iter(self.sides[0].arms.values())).image_size
        made: Array = to_unit(self.images.pixels[size][row]).permute(1, 2, 0).numpy()
        return made

    def features(self, side: str, arm: str) -> Tensor:
        """Features [N, dim] of all images, on the CPU, computed once. Raises Unsuited when they are not finite."""
        if (side, arm) not in self._known:
            encoder, rows = self.encoders(arm)[side], range(len(self.images.keys))
            with torch.inference_mode():
                parts = [encoder(images).float().cpu() for images in self.batches(encoder, rows)]
            self._known[side, arm] = torch.cat(parts)
        found = self._known[side, arm]
        if not found.isfinite().all():
            raise Unsuited(f"{side}: its features are not finite numbers; the run has diverged")
        return found
