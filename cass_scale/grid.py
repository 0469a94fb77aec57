"""A study as a pure grid: rows x settings x seeds, each one a list of overrides. It runs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cass_scale.errors import Problems
from cass_scale.types import JSON

NAME = re.compile(r"[\w.%+-]+(/[\w.%+-]+)?")  # part of a folder's name; row/arm is one of the runs of `row`
SEEDS_FOR_INTERVAL = 3
SHARED = {"train.device": "device", "train.precision": "precision"}  # of pretrain -> the same of evaluate
OWN = {"seed": "seeds=[0,1,2]", "run.dir": "out=FOLDER", "method": "rows=[NAME]"}  # set by the grid -> what to give


@dataclass(frozen=True)
class Row:
    """One process: a pretraining and its evaluations, as overrides of the two verbs."""

    name: str  # cass_paper; or dino/cnn, one of the runs that together are the row dino
    setting: str
    seed: int
    words: tuple[str, ...]
    evaluations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name in the study -> overrides

    @property
    def folder(self) -> str:
        """Its run folder inside the study's."""
        return f"{self.name.replace('/', '-')}/{self.setting}/s{self.seed}"

    @property
    def shape(self) -> tuple[str, str]:
        """Rows of one shape cost the same."""
        return self.name, self.setting

    @property
    def shown(self) -> str:
        """For a person."""
        return f"{self.name}, {self.setting}, seed {self.seed}"

    def record(self) -> JSON:
        """For study.json."""
        evaluations = {name: list(words) for name, words in self.evaluations.items()}
        own: JSON = {"row": self.name, "setting": self.setting, "seed": self.seed, "words": list(self.words)}
        return own | {"evaluations": evaluations}


class Score(NamedTuple):
    """What tells the evaluations of a run apart."""

    protocol: str
    weights: str
    labels: float  # share that is learnt from
    subset: str = ""
    folds: str = ""
    elsewhere: bool = False  # on another set than the run's own


def score_of(words: Iterable[str]) -> Score:
    """The evaluation that overrides ask for."""
    keys = {_key(word): word.partition("=")[2] for word in words}
    labels, subset, folds = (keys.get(key, "").strip("[]") for key in ("labels", "subset", "folds"))
    sort = keys.get("protocol", "knn"), keys.get("weights", "run")
    return Score(*sort, float(labels or 1), subset, folds, "data.path" in keys)


def shrunk(study: Mapping[str, Any], preset: str) -> JSON:
    """The study with what `preset` replaces in it; `paper` replaces nothing."""
    plain = {key: value for key, value in study.items() if key != "quick"}
    return plain | (study["quick"] if preset == "quick" else {})


def plan(study: Mapping[str, Any], asked: Mapping[str, Any], passed: Sequence[str]) -> list[Row]:
    """All rows of `study`, seed by seed, so that drift of the machine hits all methods alike.

    asked: a person's choice of `rows`, `settings`, `protocols`, `seeds`; None: the study's own. passed: overrides of
    pretrain for every row. Raises ConfigError with everything that is wrong.
    """
    problems = Problems()
    only = study.get("only") or {}
    rows, settings, protocols = (
        _chosen(what, study[what], asked[what], only.get(what), problems) for what in ("rows", "settings", "protocols")
    )
    seeds = study["seeds"] if asked["seeds"] is None else asked["seeds"]
    _check(rows, settings, protocols, seeds, passed, problems)
    problems.raise_if_any()
    first = next((name for name in rows if "/" not in name), None)  # both arms: its initial weights are everybody's
    made = []
    for seed in seeds:
        for setting in settings:
            for name in rows:
                words = _words([*rows[name], *settings[setting], f"seed={seed}"], study["words"], passed)
                initial = bool(study["initial"]) and name == first
                made.append(Row(name, setting, seed, words, _evaluations(protocols, words, seed, initial)))
    return made


def _check(rows: JSON, settings: JSON, protocols: JSON, seeds: Any, passed: Sequence[str], problems: Problems) -> None:
    whole = isinstance(seeds, list) and bool(seeds) and all(type(seed) is int and seed >= 0 for seed in seeds)
    different = whole and len(set(seeds)) == len(seeds)
    problems.check(different, f"seeds={seeds}: a list of different whole numbers is needed")
    for word in passed:
        key = _key(word)
        problems.check(key not in OWN, f"{word}: rows have their own; give {OWN.get(key, '')}")
        for what, axis in (("rows", rows), ("settings", settings)):
            other = ", ".join(name for name, own in axis.items() if key in map(_key, own) and word not in own)
            problems.check(not other, f"{word} contradicts {what} {other}, which set {key}; choose {what}=[...]")
    scores = {name: score_of(own) for name, own in protocols.items()}
    alike = ", ".join(name for name, score in scores.items() if [*scores.values()].count(score) > 1)
    problems.check(not alike, f"protocols: {alike} leave the same record: they differ in neither protocol nor amount")


def _chosen(what: str, known: JSON, asked: Any, usual: list[str] | None, problems: Problems) -> JSON:
    """Those of `known` that a person asked for, else the usual ones, else all; `dino` means all dino/..."""
    for name in known:
        problems.check(bool(NAME.fullmatch(name)), f"{what}: {name!r} cannot be part of a folder's name")
    names = usual if asked is None else asked
    if names is None:
        return known
    if not isinstance(names, list):
        problems.found.append(f"{what}={names}: a list of names is needed, as in {what}=[{next(iter(known), '')}]")
        return {}
    names = [str(name) for name in names]  # 8 and 16 are names of settings
    for name in names:
        found = any(name in (key, key.partition("/")[0]) for key in known)
        problems.check(found, f"{what}: this study has no {name}; it has {', '.join(known) or 'none'}")
    return {key: value for key, value in known.items() if {key, key.partition("/")[0]} & set(names)}


def _words(axes: Sequence[str], usual: Sequence[str], passed: Sequence[str]) -> tuple[str, ...]:
    """Overrides of one row: the usual ones give way to a person's and to the axes; these two may not contradict."""
    taken = {_key(word) for word in [*axes, *passed]}
    return tuple(dict.fromkeys([*(word for word in usual if _key(word) not in taken), *passed, *axes]))


def _evaluations(protocols: JSON, words: Iterable[str], seed: int, initial: bool) -> dict[str, tuple[str, ...]]:
    shared = [f"{SHARED[_key(word)]}={word.partition('=')[2]}" for word in words if _key(word) in SHARED]
    found = {}
    for name, own in protocols.items():
        all_words = (*own, f"seed={seed}", *shared)
        found[name] = all_words
        if initial:
            found[f"initial-{name}"] = (*all_words, "weights=initial")
    return found


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]
