"""Does a claim hold? The rules of paper/claims.yaml applied to the records of studies. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cass_scale import robustness
from cass_scale.grid import SEEDS_FOR_INTERVAL
from cass_scale.published import rows_of
from cass_scale.robustness import Estimate, Floats
from cass_scale.studies import BySeed, Study, common
from cass_scale.types import JSON

MINUS = "\N{MINUS SIGN}"
HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not tested"


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
    words, why = [], []
    for test in claim["tests"]:
        try:
            holds, text = RULES[test["rule"]](study, test, claim.get("protocol"))
            words.append(HOLDS if holds else FAILS)
        except _Untested as lack:
            text = str(lack)
            words.append(UNTESTED)
        why.append(text)
    word = next((word for word in (FAILS, UNTESTED) if word in words), HOLDS)
    return Verdict(claim, word, tuple(why), study.folder)


def _row(study: Study, side: JSON) -> str:
    asked = side.get("row", "cass")
    row = study.first(rows_of(asked))
    if row is None:
        raise _Untested(f"no row {' or '.join(rows_of(asked))}")
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


def _same_arms(study: Study, one: tuple[str, str], other: tuple[str, str]) -> None:
    a, b = study.arms(*one), study.arms(*other)
    if set(a) != set(b):
        raise _Untested(f"{one[0]} has finished {', '.join(a) or 'nothing'}; {other[0]} {', '.join(b) or 'nothing'}")


def _sides(study: Study, test: JSON, asked: str | None) -> tuple[Floats, Floats, str, str]:
    """Paired scores [1, 1, seeds] of both sides, which sides they are, and by which protocol."""
    names = " and ".join(_side_name(study, test[side]) for side in ("of", "than"))
    if not any("arm" in test[side] for side in ("of", "than")):
        _same_arms(study, *((_row(study, test[side]), _setting(study, test[side])) for side in ("of", "than")))
    best: tuple[list[int], BySeed, BySeed, str] = ([], {}, {}, "")
    for protocol in [asked] if asked else study.protocols:
        of, than = (_scores(study, test[side], protocol) for side in ("of", "than"))
        seeds = common([of, than])
        if len(seeds) > len(best[0]):
            best = seeds, of, than, protocol
    seeds, of, than, protocol = best
    _enough(len(seeds), names)
    a, b = (np.array([[[side[seed] for seed in seeds]]]) for side in (of, than))
    return a, b, names, protocol


def _side_name(study: Study, side: JSON) -> str:
    setting = f" at {_setting(study, side)}" if len(study.settings) > 1 else ""
    return f"{_row(study, side)}{setting}{', ' + side['arm'] if 'arm' in side else ''}"


def shown(number: Estimate, form: str = "{:+.3f}") -> str:
    """`value (low to high)`."""
    value, *ends = (form.format(x).replace("-", MINUS) for x in (number.value, *(number.interval or ())))
    return f"{value} ({' to '.join(ends)})" if ends else value


def _higher(study: Study, test: JSON, protocol: str | None) -> tuple[bool, str]:
    a, b, names, used = _sides(study, test, protocol)
    number = robustness.estimate(robustness.gap, a, b)
    low, high = number.interval or (0.0, 0.0)
    text = f"{names}: {shown(number)}, {used}, {number.seeds} seeds{_wanted(test)}"
    return low > 0 and high >= test.get("by", 0.0), text


def _wanted(test: JSON, form: str = "{:.3g}") -> str:
    return f"; claimed {form.format(test['by'])}" if "by" in test else ""


def _within(study: Study, test: JSON, protocol: str | None) -> tuple[bool, str]:
    a, b, names, used = _sides(study, test, protocol)
    number = robustness.estimate(robustness.gap, a, b)
    low, high = number.interval or (0.0, 0.0)
    text = f"{names}: {shown(number)}, {used}, {number.seeds} seeds; wanted within {test['by']:g}"
    return -test["by"] <= low and high <= test["by"], text


def _falls(study: Study, test: JSON, protocol: str | None) -> tuple[bool, str]:
    low_side, high_side, names, used = _sides(study, test, protocol)
    drop = robustness.estimate(robustness.share_less, low_side, high_side)
    low, high = drop.interval or (0.0, 0.0)
    return low > 0 and high >= test[
        "by"
    ], f"{names}: drop {shown(drop, '{:.1%}')}, {used}, {drop.seeds} seeds{_wanted(test, '{:.0%}')}"


def steadier(study: Study, row: str, other: str, protocol: str, statistic: Any) -> tuple[Estimate, Estimate | None]:
    """`statistic` of `row` over the settings, and its paired difference to `other`.

    None in place of the difference where the two share no arms or seeds.
    Raises ValueError when `row` has no seed with all settings.
    """
    mine = study.grid(row, protocol, study.settings)
    if mine is None:
        raise ValueError(f"{row} has no seed with every setting")
    own = robustness.estimate(statistic, mine[0], least=0.0)
    theirs = study.grid(other, protocol, study.settings)
    if theirs is None or mine[1] != theirs[1] or not (seeds := sorted(set(mine[2]) & set(theirs[2]))):
        return own, None
    a, b = (scores[:, :, [known.index(seed) for seed in seeds]] for scores, _, known in (mine, theirs))
    return own, robustness.estimate(lambda x, y: statistic(x) - statistic(y), a, b)


def _steadier(study: Study, test: JSON, protocol: str | None) -> tuple[bool, str]:
    row, other = _row(study, test["of"]), _row(study, test["than"])
    if len(study.settings) < 2:
        raise _Untested("one setting only")
    for used in [protocol] if protocol else study.protocols:
        if study.grid(row, used, study.settings) is None:
            continue
        number = steadier(study, row, other, used, robustness.variance)[1]
        if number and number.interval:
            text = f"variance of {row} less that of {other}: {shown(number, '{:+.3g}')}, {used}, {number.seeds} seeds"
            if fallen := sum(bool(run.collapse) for run in study.finished(row)):
                text += f". Beware: {fallen} runs of {row} collapsed, and what learns nothing is steady"
            return number.interval[1] < 0, text
    raise _Untested(f"{row} and {other} lack {SEEDS_FOR_INTERVAL} seeds with every setting")


def saving(study: Study, row: str, other: str, setting: str, kind: str = "train") -> Estimate | None:
    """Share of device-hours that `row` saves against `other`, the same encoders counted; None without a common seed."""
    of, than = (study.hours(name, setting, kind) for name in (row, other))
    same = set(study.arms(row, setting)) == set(study.arms(other, setting))
    if not same or not (seeds := common([of, than])):
        return None
    a, b = (np.array([[[side[seed] for seed in seeds]]]) for side in (of, than))
    return robustness.estimate(robustness.share_less, a, b, most=1.0)


def _faster(study: Study, test: JSON, protocol: str | None) -> tuple[bool, str]:
    row, other, setting = _row(study, test["of"]), _row(study, test["than"]), _setting(study, test)
    _same_arms(study, (row, setting), (other, setting))
    number = saving(study, row, other, setting)
    _enough(number.seeds if number else 0, f"{row} and {other}")
    assert number is not None
    low, high = number.interval or (0.0, 0.0)
    sharing = study.record.get("jobs_per_device", 1)
    if sharing > 1:
        raise _Untested(f"{sharing} rows shared a device: their clocks disturb each other; run with jobs=1")
    text = f"{row} against {other}: {shown(number, '{:.1%}')} saved, {number.seeds} seeds{_wanted(test, '{:.0%}')}"
    return low > 0 and high >= test["by"], text


def _stands(study: Study, test: JSON, protocol: str | None) -> tuple[bool, str]:
    row = _row(study, test["of"])
    runs = study.finished(row)
    if not runs:
        raise _Untested(f"no finished run of {row}")
    fallen = sum(bool(run.collapse) for run in runs)
    return fallen == 0, f"{fallen} of {len(runs)} runs of {row} collapsed"


RULES = {
    "higher": _higher,
    "within": _within,
    "falls": _falls,
    "steadier": _steadier,
    "faster": _faster,
    "stands": _stands,
}
