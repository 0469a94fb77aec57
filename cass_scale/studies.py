"""Studies read back from their folders: scores and hours by row, setting, arm and seed. Never imports torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cass_scale import records
from cass_scale.errors import DataError
from cass_scale.grid import Score, score_of
from cass_scale.results import Run, read_evaluations, read_run
from cass_scale.robustness import Floats
from cass_scale.types import JSON

STUDY = "study.json"
INITIAL = "initial"  # the row of the weights that the runs start from
BySeed = dict[int, float]


@dataclass(frozen=True)
class Member:
    """One planned run; `run` is None before it has begun."""

    name: str  # row, or row/arm
    setting: str
    seed: int
    evaluations: dict[str, Score]  # that are due, by the study's name of the protocol
    run: Run | None
    failed: str  # last words

    @property
    def row(self) -> str:
        """dino of dino/cnn."""
        return self.name.partition("/")[0]

    @property
    def ended(self) -> Run | None:
        """Its run, once that has reached its end."""
        return self.run if self.run is not None and self.run.done else None

    @property
    def done(self) -> bool:
        """Whether it has ended and every evaluation is there."""
        scored = set(map(score, self.run.evaluations)) if self.run else set()
        return self.ended is not None and set(self.evaluations.values()) <= scored


@dataclass(frozen=True)
class Study:
    """A study's folder, its plan and its runs."""

    folder: Path
    record: JSON
    members: list[Member]

    @property
    def name(self) -> str:
        """As in configs/study."""
        return str(self.record["name"])

    @property
    def rows(self) -> list[str]:
        """In the order of the plan; the initial weights last."""
        names = list(dict.fromkeys(member.row for member in self.members))
        initial = any(e.startswith(f"{INITIAL}-") for member in self.members for e in member.evaluations)
        return names + [INITIAL] * initial

    @property
    def settings(self) -> list[str]:
        """Those with runs, in the order of the axis."""
        used = {member.setting for member in self.members}
        return [name for name in self.record["settings"] if name in used]

    @property
    def protocols(self) -> list[str]:
        """Those that were asked for, in the study's order."""
        used = {name for member in self.members for name in member.evaluations}
        return [name for name in self.record["protocols"] if name in used]

    @property
    def data(self) -> list[str]:
        """Names of the sets of images."""
        return sorted({str(run.part("data").get("name", "?")) for run in self.runs})

    @property
    def runs(self) -> list[Run]:
        """All that have begun."""
        return [member.run for member in self.members if member.run]

    @property
    def target(self) -> str:
        """The metric of the tables."""
        return str(self.record["target"])

    def finished(self, row: str, setting: str | None = None) -> list[Run]:
        """Runs of a row that reached their end."""
        found = [m for m in self.members if m.row == row and setting in (None, m.setting)]
        return [m.ended for m in found if m.ended]

    def arms(self, row: str, setting: str) -> list[str]:
        """Names of the arms that a row trains at a setting, sorted."""
        return sorted({arm for run in self._behind(row, setting) for arm in run.part("arms")})

    def columns(self, row: str, setting: str) -> list[str]:
        """What of a row has scores: its arms, then what is made of both together."""
        scored = {arm for run in self._behind(row, setting) for one in run.evaluations for arm in one["arms"]}
        return list(dict.fromkeys([*self.arms(row, setting), *sorted(scored)]))

    def _behind(self, row: str, setting: str) -> list[Run]:
        """Finished runs whose scores a row holds: of what they start from, those of every row."""
        rows = {member.row for member in self.members} if row == INITIAL else {row}
        return [run for one in rows for run in self.finished(one, setting)]

    def how(self, protocol: str) -> str:
        """A protocol by the study's name, and how it is really scored where the name does not say so."""
        real = next((m.evaluations[protocol] for m in self.members if protocol in m.evaluations), None)
        if real is None or protocol == real.protocol:
            return protocol
        share = "" if real.subset else f"{real.labels:.0%} of the labels"
        subset, folds = (
            f"{what} {value}" if value else "" for what, value in (("subset", real.subset), ("folds", real.folds))
        )
        return f"{protocol} ({', '.join(filter(None, (real.protocol, share, subset, folds)))})"

    def scores(self, row: str, setting: str, arm: str, protocol: str) -> BySeed:
        """The target metric by seed; only of runs that reached their end."""
        wanted = f"{INITIAL}-{protocol}" if row == INITIAL else protocol
        found: BySeed = {}
        for member in self.members:
            if member.ended is None or member.setting != setting or row not in (member.row, INITIAL):
                continue
            for evaluation in member.ended.evaluations:
                value = evaluation["arms"].get(arm, {}).get(self.target)
                if value is not None and score(evaluation) == member.evaluations.get(wanted):
                    found[member.seed] = value
        return found

    def hours(self, row: str, setting: str, kind: str = "train") -> BySeed:
        """Device-hours of pretraining by seed, of all runs of the row together; seeds that miss one are left out."""
        due = [member for member in self.members if member.row == row and member.setting == setting]
        by_seed = {seed: [m.ended for m in due if m.seed == seed] for seed in dict.fromkeys(m.seed for m in due)}
        whole = {seed: [run for run in runs if run] for seed, runs in by_seed.items() if all(runs)}
        return {seed: sum(run.part("device_hours")[kind] for run in runs) for seed, runs in whole.items()}

    def grid(self, row: str, protocol: str, settings: Sequence[str]) -> tuple[Floats, list[str], list[int]] | None:
        """Scores [arms, settings, seeds], the arms, and the seeds that have all of them; None when none has."""
        arms = self.arms(row, settings[0]) if settings else []
        cells = [[self.scores(row, setting, arm, protocol) for setting in settings] for arm in arms]
        seeds = common(cell for line in cells for cell in line)
        if not arms or not seeds:
            return None
        return np.array([[[cell[seed] for seed in seeds] for cell in line] for line in cells]), arms, seeds

    def first(self, names: Iterable[str], test: Callable[[str], object] | None = None) -> str | None:
        """The first of `names` that is a row of this study (and passes `test`)."""
        return next((name for name in names if name in self.rows and (test is None or test(name))), None)


