"""`cass-scale evaluate`: scores of a run's encoders on held-back images; a record per protocol, weights and amount."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cass_scale import dist, encoders, hardware, records
from cass_scale.console import Console
from cass_scale.encoders import ArmSpec, Encoder
from cass_scale.errors import DataError, Problems
from cass_scale.evaluation.draws import Condition, conditions
from cass_scale.evaluation.metrics import Array
from cass_scale.evaluation.predictions import Predictions, Texts
from cass_scale.evaluation.summary import Scoring, subgroups, summary
from cass_scale.evaluation.together import ensemble
from cass_scale.locks import lock
from cass_scale.types import JSON, Call
from cass_scale.verbs import rules, settings
from cass_scale.verbs.folder import choose, read_back, refuse_unfinished
from cass_scale.verbs.frozen import Frozen
from cass_scale.verbs.job import Job
from cass_scale.verbs.task import Task, column, find_task, positive_class, with_validation
from cass_scale.verbs.tuning import Tuned
from cass_scale.verbs.wire import PACKAGES, Build, arm_seeds, choose_device, open_place

FROZEN = ("knn", "linear")  # protocols on features; all others train on the one loop
SHOWN = {False: ("macro_f1", "balanced_accuracy", "accuracy", "auc"), True: ("macro_f1", "micro_f1", "auc")}


def run(config: JSON, build: Build, call: Call) -> JSON:
    """Evaluate the run in `run.dir`; returns the record that it writes there.

    With several amounts of labels that is the last one's, and `all` holds every record by its file's name.
    """
    folder, trained, remarks = read_run(config)
    device, limits = choose_device(config["device"]), hardware.read(config["hardware"])
    resolved = hardware.resolve(limits, config["precision"], device)
    console = Console(quiet=call.quiet)
    frozen = config["protocol"]["name"] in FROZEN
    task = find_task(config, trained, build, folder)
    task = task if frozen or config["folds"] else with_validation(task, config["seed"])
    task = replace(task, remarks=(*remarks, *task.remarks))
    found = amounts(config, task, random=not frozen)
    positive_class(config["positive"], task.learn)
    for name in by(config):
        column(task.test, name, task.rows["test"])  # refused now, and not after hours of training
    for text in task.remarks:
        console.warn(text)
    console.say(announcement(config, task, found))
    if call.dry_run:
        console.say("nothing was started (--dry-run)")
        return planned(config, task, found)
    place = open_place(device, resolved, project=folder, trackers=[], limits=limits)
    job = Job(config, trained, build, task, place, console)
    arms = load_arms(config, folder, trained)
    (folder / "evaluate").mkdir(exist_ok=True)
    with lock(folder):
        written = dict(evaluate(job, found, arms, folder / "evaluate", call))
    last = list(written.values())[-1]
    return last if len(written) == 1 else last | {"all": written}


def read_run(config: JSON) -> tuple[Path, JSON, list[str]]:
    """The run folder, its configuration, and what must be known of it; every problem of the command at once."""
    problems = Problems()
    settings.check_values(config, rules.EVALUATE, problems)
    problems.found += hardware.problems(config["hardware"], config["precision"], "precision")
    problems.check(config["run"]["dir"] is not None, "run.dir is missing: the folder that `cass-scale pretrain` wrote")
    one = dist.world() == 1
    problems.check(one, "evaluate runs in one process: start it without accelerate launch, torchrun or srun -n")
    settings.check_amounts(config, problems)
    problems.raise_if_any()
    folder = Path(config["run"]["dir"])
    record, trained = read_back(folder)
    if config["weights"] != "run":
        return folder, trained, []
    refuse_unfinished(folder, record, instead=", or take weights=initial or weights=random")
    arms = ", ".join(dict.fromkeys(c["arm"] for c in record["collapse"]))
    return folder, trained, [f"{folder.name} collapsed in pretraining ({arms}); scored all the same"] if arms else []


def amounts(config: JSON, task: Task, *, random: bool) -> list[Condition]:
    """What is learnt from, in all the amounts that were asked for."""
    seeds = range(config["seed"], config["seed"] + config["seeds"])
    keys = {name: config[name] for name in ("labels", "subset", "folds")}
    found = conditions(task.pool(), seeds=seeds, random=random, **keys)
    if random and min(len(draw.train) for one in found for draw in one.draws) < 2:
        raise DataError(f"{task.learn.name}: 1 image to learn from; {config['protocol']['name']} needs 2 for BatchNorm")
    return found


def by(config: JSON) -> list[str]:
    """Columns of the subgroup tables."""
    asked = config["by"] or []
    return [asked] if isinstance(asked, str) else list(asked)


def announcement(config: JSON, task: Task, found: list[Condition]) -> str:
    """What is about to be done, in one line."""
    sizes = ", ".join(f"{len(one.draws[0].train)} x {len(one.draws)}" for one in found)
    sizes = str(len(found[0].draws[0].train)) if sum(len(one.draws) for one in found) == 1 else sizes
    of = f" of {task.learn.name}" if task.shift else ""
    held = f"{len(task.rows['test'])} ({task.split}) held back"
    return f"{config['protocol']['name']} on {task.test.name}: {sizes} images{of} to learn from, {held}"


def planned(config: JSON, task: Task, found: list[Condition]) -> JSON:
    """What --dry-run returns."""
    first = found[0].draws[0]
    return {
        "protocol": dict(config["protocol"]),
        "n_train": len(first.train),
        "n_test": len(task.rows["test"]),
        "split": task.split,
        "trainings": sum(len(one.draws) for one in found),
    }


def load_arms(config: JSON, folder: Path, trained: JSON) -> dict[str, Encoder]:
    """Encoders by arm: as the run left them, as it found them, or random.

    Raises ConfigError for an unknown arm, DataError when an export is of another architecture than the run's.
    """
    problems = Problems()
    trained = trained | {"transformer_args": {}}  # these are of pretraining: scores compare across methods without
    specs = settings.arm_specs(trained)
    if config["weights"] == "initial":
        settings.check_arms(trained, problems)
    beside = sorted(path.stem for path in (folder / "export").glob("*.safetensors"))  # e.g. DINO's student
    known = dict.fromkeys([*specs, *(beside if config["weights"] == "run" else [])])
    wanted = choose(known, config["arm"] or list(specs), problems)
    problems.raise_if_any()
    if config["weights"] == "run":
        return {name: exported(folder / "export" / f"{name}.safetensors", specs.get(name)) for name in wanted}

    def spec(name: str) -> ArmSpec:
        return replace(specs[name], weights="random") if config["weights"] == "random" else specs[name]

    seeds = arm_seeds(trained)  # as pretraining drew them
    return {name: encoders.build(spec(name), trained["arms"]["image_size"], seeds[name])[0] for name in wanted}


def exported(path: Path, spec: ArmSpec | None) -> Encoder:
    """An arm as the run left it; `spec` is None for what lies beside the arms."""
    encoder = encoders.load_export(path)
    if spec and encoder.spec.model != spec.model:
        raise DataError(
            f"{path} holds {encoder.spec.model}, and this run's arm is {spec.model}: a checkpoint of other arms; "
            "put the run's own export back, or pretrain again"
        )
    return encoder


def evaluate(
    job: Job, found: list[Condition], arms: dict[str, Encoder], folder: Path, call: Call
) -> Iterator[tuple[str, JSON]]:
    """File name and record of every condition; each is written as soon as it is known."""
    learner: Frozen | Tuned = Frozen(job, arms) if job.protocol["name"] in FROZEN else Tuned(job, arms)
    for condition in found:
        started = time.perf_counter()
        name = file_name(job, condition, arms)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            probability, chosen = learner(condition, folder / name)
        probability |= ensemble({arm: probability[arm] for arm in arms})
        said = predictions(job.task, condition, probability)
        said.save(folder / f"{name}.npz")
        texts = {str(w.message) for w in caught if issubclass(w.category, UserWarning)}
        record = describe(job, condition, call) | {
            "predictions": f"{name}.npz",
            "arms": {arm: score(job, said, arm) | chosen.get(arm, {}) for arm in probability},
            **learner.record,
            "warnings": [*job.task.remarks, *sorted(texts)],
            "seconds": time.perf_counter() - started,
            "finished": records.now(),
        }
        records.write_json(folder / f"{name}.json", record)
        show(name, record, job.console)
        yield name, record


def file_name(job: Job, condition: Condition, arms: dict[str, Encoder]) -> str:
    """Of a condition's record: what differs in it from all that would lie beside it."""
    task, config = job.task, job.config
    parts = [job.protocol["name"], config["weights"], task.test.name if task.path else ""]
    parts += ["shift" if task.shift else "", condition.name, "-".join(arms) if config["arm"] else ""]
    return "-".join(part for part in parts if part)


