"""Does pretraining beat its controls? The same arms, data and epochs for every method; scores on held-back images.

    CASS_SCALE_WEIGHTS=DIR python benchmarks/controls.py --data DIR --arms small --epochs 4 --seeds 0 1 --out FOLDER

Rows are methods as `cass-scale pretrain method=` knows them, and `noise`: cass_contrast on Gaussian noise images.
`initial` is what every run starts from. Each run is a process of its own; runs that are done are not done again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.evidence import write_record
from cass_scale import records

NOISE = "noise"
Scores = list[dict[str, Any]]


def cass_scale(*words: str) -> None:
    """One verb in a process of its own; its last lines are shown when it fails."""
    done = subprocess.run([sys.executable, "-m", "cass_scale", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"cass-scale {' '.join(words)} failed:\n{done.stderr[-2000:]}")


def measure(method: str, seed: int, options: argparse.Namespace) -> Scores:
    """Pretrain once and score with every protocol: one row per protocol and weights."""
    run = options.runs / f"{method}-s{seed}"
    words = ["method=cass_contrast", "data.noise=true"] if method == NOISE else [f"method={method}"]
    cass_scale(
        "pretrain", *words, f"data.path={options.data}", f"arms={options.arms}", f"train.epochs={options.epochs}",
        f"seed={seed}", f"run.dir={run}", *options.words,
    )  # fmt: skip
    rows = []
    for protocol in options.protocols:
        for weights in ("run", "initial") if method == options.methods[0] else ("run",):
            kept = run / "evaluate" / f"{protocol}-{weights}.json"
            if not kept.exists():
                cass_scale("evaluate", f"run.dir={run}", f"protocol={protocol}", f"weights={weights}", f"seed={seed}")
            record = records.read_json(kept)
            name = method if weights == "run" else weights
            rows.append({"row": name, "seed": seed, **{k: record[k] for k in ("protocol", "arms", "n_test", "split")}})
    pretrained = records.read(run)
    rows[0]["run"] = {k: pretrained[k] for k in ("device_hours", "collapse", "precision", "images_seen", "batch_size")}
    rows[0]["run"]["data"] = {k: pretrained["data"][k] for k in ("name", "fingerprint", "synthetic")}
    print(f"{method}, seed {seed}: {'collapsed' if pretrained['collapse'] else 'no collapse'}", flush=True)
    return rows


def summarise(rows: Scores) -> str:
    """One line per method; macro F1 of each arm and protocol, mean and standard deviation over seeds."""
    columns = sorted({(row["protocol"], arm) for row in rows for arm in row["arms"]})
    names = list(dict.fromkeys(row["row"] for row in rows))
    collapsed = {row["row"] for row in rows if row.get("run", {}).get("collapse")}
    lines = [
        "| method | " + " | ".join(f"{arm}, {protocol}" for protocol, arm in columns) + " | collapsed |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name in names:
        cells = [
            cell([r["arms"][a]["macro_f1"] for r in rows if r["row"] == name and r["protocol"] == p])
            for p, a in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {'yes' if name in collapsed else 'no'} |")
    tested, seeds = rows[0]["n_test"], len({row["seed"] for row in rows})
    half = 1.96 * (0.25 / tested) ** 0.5
    data = next(row["run"]["data"]["name"] for row in rows if "run" in row)
    lines.append(
        f"\nMacro F1 on the {tested} {rows[0]['split']} images of {data}, mean and standard deviation over {seeds} "
        f"seeds. A difference under about {half:.3f} is noise of the test set alone."
    )
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    """Mean, and standard deviation where there are several."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    """Run every method and seed, print the table; with --out leave a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--arms", default="tiny")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=["cass_contrast", "cass_null", "cass", NOISE])
    parser.add_argument("--protocols", nargs="+", default=["knn", "linear"])
    parser.add_argument("--runs", type=Path, default=Path("runs/controls"), help="where the runs are kept")
    parser.add_argument("--words", nargs="*", default=[], help="more overrides, for every run")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [row for seed in options.seeds for method in options.methods for row in measure(method, seed, options)]
    about = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    write_record(options.out, "Controls: does pretraining beat what it starts from?", summarise(rows), rows, about)


if __name__ == "__main__":
    main()
