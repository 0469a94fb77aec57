"""Land a finished study as a record: its plan, records and scores without weights, its page, and a table of scores.

python benchmarks/land_study.py --study runs/study-batch_size --out benchmarks/records/DATE_study-batch-size_HARDWARE

With --unfinished also one of which rows failed or are missing: their records are kept, they stand in no table, and the
record lists them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from cass_scale import choice, claims, evidence, published, records
from cass_scale.errors import ConfigError
from cass_scale.page import report
from cass_scale.robustness import Estimate
from cass_scale.studies import INITIAL, STUDY, Study, load, origin
from cass_scale.study_page import correct, section

KEPT = (
    "run.json",
    "env.json",
    "config.yaml",
    "metrics.jsonl",
    "evaluate/*.json",
)  # of every run; no weights, no images


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


def number(one: Estimate | None, form: str = "{:.3f}") -> str:
    """`value (low to high)`; nothing for none."""
    if one is None:
        return ""
    ends = " to ".join(form.format(end) for end in one.interval or ())
    return form.format(one.value) + (f" ({ends})" if ends else "")


def cell(one: dict[str, Any]) -> str:
    """Mean with its interval over seeds; after it the paired difference to the null control."""
    text = number(one["mean"]) + (f" (without {one['missing']} seed(s))" if one["missing"] else "")
    if one["p"] is None:
        return text
    gap = f"{one['delta'].value:+.3f}"
    return f"{text}; **{gap}**" if one["verdict"] in ("above", "below") else f"{text}; {gap}"


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
            (self.study.how(part["protocol"]), arm["arm"], row["row"]): row["cells"][at]
            for part in self.shown["scores"]
            for arm in part["arms"]
            for row in arm["rows"]
        }


def called(row: str, arm: str, found: list[Column]) -> str:
    """A row's name; that of what the runs start from says which weights of the arm these are."""
    if row != INITIAL:
        return row
    runs = [m.run.part("arms") for one in found for m in one.study.members if m.run]
    own = any(arm in arms for arms in runs)  # `both` is all arms
    made = [one for arms in runs for name, one in arms.items() if name == arm or not own]
    weights = dict.fromkeys(Path(one["weights"]).name for one in made)
    return f"{row} ({' or '.join(weights)} weights)"


def columns(studies: list[Study]) -> list[Column]:
    """All settings of all studies; p of their differences corrected for being in one table."""
    shown = [section(study) for study in studies]
    found = [Column(one, what, name) for one, what in zip(studies, shown, strict=True) for name in one.settings]
    correct([one for column in found for one in column.cells().values()])
    return found


def scores(found: list[Column]) -> str:
    """A row per protocol, arm and row; a column per setting, or per set of images where there are several."""
    several = len({column.study.folder for column in found}) > 1
    about, cells = found[0].shown, [column.cells() for column in found]
    lines = [
        f"{about['metric']} on held-back images{'' if several else f' of {found[0].data}'}, "
        f"{about['about']['seeds']} seeds: mean (95 % interval); paired difference to cass_null, bold where its p "
        "(Student's, over seeds), corrected by Holm for all differences of this table, is under 0.05. both: features "
        "of both arms side by side; ensemble: their answers averaged.",
        "",
        f"| protocol | arm | row | {' | '.join(one.data if several else one.setting for one in found)} |",
        f"|---|---|---|{'---|' * len(found)}",
    ]
    for key in dict.fromkeys(key for some in cells for key in some):
        texts = [cell(one) if (one := some.get(key)) else "" for some in cells]
        protocol, arm, row = key
        lines.append(f"| {' | '.join([protocol, arm, called(row, arm, found), *texts])} |")
    return "\n".join(lines)


