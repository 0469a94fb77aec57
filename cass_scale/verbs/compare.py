"""`cass-scale compare`: two runs, paired image by image; every score with its difference, interval and p."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from rich.text import Text

from cass_scale import records
from cass_scale.console import Console
from cass_scale.errors import ConfigError, DataError, Problems
from cass_scale.evaluation.comparison import Row, compare, paired
from cass_scale.evaluation.metrics import ALWAYS, UNDEFINED
from cass_scale.evaluation.predictions import Predictions
from cass_scale.evaluation.statistics import LEVEL, units_of
from cass_scale.evaluation.summary import Scoring
from cass_scale.run import differences
from cass_scale.types import JSON, Call
from cass_scale.verbs import rules, settings

KNOWN = sorted({*UNDEFINED, *ALWAYS})
# Of an evaluation; they may differ, but that is said.
AMOUNT = ("labels", "subset", "seed", "n_train", "learnt_from", "threshold", "positive")


class Side(NamedTuple):
    """One evaluation of one run."""

    path: Path
    evaluation: JSON
    run: JSON

    @property
    def said(self) -> Predictions:
        """Its answers. Raises DataError when they are absent or broken."""
        if "predictions" not in self.evaluation:
            raise DataError(
                f"{self.path} keeps no predictions; run its command again: {self.evaluation.get('command')}"
            )
        return Predictions.load(self.path.parent / self.evaluation["predictions"])


def run(config: JSON, build: object, call: Call) -> JSON:
    """Compare every evaluation that A and B both have; returns the record, written to `out` where it is given."""
    place = check(config)
    console = Console(quiet=call.quiet)
    sides = [evaluations(name, Path(config[name]).expanduser()) for name in ("A", "B")]
    pairs = match(*sides)
    console.say(f"{config['A']} and {config['B']}: {', '.join(pairs)}")
    if call.dry_run:
        console.say("nothing was compared (--dry-run)")
        return {"evaluations": list(pairs)}
    record: JSON = {
        "schema": records.SCHEMA,
        "verb": "compare",
        "command": call.command,
        "versions": records.versions(("cass-scale", "numpy", "scipy", "scikit-learn")),
        "A": str(config["A"]),
        "B": str(config["B"]),
        "replicates": config["replicates"],
        "flips": config["flips"],
        "seed": config["seed"],
        "tables": [table(name, a, b, config) for name, (a, b) in pairs.items()],
        "finished": records.now(),
    }
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        records.write_json(place, record)
    for one in record["tables"]:
        show(one, console)
    return record


def check(config: JSON) -> Path | None:
    """The file to write. Raises ConfigError with every problem of the command."""
    problems = Problems()
    settings.check_values(config, rules.COMPARE, problems)
    for name in ("A", "B"):
        problems.check(config[name] is not None, f"{name} is missing: the folder of a run, or one of its evaluations")
    unknown = [name for name in config["metrics"] or [] if name not in KNOWN]
    problems.check(not unknown, f"metrics={unknown}: no such score; there are {', '.join(KNOWN)}")
    place = Path(config["out"]).expanduser().absolute() if config["out"] else None
    if place is not None:
        good = not place.is_dir() and settings.writable(place.parent)
        problems.check(good, f"out={config['out']} cannot be written; name a file in a writable folder")
    problems.raise_if_any()
    return place


def evaluations(name: str, path: Path) -> dict[str, Side]:
    """By file name, the evaluations of a run's own encoders, or the one that was named.

    Raises DataError when there is none, ConfigError when the path is nothing of the kind.
    """
    one = path.suffix == ".json"
    folder = path.parent.parent if one else path
    if not path.exists():
        raise ConfigError(f"{name}={path} does not exist: the folder of a run, or one of its evaluations, is needed")
    trained = records.read(folder)
    files = [path] if one else sorted((folder / "evaluate").glob("*.json"))
    found = {file.stem: Side(file, records.read_json(file), trained) for file in files}
    if not one:
        found = {stem: side for stem, side in found.items() if side.evaluation.get("weights") == "run"}
    if not found:
        raise DataError(f"{name}={path} has not been evaluated; run `cass-scale evaluate run.dir={path}` first")
    return found


def match(a: dict[str, Side], b: dict[str, Side]) -> dict[str, tuple[Side, Side]]:
    """Evaluations to compare: those of the same name, or the two that were named. Raises DataError if none."""
    if len(a) == len(b) == 1:
        (first, one), (second, other) = *a.items(), *b.items()
        return {first if first == second else f"{first} and {second}": (one, other)}
    both = {name: (a[name], b[name]) for name in a if name in b}
    if not both:
        raise DataError(
            f"A was evaluated by {', '.join(a)}, B by {', '.join(b)}: none is the same; evaluate both alike, or name "
            "two evaluations: A=RUN/evaluate/NAME.json B=..."
        )
    return both


def table(name: str, a: Side, b: Side, config: JSON) -> JSON:
    """All rows of one pair of evaluations, and what must be known to read them."""
    try:
        same_folds(a.evaluation, b.evaluation)
        first, second = paired(a.said, b.said)
        classes, positive = first.classes.tolist(), a.evaluation.get("positive")
        index = None if positive is None else classes.index(positive)
        how = Scoring(a.evaluation.get("threshold", 0.5), config["replicates"], config["seed"], index)
        rows = compare(first, second, how, config["flips"], config["metrics"])
    except DataError as why:
        raise DataError(f"{name}: {why}") from why
    units = int(units_of(first.group.tolist()).max()) + 1
    return {
        "evaluation": name,
        "n_test": len(first.key),
        "units": units,
        "trainings": len(first.trainings),
        "notes": notes(a, b, units, len(first.trainings))
        + too_few(sum(row.holm is not None for row in rows), config["flips"]),
        "rows": [row._asdict() for row in rows],
    }


def same_folds(a: JSON, b: JSON) -> None:
    """Raise DataError where the trainings of two evaluations are no pairs: folds against seeds, or other folds."""
    counts = [one.get("folds") for one in (a, b)]
    if counts[0] != counts[1]:
        kinds = [f"{n} folds" if n else "seeds" for n in counts]
        raise DataError(
            f"A was trained by {kinds[0]}, B by {kinds[1]}: their trainings are no pairs; give both the same folds="
        )


def notes(a: Side, b: Side, units: int, trainings: int) -> list[str]:
    """What a reader must know beside the numbers."""
    found = []
    for name, side in (("A", a), ("B", b)):
        arms = ", ".join(dict.fromkeys(str(entry.get("arm")) for entry in side.run.get("collapse") or []))
        if arms and side.evaluation.get("weights") == "run":
            found.append(f"{name} collapsed in pretraining ({arms})")
    ways = [_spread(side.run) for side in (a, b)]
    if ways[0] != ways[1]:
        found.append(f"A was trained on {ways[0]}, B on {ways[1]}")
    if other := differences(a.evaluation.get("settings") or {}, b.evaluation.get("settings") or {}):
        found.append(f"evaluated with other settings: {'; '.join(other)}")
    first, second = ({key: side.evaluation.get(key) for key in AMOUNT} for side in (a, b))
    if other := differences(first, second):
        found.append(
            f"evaluated otherwise, A -> B: {'; '.join(other)}; both are scored at A's threshold and positive class"
        )
    if trainings == 1:
        found.append("one training each: this says nothing about other seeds")
    if units < 30:
        found.append(f"{units} patients, groups or single images: intervals of so few are rough")
    return found


def _spread(run: JSON) -> str:
    """Over how many ranks, and how."""
    ranks = run.get("world_size") or 1
    return f"{ranks} ranks by {run.get('backend') or 'ddp'}" if ranks > 1 else "one rank"


def too_few(rows: int, flips: int) -> list[str]:
    """A note where not even the smallest p could survive its correction."""
    if rows / (1 + flips) < 1 - LEVEL:
        return []
    enough = math.ceil(rows / (1 - LEVEL))
    return [f"{flips} flips are too few for {rows} rows, so nothing can win: take flips={enough}"]


def show(one: JSON, console: Console) -> None:
    """The printed table; a winner is bold, and named, only where its row allows."""
    head = f"{one['n_test']} images in {one['units']} units, {one['trainings']} trainings"
    console.say(f"\n{one['evaluation']}: {head}")
    columns = ["arm, score", "A", "B", "A - B", "95 % interval", "effect", "p", "p (Holm)", "winner"]
    console.table(columns, [cells(Row(**row)) for row in one["rows"]])
    for text in one["notes"]:
        console.say(f"note: {text}")


def cells(row: Row) -> list[Text | str]:
    """One row as it is printed."""
    a, b = (Text(f"{value:.3f}", style="bold" if row.winner == name else "")
            for name, value in (("A", row.a), ("B", row.b)))  # fmt: skip
    interval = f"{row.interval[0]:+.3f} to {row.interval[1]:+.3f}" if row.interval else "n/a"
    effect = "n/a" if row.effect is None else f"{row.effect:+.2f}"
    p = ["n/a" if value is None else f"{value:.4f}" for value in (row.p, row.holm)]
    return [f"{row.arm}, {row.metric}", a, b, f"{row.difference:+.3f}", interval, effect, *p, row.winner or "-"]
