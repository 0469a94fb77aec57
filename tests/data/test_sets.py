"""Rows joined into sets: against a slow twin, and by value."""

from __future__ import annotations

import numpy as np

from cass_scale.data.sets import Sets, joined


def slow(rows: int, pairs: list[tuple[int, int]]) -> list[list[int]]:
    sets = [{i} for i in range(rows)]
    for a, b in pairs:
        one = sets[a] | sets[b]
        for i in one:
            sets[i] = one
    return sorted(sorted(s) for s in {id(s): s for s in sets}.values() if len(s) > 1)


def test_sets_are_those_of_the_slow_twin() -> None:
    numbers = np.random.default_rng(0)
    for n in (1, 5, 60, 200):
        pairs = [(int(a), int(b)) for a, b in numbers.integers(0, n, (n * 2 // 3, 2))]
        sets = Sets(n)
        for pair in pairs:
            sets.join(*pair)
        assert sets.several() == slow(n, pairs)
        assert all(len({int(sets.of[i]) for i in rows}) == 1 for rows in sets.several())
        assert len(set(sets.of.tolist())) == n - sum(len(rows) - 1 for rows in sets.several())


def test_a_pair_is_joined_once() -> None:
    sets = Sets(3)
    assert sets.join(0, 2) and not sets.join(2, 0) and not sets.join(1, 1)


def test_equal_values_are_joined_and_none_is_not_a_value() -> None:
    assert Sets(5).join_equal(["a", "", "a", "", "a"]) == [(0, 2), (0, 4)]


def test_a_patient_and_a_copy_make_one_set() -> None:
    sets = joined(6, [["p", "p", "", "", "q", ""], ["", "", "g", "", "", "g"]], [[1, 2]])
    assert sets.several() == [[0, 1, 2, 5]]
