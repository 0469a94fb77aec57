"""Rows joined into sets, for up to millions of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


class Sets:
    """`of[i]` is the number of the set that row i is in: int64 [N], always flat, so that it can index arrays."""

    def __init__(self, rows: int) -> None:
        self.of = np.arange(rows)
        self._rows: dict[int, list[int]] = {}  # of sets with more than one row

    def join(self, a: int, b: int) -> bool:
        """Make one set of the sets of rows a and b; False when they are one already."""
        into, gone = int(self.of[a]), int(self.of[b])
        if into == gone:
            return False
        kept, moved = self._rows.pop(into, [into]), self._rows.pop(gone, [gone])
        if len(kept) < len(moved):  # the smaller set moves: N log N in all
            kept, moved, into = moved, kept, gone
        self.of[moved] = into
        self._rows[into] = kept + moved
        return True

    def join_equal(self, values: Sequence[str]) -> list[tuple[int, int]]:
        """Join rows of equal value, '' being none; the pairs (first row of that value, row) that were joined."""
        first: dict[str, int] = {}
        pairs = ((first.setdefault(value, row), row) for row, value in enumerate(values) if value)
        return [pair for pair in pairs if self.join(*pair)]

    def several(self) -> list[list[int]]:
        """Sets of more than one row, each ascending, by their first row."""
        return sorted(sorted(rows) for rows in self._rows.values())


def joined(rows: int, columns: Iterable[Sequence[str]], more: Sequence[Sequence[int]] = ()) -> Sets:
    """Rows that agree in any of the columns, or are together in one of `more`, are in one set."""
    sets = Sets(rows)
    for column in columns:
        sets.join_equal(column)
    for members in more:
        for row in members[1:]:
            sets.join(members[0], row)
    return sets
