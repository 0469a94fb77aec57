"""Which arm to take without labels: what indicators said, and how often the arm they named was the better one.

Nobody knows which arm of CASS will do better on a new set (CASS, appendix D.2): here is what is known of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import NamedTuple

from cass_scale.results import PROTOCOLS, Run
from cass_scale.types import JSON

FEWEST = 5  # pairs of arms; a share of fewer says nothing
SCORE = "macro_f1"
RULES: dict[str, tuple[str, Callable[[float], float]]] = {  # indicator -> title, and what is larger where better
    "rankme": ("RankMe, the larger", lambda value: value),
    "alpha_req": ("alpha-ReQ, the nearer to 1", lambda value: -abs(value - 1)),
}


class Case(NamedTuple):
    """One finished evaluation of a run: by arm, its indicators and its score."""

    run: Run
    protocol: str
    data: str
    arms: dict[str, tuple[JSON, float]]
    pairs: JSON


@dataclass(frozen=True)
class Pick:
    """A rule for choosing between two arms: over how many pairs it was asked, how often it was right, what it lost."""

    rule: str
    protocol: str
    pairs: int
    right: float | None  # share of the pairs, an undecided one counts half; None where there are fewer than FEWEST
    lost: float | None  # mean score that the other arm would have had more; an undecided rule loses half


def cases(runs: Iterable[Run]) -> list[Case]:
    """Evaluations of what finished runs learnt that hold indicators, one per run, protocol and set: the most labels."""
    found: dict[tuple[str, str, str], tuple[int, Case]] = {}
    for run in (run for run in runs if run.done):
        for one in run.evaluations:
            known = one.get("indicators") or {}
            if one["weights"] != "run" or not known:
                continue
            scored = {arm: row.get(SCORE) for arm, row in one["arms"].items() if arm in known["arms"]}
            arms = {arm: (known["arms"][arm], value) for arm, value in scored.items() if value is not None}
            data, size = one.get("data") or {}, one.get("n_train") or 0
            case = Case(run, one["protocol"], str(data.get("name", "?")), arms, known.get("pairs") or {})
            key = (str(run.folder), case.protocol, str(data.get("fingerprint")))
            if key not in found or found[key][0] < size:
                found[key] = size, case
    return [case for _, case in found.values()]


def picks(known: Iterable[Case]) -> list[Pick]:
    """How well each indicator chose between the arms, by protocol; and each arm, had it always been taken."""
    by_protocol: dict[str, list[tuple[Case, str, str]]] = {}
    for case in known:
        pairs = [(case, a, b) for a, b in combinations(case.arms, 2) if case.arms[a][1] != case.arms[b][1]]
        by_protocol.setdefault(case.protocol, []).extend(pairs)
    found = []
    for protocol, pairs in by_protocol.items():
        title = PROTOCOLS.get(protocol, protocol)
        for name, (rule, good) in RULES.items():
            found.append(_judge(rule, title, pairs, partial(_indicated, name, good)))
        for arm in dict.fromkeys(name for _, *names in pairs for name in names):
            mine = [(case, a, b) for case, a, b in pairs if arm in (a, b)]
            found.append(_judge(f"always {arm}", title, mine, partial(_taken, arm)))
    return found


def _taken(always: str, _: Case, arm: str) -> float:
    return float(arm == always)


def _indicated(name: str, good: Callable[[float], float], case: Case, arm: str) -> float | None:
    value = case.arms[arm][0].get(name)
    return None if value is None else good(value)


def _judge(
    rule: str, protocol: str, pairs: list[tuple[Case, str, str]], good: Callable[[Case, str], float | None]
) -> Pick:
    """Hold a rule against the scores; pairs of which it says nothing are left out."""
    right, lost, asked = 0.0, 0.0, 0
    for case, a, b in pairs:
        first, second = good(case, a), good(case, b)
        if first is None or second is None:
            continue
        gap = case.arms[a][1] - case.arms[b][1]
        share = 0.5 if first == second else float((first > second) == (gap > 0))
        asked, right, lost = asked + 1, right + share, lost + (1 - share) * abs(gap)
    enough = asked >= FEWEST
    return Pick(rule, protocol, asked, right / asked if enough else None, lost / asked if enough else None)
