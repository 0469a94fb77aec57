"""Runs read back from their folders, and their scores beside the controls. Never imports torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from cass_scale import records
from cass_scale.errors import DataError
from cass_scale.types import JSON

NULL = "cass_null"
METRICS = {"macro_f1": "Macro F1", "balanced_accuracy": "Balanced accuracy", "auc": "AUC"}
PROTOCOLS = {
    "knn": "k-nearest neighbours",
    "linear": "Linear probe",
    "linear_transfer": "Linear head, trained as in the transfer paper",
    "finetune": "Fine-tuning, end to end",
    "finetune_transfer": "Fine-tuning as in the transfer paper",
    "finetune_micle": "Fine-tuning as in the MICLe paper",
}
AMOUNTS = (
    "labels",
    "subset",
    "folds",
    "trainings",
    "shift",
    "learnt_from",
)  # keys of how much was learnt, and from what
CONTROLS = {"initial": "initial weights, untouched", "random": "random weights, untrained"}


@dataclass(frozen=True)
class Run:
    """One run folder: its record, its logged rows and its evaluations."""

    folder: Path
    name: str
    record: JSON
    rows: list[JSON] = field(default_factory=list)
    evaluations: list[JSON] = field(default_factory=list)

    def part(self, key: str) -> JSON:
        """A sub-object of the record; {} when the run ended before it was written."""
        value = self.record.get(key)
        return value if isinstance(value, dict) else {}

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.record.get("method", "?"))

    @property
    def done(self) -> bool:
        """Whether the run reached its end: only then may its scores be compared."""
        return self.record.get("status") == "done"

    @property
    def collapse(self) -> list[JSON]:
        """Warnings of the monitor, in the order of steps; the null control learns nothing, so it has none."""
        found = [] if self.method == NULL else self.record.get("collapse") or []
        return sorted(found, key=lambda entry: entry.get("step") or 0)


@dataclass(frozen=True)
class Cell:
    """A score, its difference to the null control, and what that difference is worth."""

    value: float | None
    delta: float | None = None
    verdict: str = ""  # above | below | within noise | '' without a null control
    best: bool = False
    interval: tuple[float, float] | None = None  # 95 % over test images, whole groups together, and trainings
    why: str = ""  # there is no value

    def leads(self, other: Cell) -> bool:
        """Whether it is above `other` by more than chance makes: the intervals lie apart. Without one nobody knows."""
        return self.interval is not None and other.interval is not None and self.interval[0] > other.interval[1]


@dataclass(frozen=True)
class Row:
    """Scores of one arm of one run, or of a control."""

    arm: str
    label: str
    run: Run
    kind: str  # run | null | initial | random
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """One protocol on one data set, for runs with the same arms, or one of them, image size and seed."""

    protocol: str
    data: str
    split: str
    n_train: int
    n_test: int
    arms: dict[str, JSON]
    image_size: Any
    seed: Any
    rows: list[Row]
    notes: list[str]
    amount: str  # how much was learnt from, where it is not simply all; '' = all, once
    trainings: int

    @property
    def by_arm(self) -> dict[str, list[Row]]:
        """Rows of each arm in the order of the records; what is no arm, such as both together, after them."""
        arms = [arm for row in self.rows for arm in row.run.part("arms")]
        names = dict.fromkeys([*arms, *(row.arm for row in self.rows)])
        found = {name: [row for row in self.rows if row.arm == name] for name in names}
        return {name: rows for name, rows in found.items() if rows}


def load(folder: Path, apart: Sequence[Path] = ()) -> tuple[list[Run], list[str]]:
    """All readable runs below `folder`, and a note for every file that could not be read.

    Runs in the folders `apart`, which are studies, are left out. Raises DataError when there is no run and no study,
    none is readable, or a record is of a newer schema.
    """
    folders = [place for place in records.find_runs(folder) if not any(place.is_relative_to(study) for study in apart)]
    if apart and not folders:
        return [], []
    if not folders:
        raise DataError(f"no run.json under {folder}; run `cass-scale pretrain` first")
    runs: list[Run] = []
    notes: list[str] = []
    for place in folders:
        name = place.relative_to(folder).as_posix()
        if run := read_run(place, place.resolve().name if name == "." else name, notes):
            runs.append(run)
    if not runs:
        raise DataError(f"no readable run.json under {folder}: " + "; ".join(notes))
    return runs, notes


def read_run(folder: Path, name: str, notes: list[str]) -> Run | None:
    """The run in `folder`, or None and a note when its record cannot be read."""
    record = _readable(folder / records.RUN, notes)
    return Run(folder, name, record, _rows(folder, notes), list(read_evaluations(folder, notes))) if record else None


def _readable(path: Path, notes: list[str]) -> JSON | None:
    try:
        value = records.read_json(path)
    except DataError as why:
        notes.append(f"Left out: {why}")
        return None
    if "schema" not in value:
        notes.append(f"Left out: {path} has no schema number; it was not written by cass-scale")
        return None
    records.check_schema(value, path)
    return value


def _rows(folder: Path, notes: list[str]) -> list[JSON]:
    try:
        return records.read_metrics(folder / records.METRICS)
    except DataError as why:
        notes.append(f"Without curves: {why}")
        return []


def read_evaluations(folder: Path, notes: list[str]) -> Iterator[JSON]:
    """The evaluations of the run in `folder`; what cannot be read is noted."""
    for path in sorted((folder / "evaluate").glob("*.json")):
        value = _readable(path, notes)
        if value is not None and not {"protocol", "weights", "n_test", "arms"} <= value.keys():
            notes.append(f"Left out: {path} is not an evaluation; it lacks protocol, weights, n_test or arms")
        elif value is not None:
            yield value


def tables(runs: Iterable[Run]) -> list[Table]:
    """Score tables of the finished runs, grouped so that the rows of a table may be compared.

    A run that trained one arm alone stands beside those that trained it with another.
    """
    groups: dict[_Group, list[tuple[Run, JSON]]] = defaultdict(list)
    for run in runs:
        for evaluation in run.evaluations if run.done else []:
            groups[_group(run, evaluation)].append((run, evaluation))
    for key in sorted(groups, key=lambda group: len(group.arms)):
        wider = next((other for other in groups if other.same == key.same and other.arms > key.arms), None)
        if wider:
            groups[wider] += groups.pop(key)
    found = [_table(members) for members in groups.values()]
    order = list(PROTOCOLS)
    return sorted(found, key=lambda t: (t.data, order.index(t.protocol) if t.protocol in order else 9))


class _Group(NamedTuple):
    same: tuple[str, ...]
    arms: frozenset[str]


def _group(run: Run, evaluation: JSON) -> _Group:
    data = evaluation.get("data") or {}
    fixed = [evaluation.get(key) for key in ("protocol", "settings", "split", "n_train", "n_test", "seed", *AMOUNTS)]
    own = [run.record.get("image_size"), run.record.get("seed")]
    same = tuple(str(part) for part in [data.get("name"), data.get("fingerprint"), *fixed, *own])
    return _Group(same, frozenset(map(str, run.part("arms").items())))


def _table(members: list[tuple[Run, JSON]]) -> Table:
    run, first = members[0]
    notes = [f"{m.name}, while scoring: {text}" for m, scored in members for text in scored.get("warnings") or []]
    rows = _reference_rows(members)
    for member, evaluation in members:
        if evaluation["weights"] == "run":
            kind = "null" if member.method == NULL else "run"
            label = "null control" if kind == "null" else member.method
            rows += [Row(arm, label, member, kind, _cells(s)) for arm, s in evaluation["arms"].items()]
    table = Table(
        protocol=first["protocol"],
        data=_data_name(first.get("data") or {}),
        split=str(first.get("split", "test")),
        n_train=first.get("n_train") or 0,
        n_test=first["n_test"],
        arms=run.part("arms"),
        image_size=run.record.get("image_size"),
        seed=run.record.get("seed"),
        rows=rows,
        notes=list(dict.fromkeys(notes)),
        amount=_amount(first),
        trainings=len(first.get("trainings") or [0]),
    )
    _compare(table)
    kinds = ["run", "null", "initial", "random"]
    table.rows.sort(key=lambda row: (row.arm, kinds.index(row.kind)))
    return table


def _amount(evaluation: JSON) -> str:
    """How much was learnt from and how often, in words."""
    share, subset, folds = (evaluation.get(key) for key in ("labels", "subset", "folds"))
    trainings = len(evaluation.get("trainings") or [0])
    words = [f"{100 * share:g} % of the labels"] if share not in (None, 1) else []
    words += [f"subset {subset}"] if subset is not None else []
    words += [f"{folds} folds"] if folds else [f"{trainings} seeds"] if trainings > 1 else []
    words += [f"learnt from {evaluation['learnt_from']['name']}"] if evaluation.get("shift") else []
    return ", ".join(words)


def _data_name(data: JSON) -> str:
    return f"{data.get('name', '?')}{' (synthetic)' if data.get('synthetic') else ''}"


def _cells(scores: JSON) -> dict[str, Cell]:
    known, undefined = scores.get("intervals") or {}, scores.get("undefined") or {}

    def cell(metric: str) -> Cell:
        interval = tuple(known[metric]) if metric in known else None
        return Cell(scores.get(metric), interval=interval, why=undefined.get(metric, ""))

    return {metric: cell(metric) for metric in METRICS}


def _reference_rows(members: list[tuple[Run, JSON]]) -> list[Row]:
    """Initial and random weights: many runs may have scored them, equal scores are one row."""
    rows: list[Row] = []
    for run, evaluation in members:
        for arm, scores in evaluation["arms"].items() if evaluation["weights"] in CONTROLS else []:
            kind = evaluation["weights"]
            row = Row(arm, CONTROLS[kind], run, kind, _cells(scores))
            if not any((r.arm, r.kind, r.cells) == (row.arm, row.kind, row.cells) for r in rows):
                rows.append(row)
    return rows


def _compare(table: Table) -> None:
    """Fill the differences to the null control; mark a best score only where it leads all others."""
    for place, row in enumerate(table.rows):
        null = _null_of(row, table.rows)
        if row.kind == "run" and null is None and row.arm in row.run.part("arms"):
            table.notes.append(
                f"No null control for {row.run.name}, {row.arm}: run method={NULL} with the same data, arms "
                "and seed, and evaluate it; without it nobody can tell learning from batch-norm statistics."
            )
        cells = {m: _judge(table, row, m, null if row.kind != "null" else None) for m in METRICS}
        table.rows[place] = Row(row.arm, row.label, row.run, row.kind, cells)


def _null_of(row: Row, rows: list[Row]) -> Row | None:
    nulls = [r for r in rows if r.kind == "null" and r.arm == row.arm]
    same = [r for r in nulls if r.run.part("data").get("fingerprint") == row.run.part("data").get("fingerprint")]
    return max(same, key=lambda r: str(r.run.record.get("started")), default=None)


def _judge(table: Table, row: Row, metric: str, null: Row | None) -> Cell:
    cell = row.cells[metric]
    value = cell.value
    if value is None:
        return cell
    rivals = [r.cells[metric] for r in table.rows if r.arm == row.arm and r is not row]
    rivals = [rival for rival in rivals if rival.value is not None]
    best = bool(rivals) and all(cell.leads(rival) for rival in rivals)
    base = null.cells[metric] if null else Cell(None)
    if base.value is None:
        return replace(cell, best=best)
    verdict = "above" if cell.leads(base) else "below" if base.leads(cell) else "within noise"
    return replace(cell, delta=value - base.value, verdict=verdict, best=best)
