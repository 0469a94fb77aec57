"""Does a claim hold? The rules of paper/claims.yaml applied to the records of studies. Never imports torch.

A claim holds only where the interval leaves its opposite out and the value has the size that is claimed; it does not
hold only where the interval leaves the claim out. What lies between is not settled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cass_scale import robustness
from cass_scale.grid import SEEDS_FOR_INTERVAL
from cass_scale.published import rows_of
from cass_scale.robustness import Estimate, Floats, Statistic
from cass_scale.studies import BySeed, Study, common
from cass_scale.types import JSON

MINUS = "\N{MINUS SIGN}"
HOLDS, FAILS = "holds", "does not hold"  # the interval leaves the claim's opposite out, or the claim
OPEN, UNTESTED = "not settled", "not tested"  # the interval holds both; there are no numbers
WIDE = "; the interval is too wide to say"
Cell = tuple[str, str]  # row and setting


@dataclass(frozen=True)
class Verdict:
    """One claim against one study; `rests` is the study's folder, None where there is no such study."""

    claim: JSON
    word: str
    why: tuple[str, ...]  # per test
    rests: Path | None


class _Untested(Exception):
    """What a rule needs and the records lack."""


def judge(claims: Sequence[JSON], studies: Sequence[Study]) -> list[Verdict]:
    """Every claim against every study that it is about; one verdict `not tested` where there is none."""
    found = []
    for claim in claims:
        about = [study for study in studies if claim["study"] == study.name or _of_any(claim, study)]
        found += [_verdict(claim, study) for study in about] if about else [_without_study(claim)]
    return found


def _of_any(claim: JSON, study: Study) -> bool:
    """Whether a claim about all studies is about this one: it has the rows."""
    return claim["study"] is None and all(study.first(rows_of(test["of"]["row"])) for test in claim["tests"])


def _without_study(claim: JSON) -> Verdict:
    return Verdict(claim, UNTESTED, (f"cass-scale study name={claim['study'] or 'batch_size'} data.path=DIR",), None)


def _verdict(claim: JSON, study: Study) -> Verdict:
    if (data := claim.get("data")) and data not in study.data:
        why = (f"is about {data}; these images are {', '.join(study.data) or 'not known yet'}",)
        return Verdict(claim, UNTESTED, why, study.folder)
    words, texts = [], []
    for test in (one for whole in claim["tests"] for one in _against_each(study, whole)):
        try:
            word, text = RULES[test["rule"]](study, test, test.get("protocol", claim.get("protocol")))
        except _Untested as lack:
            word, text = UNTESTED, str(lack)
        words.append(word)
        texts.append(text + (WIDE if word == OPEN else ""))
    word = next((word for word in (FAILS, OPEN, UNTESTED) if word in words), HOLDS)
    if len(words) > 1:
        texts = [f"{text}: {one}" for text, one in zip(texts, words, strict=True)]
    return Verdict(claim, word, tuple(texts), study.folder)


def _against_each(study: Study, test: JSON) -> list[JSON]:
    """The test once for every recipe of DINO that the study has: a claim about DINO must hold against all of them."""
    sides = [name for name in ("of", "than") if test.get(name, {}).get("row") == "dino"]
    recipes = [row for row in rows_of("dino") if row in study.rows]
    if not sides or not recipes:
        return [test]
    return [test | {name: test[name] | {"row": [recipe]} for name in sides} for recipe in recipes]


def _larger(number: Estimate, by: float = 0.0) -> str:
    """The verdict on "above 0, and by so much"."""
    low, high = number.interval or (-math.inf, math.inf)
    if low > 0 and number.value >= by:
        return HOLDS
    return FAILS if high < by or high <= 0 else OPEN


def _row(study: Study, side: JSON) -> str:
    asked = side.get("row", "cass")
    names = asked if isinstance(asked, list) else rows_of(asked)
    row = study.first(names)
    if row is None:
        raise _Untested(f"no row {' or '.join(names)}")
    return row


def _setting(study: Study, side: JSON) -> str:
    setting = str(side.get("setting", study.record["standard"]))
    if setting not in study.settings:
        raise _Untested(f"setting {setting} was not run")
    return setting