def origin(studies: Sequence[Study]) -> JSON:
    """Where the runs come from, by their own records: `git`, `versions`, `machine`, and `codes` where several.

    `git` is the code of most runs and evaluations, `codes` lists all with their numbers. Several versions or machines
    stand side by side.
    """
    runs = [run for study in studies for run in study.runs]
    made = [record for run in runs for record in (run.record, *run.evaluations)]
    counts = Counter((git["sha"], git["dirty"]) for record in made if (git := record.get("git")))
    codes = [{"sha": sha, "dirty": dirty, "records": number} for (sha, dirty), number in counts.most_common()]
    versions: dict[str, set[str]] = {}
    for name, version in (pair for record in made for pair in (record.get("versions") or {}).items()):
        versions.setdefault(name, set()).add(version)
    devices = dict.fromkeys(f"{one['name']}, {one['cores']} cores" for run in runs if (one := run.part("device")))
    found: JSON = {
        "git": {key: codes[0][key] for key in ("sha", "dirty")} if codes else {"sha": None, "dirty": None},
        "versions": {name: ", ".join(sorted(some)) for name, some in versions.items()},
        "machine": "; ".join(devices),
    }
    return found | ({"codes": codes} if len(codes) > 1 else {})


def common(cells: Iterable[Mapping[int, float]]) -> list[int]:
    """Seeds that all cells have, ascending."""
    sets = [set(cell) for cell in cells]
    return sorted(set.intersection(*sets)) if sets else []


def find(folder: Path) -> list[Path]:
    """Folders at or below `folder` that hold a study.json, sorted."""
    return sorted(Path(here) for here, _, files in os.walk(folder) if STUDY in files)


def load(folder: Path, notes: list[str]) -> Study:
    """The study in `folder`; what is unreadable of its runs is noted.

    Raises DataError when study.json is damaged or newer than this package.
    """
    record = records.read_json(folder / STUDY)
    records.check_schema(record, folder / STUDY)
    members = []
    for place, row in record["rows"].items():
        there = (folder / place / records.RUN).exists()
        run = read_run(folder / place, place, notes) if there else None
        why = record["failed"].get(place, "")
        due = {name: score_of(words) for name, words in row["evaluations"].items()}
        members.append(Member(row["row"], row["setting"], row["seed"], due, run, why))
    return Study(folder, record, members)


def row_done(folder: Path) -> bool:
    """Whether the run in `folder` has reached its end."""
    try:
        return bool(records.read(folder)["status"] == "done")
    except DataError:
        return False


def score(evaluation: JSON) -> Score:
    """Which evaluation a record is of."""
    labels, subset, folds, elsewhere = (evaluation.get(key) for key in ("labels", "subset", "folds", "elsewhere"))
    sort = evaluation["protocol"], evaluation["weights"]
    return Score(*sort, float(labels or 1), str(subset or ""), str(folds or ""), bool(elsewhere))


def scored(folder: Path) -> set[Score]:
    """Evaluations that lie in a run folder; what cannot be read is not there."""
    return {score(evaluation) for evaluation in read_evaluations(folder, [])}


def row_seconds(folder: Path) -> float:
    """What a finished row took: the life of its run's processes, and its evaluations."""
    pretraining = 3600 * records.read(folder)["device_hours"]["total"]
    scoring = [records.read_json(path).get("seconds", 0.0) for path in (folder / "evaluate").glob("*.json")]
    return float(pretraining + sum(scoring))