def predictions(task: Task, condition: Condition, probability: dict[str, Array]) -> Predictions:
    """Answers beside the images that they are about."""
    ids, manifest = task.rows["test"], task.test
    labels = manifest.label_tensor()[ids].numpy()

    def texts(column: Sequence[str]) -> Texts:
        return np.array([column[i] for i in ids.tolist()], dtype=np.str_)

    return Predictions(
        id=ids.numpy(),
        key=texts(manifest.keys),
        sha256=texts(manifest.sha256),
        group=texts(manifest.groups),
        split=texts(manifest.splits),
        label=labels.astype(np.uint8) if manifest.multilabel else labels,
        classes=np.array(manifest.classes, dtype=np.str_),
        trainings=np.array([draw.number for draw in condition.draws]),
        probability={arm: p.astype(np.float32) for arm, p in probability.items()},
    )


def score(job: Job, said: Predictions, arm: str) -> JSON:
    """Scores of an arm, their intervals, and its subgroups."""
    config = job.config
    positive = positive_class(config["positive"], job.task.learn)
    how = Scoring(config["threshold"], config["replicates"], config["seed"], positive)
    found = summary(said, arm, how)
    for name in by(config):
        values = column(job.task.test, name, job.task.rows["test"])
        found.setdefault("subgroups", {})[name] = subgroups(said, arm, values, how)
    return found


