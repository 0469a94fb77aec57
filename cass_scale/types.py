"""The vocabulary: what flows between the rooms. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


class Batch(NamedTuple):
    """What every stream yields. The tensors lie on the training device; the caller owns their memory."""

    images: Tensor  # uint8 [B, 3, H, W]; of a set of 16 bit uint16, its window stretched over 0..65535
    index: Tensor  # type: ignore[assignment]  # int64 [B]: row of the manifest, the same in every backend
    group: Tensor | None = None  # int64 [B]: patient or lesion
    label: Tensor | None = None  # int64 [B], or float32 [B, C] of 0/1 for multi-label; never read in pretraining


class StepOutput(NamedTuple):
    """What a method returns. A NamedTuple because ZeRO-3 and autocast hooks walk tuples only."""

    loss: Tensor  # float32 scalar
    metrics: dict[str, Tensor]  # detached scalars; the loop logs them and interprets nothing


class ArmOutput(NamedTuple):
    """One arm's answer to a batch of B images: what the collapse monitor looks at."""

    features: Tensor  # [B, dim] of the encoder, what downstream tasks use
    outputs: Tensor  # [B, K] that the objective compares


ARMS = 2  # of every cross-architecture method: a CNN and a Transformer, or any two bodies


@dataclass(frozen=True)
class Jitter:
    """Half-widths of the colour factors, as in torchvision's ColorJitter: 0.2 means U(0.8, 1.2); hue in turns."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One `RandomApply`: with probability `p`, colour jitter and/or one geometric distortion.

    `choose="all"` applies the jitter and the distortion together (the authors' notebook), `"one"` picks
    exactly one of the two with equal chance (the "or" of the paper, appendix C).
    """

    p: float = 1.0
    jitter: Jitter | None = None
    perspective: float = 0.0  # distortion scale 0..1 as in torchvision's RandomPerspective
    perspective_p: float = 1.0  # its own probability, inside this stage
    degrees: float = 0.0  # rotation U(-degrees, degrees), centre invariant
    choose: Literal["all", "one"] = "all"


@dataclass(frozen=True)
class Blur:
    """With probability `p` a Gaussian blur of U(sigma) pixels of the finished view."""

    p: float
    sigma: tuple[float, float] = (0.1, 2.0)
    taps: int = 13  # of the kernel, odd; 13 reach 3 sigma to either side of sigma 2


@dataclass(frozen=True)
class Crop:
    """`count` independent draws of one kind of view of `size` x `size` pixels.

    After the stages come, each with its own probability: `grey`, the flips, `blur`, `solarise`.
    """

    size: int
    count: int = 1
    scale: tuple[float, float] = (1.0, 1.0)  # area of the random crop; (1, 1) squashes the whole image
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    stages: tuple[Stage, ...] = ()
    vflip: float = 0.0
    hflip: float = 0.0
    grey: float = 0.0
    blur: Blur | None = None
    solarise: float = 0.0


@dataclass(frozen=True)
class ViewSpec:
    """What one image becomes: data, not code. Views are numbered through all crops, arm after arm."""

    crops: tuple[Crop, ...]
    per_arm: Literal["shared", "own"] = "shared"  # the same views for both arms, or every crop anew for each
    draws: Literal["image", "batch"] = "image"  # batch: one draw for all images of a micro-batch

    @property
    def sizes(self) -> list[int]:
        """Sides in pixels of the views that one image becomes, in their order."""
        return [crop.size for crop in self.crops for _ in range(crop.count)] * (ARMS if self.per_arm == "own" else 1)


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `fraction` is the only clock that schedules see: it counts samples, not calls."""

    epoch: int
    step: int  # optimizer steps done in the whole run
    samples: int  # images seen in the whole run
    total_samples: int

    @property
    def fraction(self) -> float:
        """Samples seen over samples planned, 0..1."""
        return min(1.0, self.samples / max(1, self.total_samples))


class Stream(Protocol):
    """Folder, shards, anything: yields this rank's micro-batches in the order of the global plan."""

    provides: frozenset[str]  # of {"index", "group", "label"}
    batch_size: int  # micro-batch of this rank
    steps_per_epoch: int  # optimizer steps, equal on every rank

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Micro-batches of `epoch` from optimizer step `start` on; starting late costs no reading."""
        ...

    def close(self) -> None:
        """Stop what works in the background. A stream that is used again starts it anew."""
        ...


JSON = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """How a verb was asked for: the command line that repeats it, and what a person set beside the keys."""

    command: str
    dry_run: bool = False
    quiet: bool = False
    born: float | None = None  # start of the process, seconds since 1970
