"""Land a finished study as a record: its plan, records and scores without weights, its page, and a table of scores.

python benchmarks/land_study.py --study runs/study-batch_size --out benchmarks/records/DATE_study-batch-size_HARDWARE
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from cass_scale import claims, evidence, published, records
from cass_scale.errors import ConfigError
from cass_scale.page import report
from cass_scale.robustness import Estimate
from cass_scale.studies import STUDY, Study, load
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


def table(shown: dict[str, Any], study: Study) -> str:
    """Scores by protocol, arm, row and setting, and how much each row moves with the setting."""
    lines = [
        f"{shown['metric']} on held-back images of {', '.join(shown['about']['data'])}, "
        f"{shown['about']['seeds']} seeds: mean (95 % interval); paired difference to cass_null, bold where its "
        "interval excludes 0.",
        "",
        f"| protocol | arm | row | {' | '.join(study.settings)} |",
        f"|---|---|---|{'---|' * len(study.settings)}",
    ]
    for part in shown["scores"]:
        for arm in part["arms"]:
            for row in arm["rows"]:
                cells = [cell(one["mean"], one["delta"]) for one in row["cells"]]
                lines.append(f"| {part['protocol']} | {arm['arm']} | {row['row']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| protocol | row | variance over settings | of it, seeds alone | worst drop |",
        "|---|---|---:|---:|---:|",
    ]
    for part in shown["robustness"]:
        for row in part["rows"]:
            lines.append(
                f"| {part['protocol']} | {row['row']} | {row['variance'].value:.2g} | {row['noise']:.2g} "
                f"| {cell(row['drop'], None)} |"
            )
    fell = [f"{one['row']} {one['collapsed']} of {one['done']}" for one in shown["overview"] if one["collapsed"]]
    return "\n".join([*lines, "", f"Runs that collapsed: {', '.join(fell) or 'none'}."])


def figures(shown: dict[str, Any], study: Study) -> dict[str, Any]:
    """Every number of the table, and what the rules say to the claims that this study is about."""
    about = [claim for claim in published.claims() if claim["study"] == study.name]
    scores = [
        {"protocol": part["protocol"], "arm": arm["arm"], "row": row["row"], "setting": setting}
        | {key: asdict(one[key]) if one[key] else None for key in ("mean", "delta")}
        for part in shown["scores"]
        for arm in part["arms"]
        for row in arm["rows"]
        for setting, one in zip(study.settings, row["cells"], strict=True)
    ]
    verdicts = [{"claim": v.claim["says"], "verdict": v.word, "why": list(v.why)} for v in claims.judge(about, [study])]
    return {"scores": scores, "claims": verdicts}


def land(place: Path, out: Path) -> None:
    """Write the record. Raises ConfigError when a run of the study is not done or cannot be read."""
    notes: list[str] = []
    study = load(place, notes)
    undone = [f"{m.name} {m.setting} seed {m.seed}" for m in study.members if not m.done] + notes
    if undone:
        raise ConfigError(f"{place} is not finished ({', '.join(undone[:3])}): run its command again first")
    first = next(member.run for member in study.members if member.run)
    for name, text in trimmed(place, str(first.part("data")["path"])).items():
        path = out / "study" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        records.atomic_write_text(path, text)
    report(out / "study", out / "study.html")
    shown, record = section(study), study.record
    question = f"What does the {record['axis']} change, for CASS, its controls and DINO?"
    finding = evidence.Finding(question, table(shown, study), figures(shown, study))
    evidence.write_record(out, finding, command=record["command"], options={}, machine=record["machine"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    land(args.study, args.out)
    print(f"record: {args.out}")


if __name__ == "__main__":
    main()