def _scores(study: Study, side: JSON, protocol: str) -> BySeed:
    """Scores of a side by seed: of its arm, or the mean over its arms."""
    row, setting = _row(study, side), _setting(study, side)
    arms = [side["arm"]] if "arm" in side else study.arms(row, setting)
    cells = [study.scores(row, setting, arm, protocol) for arm in arms]
    return {seed: float(np.mean([cell[seed] for cell in cells])) for seed in common(cells)}


def _enough(seeds: int, what: str) -> None:
    if seeds < SEEDS_FOR_INTERVAL:
        raise _Untested(f"{seeds} finished seed(s) of {what}; an interval needs {SEEDS_FOR_INTERVAL}")


def _same_arms(study: Study, one: Cell, other: Cell) -> None:
    if not _alike(study, one, other):
        a, b = (", ".join(study.arms(*cell)) or "nothing" for cell in (one, other))
        raise _Untested(f"{one[0]} has finished {a}; {other[0]} {b}")


def _alike(study: Study, one: Cell, other: Cell) -> bool:
    """Whether both have the same encoders; of two settings, where their names may differ, as many."""
    a, b = study.arms(*one), study.arms(*other)
    return a == b if one[1] == other[1] else len(a) == len(b)


def _sides(study: Study, test: JSON, asked: str | None) -> tuple[Floats, Floats, str, str]:
    """Paired scores [1, 1, seeds] of both sides, which sides they are, and by which protocol."""
    names = " and ".join(_side_name(study, test[side]) for side in ("of", "than"))
    if not any("arm" in test[side] for side in ("of", "than")):
        _same_arms(study, *_cells(study, test))
    best: tuple[list[int], BySeed, BySeed, str] = ([], {}, {}, "")
    for protocol in [asked] if asked else study.protocols:
        of, than = (_scores(study, test[side], protocol) for side in ("of", "than"))
        seeds = common([of, than])
        if len(seeds) > len(best[0]):
            best = seeds, of, than, protocol
    seeds, of, than, protocol = best
    _enough(len(seeds), names)
    a, b = (np.array([[[side[seed] for seed in seeds]]]) for side in (of, than))
    return a, b, names, study.how(protocol)


def _cells(study: Study, test: JSON) -> tuple[Cell, Cell]:
    of, than = ((_row(study, test[side]), _setting(study, test[side])) for side in ("of", "than"))
    return of, than


def _side_name(study: Study, side: JSON) -> str:
    setting = f" at {_setting(study, side)}" if len(study.settings) > 1 else ""
    return f"{_row(study, side)}{setting}{', ' + side['arm'] if 'arm' in side else ''}"


def shown(number: Estimate, form: str = "{:+.3f}") -> str:
    """`value (low to high)`."""
    value, *ends = (form.format(x).replace("-", MINUS) for x in (number.value, *(number.interval or ())))
    return f"{value} ({' to '.join(ends)})" if ends else value


def _higher(study: Study, test: JSON, protocol: str | None) -> tuple[str, str]:
    a, b, names, used = _sides(study, test, protocol)
    number = robustness.estimate(robustness.gap, a, b)
    text = f"{names}: {shown(number)}, {used}, {number.seeds} seeds{_wanted(test)}"
    return _larger(number, test.get("by", 0.0)), text


def _wanted(test: JSON, form: str = "{:.3g}") -> str:
    return f"; claimed {form.format(test['by'])}" if "by" in test else ""


def _within(study: Study, test: JSON, protocol: str | None) -> tuple[str, str]:
    a, b, names, used = _sides(study, test, protocol)
    number = robustness.estimate(robustness.gap, a, b)
    low, high = number.interval or (0.0, 0.0)
    text = f"{names}: {shown(number)}, {used}, {number.seeds} seeds; wanted within {test['by']:g}"
    if -test["by"] <= low and high <= test["by"]:
        return HOLDS, text
    return FAILS if low > test["by"] or high < -test["by"] else OPEN, text