def describe(job: Job, condition: Condition, call: Call) -> JSON:
    """The part of the record that is known before anything is computed."""
    task, config = job.task, job.config
    positive = positive_class(config["positive"], task.learn)
    return {
        "schema": records.SCHEMA,
        "protocol": job.protocol["name"],
        "settings": job.protocol if job.protocol["name"] in FROZEN else job.protocol | {"views": repr(job.views)},
        "weights": config["weights"],
        "data": {"name": task.test.name, "fingerprint": task.test.fingerprint(), "synthetic": task.test.synthetic},
        "learnt_from": {"name": task.learn.name, "fingerprint": task.learn.fingerprint()},
        "elsewhere": task.path is not None,
        "shift": task.shift,
        "split": task.split,
        **condition.about,
        "trainings": [draw.number for draw in condition.draws],
        "n_train": len(condition.draws[0].train),
        "n_val": len(condition.draws[0].val),
        "n_test": len(task.rows["test"]),
        "classes": list(task.learn.classes),
        "multilabel": task.learn.multilabel,
        "threshold": config["threshold"],
        "positive": None if positive is None else task.learn.classes[positive],
        "replicates": config["replicates"],
        "seed": config["seed"],
        "precision": job.place.precision.name,
        "command": call.command,
        "git": records.git_state(),
        "versions": records.versions(PACKAGES),
        "device": job.place.record(),
        "hardware": job.place.hardware,
    }


def show(title: str, record: JSON, console: Console) -> None:
    """Scores by arm, with their intervals where there are any; what is undefined and why."""
    names = SHOWN[record["multilabel"]]
    console.table([title, *names], [[arm, *(cell(row, name) for name in names)] for arm, row in record["arms"].items()])
    if record["positive"] is not None:
        console.say(f"auc, sensitivity and specificity are of {record['positive']} against the other class (positive=)")
    if "device_hours" in record:
        console.say(
            f"{record['device_hours']['total']:.4g} device-hours of fine-tuning, as its trainings recorded them"
        )
    for arm, row in record["arms"].items():
        for name in (name for name in names if row[name] is None):
            console.say(f"{arm}: {name} n/a: {row['undefined'][name]}")
        for of, table in row.get("subgroups", {}).items():
            rows = [[v, f"{one['n']:.0f}", *(cell(one, name) for name in names)] for v, one in table["groups"].items()]
            console.table([f"{arm}, by {of}", "n", *names], rows)
            worst = table["worst"]
            gaps = [f"{name} {gap:.3f} (worst: {worst[name]})" for name, gap in table["gap"].items() if name in names]
            console.say(f"gap: {', '.join(gaps) or 'n/a'}; {table['few']} images of too small groups")


def cell(row: JSON, name: str) -> str:
    """A score as it is printed, with its standard deviation over trainings and its interval over test images."""
    if row[name] is None:
        return "n/a"
    found, seeds = row["intervals"].get(name), row.get("seeds", {}).get(name)
    spread = f" ± {seeds['std']:.3f}" if seeds else ""
    return f"{row[name]:.3f}{spread}" + (f" [{found[0]:.3f}, {found[1]:.3f}]" if found else "")
