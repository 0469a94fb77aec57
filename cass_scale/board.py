"""What ranks tell each other about themselves, in the process group's store: no collective, no device."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from cass_scale.types import JSON

WORDS = "pulse/last_words"


@dataclass
class Heard:
    """A rank's last beat, and when this process saw it come: clocks of hosts need not agree."""

    beat: JSON = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)

    @property
    def age(self) -> float:
        """Seconds without a new beat."""
        return time.monotonic() - self.at


class Board:
    """Rank 0 reads every other rank's beat, the others rank 0's: the store is asked O(ranks) a second.

    The first last words stay; all ranks end with them. Without a store there is only this rank. Methods raise
    what the store raises when it cannot be reached.
    """

    def __init__(self, rank: int, world: int, store: Any = None) -> None:
        self.rank, self.store = rank, store
        watched = range(1, world) if rank == 0 else (0,)
        self.heard = {other: Heard() for other in watched} if store is not None else {}
        self.words: JSON | None = None

    def exchange(self, beat: JSON) -> None:
        """Tell this rank's beat, take in those of the others and anybody's last words."""
        if self.store is None:
            return
        self.store.set(f"pulse/{self.rank}", json.dumps(beat))
        there = [other for other in self.heard if self.store.check([f"pulse/{other}"])]
        for other, text in zip(
            there, self.store.multi_get([f"pulse/{o}" for o in there]) if there else (), strict=True
        ):
            if (found := json.loads(text)) != self.heard[other].beat:
                self.heard[other] = Heard(found)
        if self.words is None and self.store.check([WORDS]):
            self.words = json.loads(self.store.get(WORDS))

    def leave(self, words: JSON) -> None:
        """Leave last words, unless another rank already did."""
        if self.words is None:
            left = json.dumps(words)
            self.words = json.loads(self.store.compare_set(WORDS, "", left)) if self.store is not None else words

    def silent(self, limit: float) -> list[int]:
        """Watched ranks without a beat for `limit` seconds that did not say goodbye, the longest silent first."""
        quiet = [r for r, heard in self.heard.items() if heard.age > limit and not heard.beat.get("bye")]
        return sorted(quiet, key=lambda r: -self.heard[r].age)

    @property
    def broken(self) -> bool:
        """Whether a watched rank's collective failed."""
        return any(heard.beat.get("broken") for heard in self.heard.values())
