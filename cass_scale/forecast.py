"""How long rows, or a run on another card, will take: as equal ones took, else by FLOPs. Never imports torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from cass_scale import published
from cass_scale.types import JSON

SUSTAINED = (
    0.7,
    1.0,
)  # of its datasheet's peak, what a card is taken to reach in a large matrix product: an assumption
EPOCHS = 100  # of Table 2
Shape = tuple[str, str]  # row and setting: what costs the same for every seed


@dataclass(frozen=True)
class Forecast:
    """Seconds of all rows to come, one after the other, and what they were predicted from."""

    seconds: float
    measured: int  # rows with an equal that is done
    by_flops: int  # rows predicted from FLOPs at the rate of the rows that are done
    at_peak: int  # rows predicted from FLOPs at the device's own rate: a lower bound

    def why(self) -> str:
        """In words."""
        parts = [
            (self.measured, "as long as finished rows of the same shape took"),
            (self.by_flops, "from their FLOPs, at the rate of the finished rows"),
            (self.at_peak, "from their FLOPs, at this device's rate in a large matrix product: a lower bound"),
        ]
        return "; ".join(f"{number} rows {text}" for number, text in parts if number)


def forecast(
    to_come: Sequence[Shape],
    done: Iterable[tuple[Shape, float]],
    flops: Mapping[Shape, float] | None = None,
    peak: float | None = None,
) -> Forecast | None:
    """Predict `to_come` from `done` (shape, seconds); None where nothing is known about a row.

    flops: of a whole run, by shape; peak: FLOP/s of the device. Without `flops`, unknown shapes take the mean of all.
    """
    known: dict[Shape, list[float]] = defaultdict(list)
    for shape, took in done:
        known[shape].append(took)
    rate = _rate(known, flops or {})
    everything = [took for some in known.values() for took in some]
    seconds, counts = 0.0, [0, 0, 0]
    for shape in to_come:
        if shape in known:
            kind, cost = 0, median(known[shape])
        elif flops and (speed := rate or peak):
            kind, cost = (1 if rate else 2), flops[shape] / speed
        elif everything:
            kind, cost = 0, mean(everything)
        else:
            return None
        seconds += cost
        counts[kind] += 1
    return Forecast(seconds, *counts)


def _rate(known: Mapping[Shape, Sequence[float]], flops: Mapping[Shape, float]) -> float:
    """FLOP/s of the rows that are done, start-up and evaluation included; 0 when there are none."""
    counted = [(flops[shape], median(took)) for shape, took in known.items() if shape in flops]
    return sum(f for f, _ in counted) / sum(s for _, s in counted) if counted else 0.0


def on_card(flops_per_image: float, images_per_s: float, measured_peak: float, card_peak: float) -> JSON:
    """What the same work would take on another card, used as well as this device was: a prediction.

    measured_peak: FLOP/s of a large matrix product here, in the precision of the work; card_peak: what the other card's
    datasheet promises in it. Ranges go from the fast end of SUSTAINED to the slow one; `hours` are of Table 2's sets.
    """
    efficiency = flops_per_image * images_per_s / measured_peak
    rates = [efficiency * share * card_peak / flops_per_image for share in reversed(SUSTAINED)]
    return {
        "flops_per_image": flops_per_image,
        "measured_images_per_s": images_per_s,
        "measured_peak": measured_peak,
        "efficiency": efficiency,
        "card_peak": card_peak,
        "sustained": list(SUSTAINED),
        "images_per_s": rates,
        "epochs": EPOCHS,
        "hours": {
            name: [EPOCHS * images / rate / 3600 for rate in rates]
            for name, images in published.training_images().items()
        },
    }
