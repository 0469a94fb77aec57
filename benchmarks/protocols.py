"""Does every protocol of evaluation run on every set of images? One short pretraining a set, then all of them.

    python benchmarks/protocols.py --data A B --shift C --out benchmarks/records/DATE_protocols_HARDWARE

One epoch on small images shows that a protocol runs, what it costs and what it refuses; not what encoders are worth.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.evidence import write_record
from cass_scale import evaluate, pretrain, records
from cass_scale.errors import CassScaleError, ConfigError

METHOD = "cass_contrast"


@dataclass(frozen=True)
class How:
    """How short everything is made."""

    arms: str = "tiny"
    size: int = 64  # pixels
    steps: int = 4  # of pretraining
    epochs: int = 1  # of protocols that train
    folds: int = 2
    seeds: int = 2
    device: str = "auto"
    shift: tuple[str, ...] = ()  # folders of second sets


def protocols(how: How) -> dict[str, list[str]]:
    """Row of the table -> overrides of evaluate: each leaf of configs/protocol, in every way of taking labels."""
    short = [f"protocol.epochs={how.epochs}", "protocol.min_epochs=0"]
    grid = [*short, "protocol.grid.lr=[1e-3,1e-2]", "protocol.grid.weight_decay=[0.0]"]
    folds, seeds = f"folds={how.folds}", f"seeds={how.seeds}"
    rows = {"knn": ["protocol=knn"], "linear": ["protocol=linear"]}
    rows |= {f"linear, {n} of {how.folds} folds": ["protocol=linear", f"subset=[{n}]", folds] for n in "SMF"}
    rows |= {f"linear_transfer, {n} of {how.folds} folds": ["protocol=linear_transfer", f"subset=[{n}]", folds, *short]
             for n in "SM"}  # fmt: skip
    rows |= {f"finetune, {n:.0%}, {how.seeds} seeds": ["protocol=finetune", f"labels=[{n}]", seeds, *short]
             for n in (0.01, 0.1)}  # fmt: skip
    rows |= {
        "finetune, 100%": ["protocol=finetune", *short],
        f"finetune_transfer, M of {how.folds} folds": ["protocol=finetune_transfer", "subset=[M]", folds, *short],
        "finetune_micle, M, grid of 2": ["protocol=finetune_micle", "subset=[M]", *grid],
    }
    shifts = {Path(path).name: [f"data.path={path}", "data.learn=run"] for path in how.shift}
    return rows | {f"{p}, scored on {name}": [f"protocol={p}", *words]
                   for name, words in shifts.items() for p in ("knn", "linear")}  # fmt: skip


def measure(run: Path, data: str | None, how: How) -> dict[str, Any]:
    """One set: pretrain in `run`, unless it is done, then every protocol: scores and seconds, or what it refused."""
    if data is not None:
        pretrain(
            f"method={METHOD}", f"arms={how.arms}", f"arms.image_size={how.size}", f"data.path={data}",
            f"train.max_steps={how.steps}", f"train.device={how.device}", "monitor.images=16", f"run.dir={run}",
            "stream.workers=0",  # a few images a step: starting processes to read them would take longer than all else
            quiet=True,
        )  # fmt: skip
    about = records.read(run)["data"]
    found = {}
    for name, words in protocols(how).items():
        begun = time.perf_counter()
        try:
            record = evaluate(f"run.dir={run}", *words, "replicates=0", f"device={how.device}", quiet=True)
            kept = ("arms", "n_train", "n_val", "n_test", "trainings", "split", "shift", "settings")
            found[name] = {key: record[key] for key in kept}
        except CassScaleError as why:
            found[name] = {"refused": "; ".join(why.problems) if isinstance(why, ConfigError) else str(why)}
        found[name]["seconds"] = time.perf_counter() - begun
        print(
            f"{about['name']}: {name}, {found[name].get('refused', 'done')}, {found[name]['seconds']:.0f} s", flush=True
        )
    kept = ("name", "fingerprint", "images", "classes", "multilabel")
    return {"data": {key: about[key] for key in kept}, "protocols": found}


def score(row: dict[str, Any], metric: str) -> str:
    """One arm's score, with its standard deviation over trainings."""
    if row[metric] is None:
        return "n/a"
    spread = row.get("seeds", {}).get(metric)
    return f"{row[metric]:.2f}" + (f" ± {spread['std']:.2f}" if spread else "")


def table(found: list[dict[str, Any]], how: How) -> str:
    """A row per protocol, a column per set; what was refused is said in full below."""
    metrics = ["auc" if one["data"]["multilabel"] else "macro_f1" for one in found]
    heads = [f"{one['data']['name']}, {'AUC' if metric == 'auc' else 'macro F1'}"
             for one, metric in zip(found, metrics, strict=True)]  # fmt: skip
    reasons: dict[str, int] = {}
    lines = [
        f"cnn / vit and seconds, after {how.steps} steps of pretraining (arms={how.arms}, {how.size} px); protocols "
        f"that train do so for {how.epochs} epoch(s). **This shows that they run, not what they are worth.**",
        "",
        f"| protocol | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(found)}",
    ]
    for name in found[0]["protocols"]:
        cells = []
        for one, metric in zip(found, metrics, strict=True):
            said = one["protocols"][name]
            if "refused" in said:
                cells.append(f"refused ({reasons.setdefault(said['refused'], len(reasons) + 1)})")
            else:
                arms = [score(row, metric) for arm, row in said["arms"].items() if arm not in ("both", "ensemble")]
                cells.append(f"{' / '.join(arms)}; {said['seconds']:.0f} s")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", *(f"({number}) {' '.join(text.split())}  " for text, number in reasons.items())]
    ).rstrip()


def main() -> None:
    """Measure every set, some at a time, and print the table; with --out leave a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="finished runs, in place of own pretraining")
    parser.add_argument("--shift", type=Path, nargs="*", default=[], help="sets to score on what the others taught")
    parser.add_argument("--arms", default=How.arms)
    for name in ("size", "steps", "epochs", "folds", "seeds"):
        parser.add_argument(f"--{name}", type=int, default=getattr(How, name))
    parser.add_argument("--device", default=How.device)
    parser.add_argument("--jobs", type=int, default=2, help="sets at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/protocols"), help="where own runs are kept")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shift = tuple(map(str, options.shift))
    how = How(
        options.arms, options.size, options.steps, options.epochs, options.folds, options.seeds, options.device, shift
    )
    work = [(run, None) for run in options.run] + [(options.runs / path.name, str(path)) for path in options.data]
    if not work:
        parser.error("name sets (--data) or finished runs (--run)")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))  # read by torch later
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(measure, run, data, how) for run, data in work]
        found = [one.result() for one in waiting]
    about = vars(options) | {key: [path.name for path in vars(options)[key]] for key in ("data", "run", "shift")}
    about["runs"] = str(options.runs)
    question = "Protocols: does every way of evaluation run on every set?"
    write_record(options.out, question, table(found, how), found, about)


if __name__ == "__main__":
    main()