def _falls(study: Study, test: JSON, protocol: str | None) -> tuple[str, str]:
    low_side, high_side, names, used = _sides(study, test, protocol)
    drop = robustness.estimate(robustness.share_less, low_side, high_side)
    text = f"{names}: drop {shown(drop, '{:.1%}')}, {used}, {drop.seeds} seeds{_wanted(test, '{:.0%}')}"
    return _larger(drop, test["by"]), text


def moves(study: Study, row: str, protocol: str, statistic: Statistic) -> Estimate | None:
    """`statistic` of a row over the settings; None where no seed has all of them."""
    whole = study.grid(row, protocol, study.settings)
    return robustness.estimate(statistic, whole[0], least=0.0) if whole else None


def steadier(study: Study, row: str, other: str, protocol: str, statistic: Statistic) -> Estimate | None:
    """`statistic` of `row` over the settings less that of `other`, paired; None where they share no arms or seeds."""
    mine, theirs = (study.grid(name, protocol, study.settings) for name in (row, other))
    if not mine or not theirs or mine[1] != theirs[1] or not (seeds := sorted(set(mine[2]) & set(theirs[2]))):
        return None
    a, b = (scores[:, :, [known.index(seed) for seed in seeds]] for scores, _, known in (mine, theirs))
    return robustness.estimate(lambda x, y: statistic(x) - statistic(y), a, b)


def _steadier(study: Study, test: JSON, protocol: str | None) -> tuple[str, str]:
    row, other = _row(study, test["of"]), _row(study, test["than"])
    if len(study.settings) < 2:
        raise _Untested("one setting only")
    for used in [protocol] if protocol else study.protocols:
        number = steadier(study, row, other, used, robustness.variance)
        if number and number.interval:
            low, high = number.interval
            text = f"variance of {row} less that of {other}: {shown(number, '{:+.3g}')}, "
            text += f"{study.how(used)}, {number.seeds} seeds"
            if fallen := sum(bool(run.collapse) for run in study.finished(row)):
                text += f". Beware: {fallen} runs of {row} collapsed, and what learns nothing is steady"
            return HOLDS if high < 0 else FAILS if low >= 0 else OPEN, text
    raise _Untested(f"{row} and {other} lack {SEEDS_FOR_INTERVAL} seeds with every setting")


def saving(study: Study, of: Cell, than: Cell, kind: str = "train") -> Estimate | None:
    """Share of device-hours that `of` saves against `than`, as many encoders counted; None without a common seed."""
    mine, theirs = (study.hours(*cell, kind) for cell in (of, than))
    if not _alike(study, of, than) or not (seeds := common([mine, theirs])):
        return None
    a, b = (np.array([[[side[seed] for seed in seeds]]]) for side in (mine, theirs))
    return robustness.estimate(robustness.share_less, a, b, most=1.0)


def _faster(study: Study, test: JSON, protocol: str | None) -> tuple[str, str]:
    of, than = _cells(study, test)
    names = " against ".join(_side_name(study, test[side]) for side in ("of", "than"))
    _same_arms(study, of, than)
    number = saving(study, of, than)
    _enough(number.seeds if number else 0, names)
    assert number is not None
    sharing = study.record.get("jobs_per_device", 1)
    if sharing > 1:
        raise _Untested(f"{sharing} rows shared a device: their clocks disturb each other; run with jobs=1")
    text = f"{names}: {shown(number, '{:.1%}')} saved, {number.seeds} seeds{_wanted(test, '{:.0%}')}"
    return _larger(number, test["by"]), text


def _stands(study: Study, test: JSON, protocol: str | None) -> tuple[str, str]:
    row = _row(study, test["of"])
    runs = study.finished(row)
    if not runs:
        raise _Untested(f"no finished run of {row}")
    fallen = sum(bool(run.collapse) for run in runs)
    return FAILS if fallen else HOLDS, f"{fallen} of {len(runs)} runs of {row} collapsed"


RULES = {
    "higher": _higher,
    "within": _within,
    "falls": _falls,
    "steadier": _steadier,
    "faster": _faster,
    "stands": _stands,
}