def steadiness(shown: dict[str, Any]) -> str:
    """How much each row moves with the setting, and how much less than DINO; nothing where there is one setting."""
    tables = []
    for part in shown["robustness"]:
        head = [
            "row",
            "variance over settings",
            *(f"less that of {dino}" for dino in part["dinos"]),
            "of it, seeds alone",
        ]
        head += ["worst drop", *(f"less that of {dino}" for dino in part["dinos"])]
        lines = [f"Over settings, {part['title']}:", "", f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
        for row in part["rows"]:
            less = [number(one, "{:+.2g}") for one in row["variance_less"]]
            texts = [row["row"], f"{row['variance'].value:.2g}", *less, f"{row['noise']:.2g}", number(row["drop"])]
            lines.append(f"| {' | '.join([*texts, *(number(one, '{:+.3f}') for one in row['drop_less'])])} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def picks(studies: list[Study]) -> list[choice.Pick]:
    """How often indicators that need no label named the better arm, over all finished runs."""
    return choice.picks(choice.cases(run for study in studies for run in study.runs))


def choosing(found: list[choice.Pick]) -> str:
    """What is known of choosing an arm without labels; nothing where no evaluation has indicators."""
    if not found:
        return ""
    lines = [
        "Which arm to take without labels: of the pairs of arms, in how many the one that a rule names scored higher "
        "(chance is half), and the macro F1 that its choices lost. Agreement of the arms names none: it is of the "
        "pair, and the same for both.",
        "",
        "| rule | scored by | pairs | right | macro F1 lost, mean |",
        "|---|---|---:|---:|---:|",
    ]
    for one in found:
        right, lost = (f"{one.right:.0%}", f"{one.lost:.3f}") if one.right is not None else ("too few pairs", "")
        lines.append(f"| {one.rule} | {one.protocol} | {one.pairs} | {right} | {lost} |")
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


def figures(found: list[Column], chosen: list[choice.Pick], left: list[str]) -> dict[str, Any]:
    """Every number of the table, and what the rules say to the claims that these studies are about."""
    studies = list({column.study.folder: column.study for column in found}.values())
    about = [claim for claim in published.claims() if claim["study"] == studies[0].name]
    numbers = [
        {"data": column.data, "setting": column.setting, "protocol": protocol, "arm": arm, "row": row}
        | {key: asdict(one[key]) if one[key] else None for key in ("mean", "delta")}
        | {key: one[key] for key in ("p", "holm", "missing")}
        for column in found
        for (protocol, arm, row), one in column.cells().items()
    ]
    verdicts = [
        {"claim": one.claim["says"], "verdict": one.word, "why": list(one.why)} for one in claims.judge(about, studies)
    ]
    return {"scores": numbers, "claims": verdicts, "choice": [asdict(one) for one in chosen], "unfinished": left}


def missing(studies: list[Study]) -> list[str]:
    """Runs of the plan that are not done, with their last words."""
    return [
        f"{study.folder.name}: {one.name}, {one.setting}, seed {one.seed}{f' ({one.failed})' if one.failed else ''}"
        for study in studies
        for one in study.members
        if not one.done
    ]


def read(place: Path, *, unfinished: bool = False) -> Study:
    """The study in a folder.

    Raises ConfigError when none of its runs is done, or, unless `unfinished`, when one is not or cannot be read.
    """
    notes: list[str] = []
    study = load(place, notes)
    undone = missing([study]) + notes
    if undone and not unfinished:
        some = ", ".join(undone[:3])
        raise ConfigError(f"{place} is not finished ({some}): run its command again first, or give --unfinished")
    if not any(member.done for member in study.members):
        raise ConfigError(f"{place} has no run that is done: there is nothing to tabulate")
    return study


def land(places: list[Path], out: Path, *, unfinished: bool = False) -> None:
    """Write the record of one study, or of one on several sets of images. Raises ConfigError as `read` does."""
    studies = [read(place, unfinished=unfinished) for place in places]
    for place, study in zip(places, studies, strict=True):
        for name, text in trimmed(place, str(study.runs[0].part("data")["path"])).items():
            path = out / "study" / (place.name if len(places) > 1 else "") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            records.atomic_write_text(path, text)
    report(out / "study", out / "study.html")
    found, chosen, left = columns(studies), picks(studies), missing(studies)
    record = found[0].study.record
    question = f"What does the {record['axis']} change, for CASS, its controls and DINO?"
    parts = [scores(found), steadiness(found[0].shown), choosing(chosen), collapses(found)]
    if left:
        parts.append(f"Not done, and in no table ({len(left)} runs): {'; '.join(left)}.")
    finding = evidence.Finding(question, "\n\n".join(filter(None, parts)), figures(found, chosen, left))
    command = "; ".join(dict.fromkeys(column.study.record["command"] for column in found))
    of_runs = origin(studies)
    evidence.write_record(out, finding, command=command, options={}, machine=of_runs["machine"], origin=of_runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, nargs="+", required=True, help="several: one on several sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--unfinished", action="store_true", help="land what there is, and list what is missing")
    args = parser.parse_args()
    land(args.study, args.out, unfinished=args.unfinished)
    print(f"record: {args.out}")


if __name__ == "__main__":
    main()
