"""The sections of the page: each asks all sides the same question and draws the answers beside one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cass_scale.insight.unsuited import Unsuited
from cass_scale.types import JSON

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A drawing that is not drawn yet, with its words; `name` is that of its files."""

    name: str
    title: str
    caption: str
    make: Callable[[], Figure]


@dataclass(frozen=True)
class Section:
    """What was found out about one question; `left_out` says what could not be shown, and why."""

    title: str
    words: str
    pictures: list[Picture] = field(default_factory=list)
    numbers: JSON = field(default_factory=dict)
    rows: list[Mapping[str, str]] = field(default_factory=list)  # of a table, column -> text
    note: str = ""  # what the columns mean
    left_out: list[str] = field(default_factory=list)

    @contextmanager
    def possible(self, arm: str) -> Iterator[None]:
        """Note under an arm's name why it does not suit, and go on behind it."""
        try:
            yield
        except Unsuited as why:
            text = f"{arm}: {why}"
            if text not in self.left_out:
                self.left_out.append(text)
