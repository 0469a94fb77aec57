"""Land a finished study as a record: its plan, records and scores without weights, its page, and a table of scores.

python benchmarks/land_study.py --study runs/study-batch_size --out benchmarks/records/DATE_study-batch-size_HARDWARE
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from cass_scale import claims, evidence, published, records
from cass_scale.errors import ConfigError
from cass_scale.page import report
from cass_scale.robustness import Estimate
from cass_scale.studies import INITIAL, STUDY, Study, load
from cass_scale.study_page import section

KEPT = ("run.json", "config.yaml", "metrics.jsonl", "evaluate/*.json")  # of every run; no weights, no images


def trimmed(study: Path, data: str) -> dict[str, str]:
    """Files of the study by name; the machine's folders are cut from their text."""
    paths = [study / STUDY, *sorted(path for what in KEPT for path in study.glob(f"*/*/*/{what}"))]
    cuts = [(f"{study.absolute()}/", ""), (f"{study}/", ""), (data, Path(data).name)]
    found = {}
    for path in paths:
        text = path.read_text()
        for long, short in cuts:
            text = text.replace(long, short)
        found[str(path.relative_to(study))] = text
    return found


def cell(mean: Estimate | None, delta: Estimate | None) -> str:
    """Mean with its interval over seeds; under it the paired difference to the null control."""
    if mean is None:
        return ""
    text = f"{mean.value:.3f}" + (f" ({mean.low:.3f} to {mean.high:.3f})" if mean.interval else "")
    if delta is None or delta.interval is None:
        return text
    clear = delta.interval[0] > 0 or delta.interval[1] < 0
    return f"{text}; **{delta.value:+.3f}**" if clear else f"{text}; {delta.value:+.3f}"


@dataclass(frozen=True)
class Column:
    """One setting of one study, and what the report shows of it."""

    study: Study
    shown: dict[str, Any]
    setting: str

    @property
    def data(self) -> str:
        """The set of images."""
        return ", ".join(self.shown["about"]["data"])

    def cells(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        """(protocol, arm, row) -> mean and difference to the null control, in the order of the report."""
        at = self.study.settings.index(self.setting)
        return {
            (part["protocol"], arm["arm"], row["row"]): row["cells"][at]
            for part in self.shown["scores"]
            for arm in part["arms"]
            for row in arm["rows"]
        }


def called(row: str, arm: str, found: list[Column]) -> str:
    """A row's name; that of what the runs start from says which weights of the arm these are."""
    if row != INITIAL:
        return row
    arms = [m.run.part("arms").get(arm) for one in found for m in one.study.members if m.run]
    weights = dict.fromkeys(Path(made["weights"]).name for made in arms if made)
    return f"{row} ({' or '.join(weights)} weights)"


def columns(studies: list[Study]) -> list[Column]:
    """All settings of all studies."""
    shown = [section(study) for study in studies]
    return [Column(one, what, name) for one, what in zip(studies, shown, strict=True) for name in one.settings]


def scores(found: list[Column]) -> str:
    """A row per protocol, arm and row; a column per setting, or per set of images where there are several."""
    several = len({column.study.folder for column in found}) > 1
    about, cells = found[0].shown, [column.cells() for column in found]
    lines = [
        f"{about['metric']} on held-back images{'' if several else f' of {found[0].data}'}, "
        f"{about['about']['seeds']} seeds: mean (95 % interval); paired difference to cass_null, bold where its "
        "interval excludes 0.",
        "",
        f"| protocol | arm | row | {' | '.join(one.data if several else one.setting for one in found)} |",
        f"|---|---|---|{'---|' * len(found)}",
    ]
    for key in dict.fromkeys(key for some in cells for key in some):
        texts = [cell(one["mean"], one["delta"]) if (one := some.get(key)) else "" for some in cells]
        protocol, arm, row = key
        lines.append(f"| {' | '.join([protocol, arm, called(row, arm, found), *texts])} |")
    return "\n".join(lines)


def steadiness(shown: dict[str, Any]) -> str:
    """How much each row moves with the setting; nothing where there is one setting."""
    if not shown["robustness"]:
        return ""
    lines = [
        "| protocol | row | variance over settings | of it, seeds alone | worst drop |",
        "|---|---|---:|---:|---:|",
    ]
    for part in shown["robustness"]:
        for row in part["rows"]:
            values = f"{row['variance'].value:.2g} | {row['noise']:.2g} | {cell(row['drop'], None)}"
            lines.append(f"| {part['protocol']} | {row['row']} | {values} |")
    return "\n".join(lines)


def collapses(found: list[Column]) -> str:
    """Which rows' runs collapsed."""
    counts: dict[str, list[int]] = {}
    for one in {column.study.folder: column.shown for column in found}.values():
        for row in one["overview"]:
            fell, done = counts.get(row["row"], [0, 0])
            counts[row["row"]] = [fell + (row["collapsed"] or 0), done + row["done"]]
    texts = [f"{row} {fell} of {done}" for row, (fell, done) in counts.items() if fell]
    return f"Runs that collapsed: {', '.join(texts) or 'none'}."


def figures(found: list[Column]) -> dict[str, Any]:
    """Every number of the table, and what the rules say to the claims that these studies are about."""
    studies = list({column.study.folder: column.study for column in found}.values())
    about = [claim for claim in published.claims() if claim["study"] == studies[0].name]
    numbers = [
        {"data": column.data, "setting": column.setting, "protocol": protocol, "arm": arm, "row": row}
        | {key: asdict(one[key]) if one[key] else None for key in ("mean", "delta")}
        for column in found
        for (protocol, arm, row), one in column.cells().items()
    ]
    verdicts = [
        {"claim": one.claim["says"], "verdict": one.word, "why": list(one.why)} for one in claims.judge(about, studies)
    ]
    return {"scores": numbers, "claims": verdicts}


def read(place: Path) -> Study:
    """The study in a folder. Raises ConfigError when a run of it is not done or cannot be read."""
    notes: list[str] = []
    study = load(place, notes)
    undone = [f"{m.name} {m.setting} seed {m.seed}" for m in study.members if not m.done] + notes
    if undone:
        raise ConfigError(f"{place} is not finished ({', '.join(undone[:3])}): run its command again first")
    return study


def land(places: list[Path], out: Path) -> None:
    """Write the record of one study, or of one on several sets of images. Raises ConfigError as `read` does."""
    studies = [read(place) for place in places]
    for place, study in zip(places, studies, strict=True):
        first = next(member.run for member in study.members if member.run)
        for name, text in trimmed(place, str(first.part("data")["path"])).items():
            path = out / "study" / (place.name if len(places) > 1 else "") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            records.atomic_write_text(path, text)
    report(out / "study", out / "study.html")
    found = columns(studies)
    record = found[0].study.record
    question = f"What does the {record['axis']} change, for CASS, its controls and DINO?"
    text = "\n\n".join(filter(None, [scores(found), steadiness(found[0].shown), collapses(found)]))
    finding = evidence.Finding(question, text, figures(found))
    command = "; ".join(dict.fromkeys(column.study.record["command"] for column in found))
    evidence.write_record(out, finding, command=command, options={}, machine=record["machine"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, nargs="+", required=True, help="finished; several: one on several sets")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    land(args.study, args.out)
    print(f"record: {args.out}")


if __name__ == "__main__":
    main()
