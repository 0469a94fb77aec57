"""Hours to the same score: full runs of every side, evaluated off the clock, until each arm reaches the target."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cass_scale import records
from cass_scale.cli import build, compose_config
from cass_scale.data.manifest import Manifest
from cass_scale.measure.turns import answer
from cass_scale.types import JSON, Call
from cass_scale.verbs import evaluate, pretrain, settings

LOOKS = "looks"  # folder in a run's, a file per look


@dataclass
class Trial:
    """One run of one side, and what it has been seen to score."""

    name: str
    config: JSON
    looks: list[JSON]

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config["run"]["dir"])

    def finished(self, target: float) -> bool:
        """Whether every arm has reached the target by every protocol, or the run has failed."""
        if self.looks and "error" in self.looks[-1]:
            return True
        scores: dict[tuple[str, str], list[float]] = {}
        for look in self.looks:
            for protocol, arms in look["scores"].items():
                for arm, score in arms.items():
                    scores.setdefault((protocol, arm), []).append(score or 0.0)
        return bool(scores) and all(max(some) >= target for some in scores.values())

    def look(self, step: int, options: JSON) -> None:
        """Train up to `step` and evaluate, unless that has been done before; step 0: the weights it starts from."""
        kept = self.folder / LOOKS / f"{step:08d}.json"
        if not kept.exists():
            train = self.config["train"] | {"max_steps": max(1, step)}
            job = {key: options[key] for key in ("protocols", "metric")}
            result = answer([__name__, json.dumps(job | {"config": self.config | {"train": train}, "step": step})])
            if "error" in result:
                self.looks.append(result)
                return
        self.looks.append(records.read_json(kept))


def run(configs: Mapping[str, JSON], manifest: Manifest, options: JSON, say: Callable[[str], None]) -> JSON:
    """Looks of every side and seed, in turns: after a look's steps every run that has not arrived is looked at."""
    steps = options["epochs"] * (len(manifest.rows("train")) // options["batch"])
    at = sorted({round(steps * number / options["looks"]) for number in range(options["looks"] + 1)})
    trials = [trial(name, one, manifest, options, seed) for name, one in configs.items() for seed in options["seeds"]]
    for number, step in enumerate(at):
        for one in trials[:: -1 if number % 2 else 1]:
            if not one.finished(options["target"]):
                one.look(step, options)
                say(f"look {number}/{len(at) - 1}  {one.name}: {told(one.looks[-1])}")
    runs: dict[str, JSON] = {name: {} for name in configs}
    for one in trials:
        runs[one.name][str(one.config["seed"])] = one.looks
    keys = ("target", "metric", "protocols", "epochs")
    return {key: options[key] for key in keys} | {"steps": steps, "every": steps / options["looks"], "runs": runs}


def trial(name: str, config: JSON, manifest: Manifest, options: JSON, seed: int) -> Trial:
    """A run in a folder that is named after all that decides its weights, so that no other is ever taken for it."""
    whole = config | {"seed": seed, "train": config["train"] | {"epochs": options["epochs"]}}
    key = records.config_hash(whole | {"images": manifest.fingerprint()})[:12]
    folder = Path(options["runs"]) / f"{name.replace('/', '-')}-s{seed}-{key}"
    return Trial(name, whole | {"run": {"dir": str(folder)}}, [])


def told(look: JSON) -> str:
    """One look in words."""
    if "error" in look:
        return f"failed: {look['error']}"
    each = [f"{arm} {score or 0:.3f}, {name}" for name, arms in look["scores"].items() for arm, score in arms.items()]
    return f"step {look['step']}, {look['hours']['train']:.3g} hours: {'; '.join(each)}"


def child(job: JSON) -> JSON:
    """Train to the look's step, evaluate, keep the look beside the run; evaluating is booked as `observe`, in hours."""
    config, step = job["config"], job["step"]
    record = pretrain.run(config, build, Call("cass-scale bench name=savings", quiet=True))
    begun = time.perf_counter()
    scores = {name: _score(config, name, job["metric"], initial=not step) for name in job["protocols"]}
    hours = record["device_hours"] if step else dict.fromkeys(record["device_hours"], 0.0)
    look: JSON = {"step": step, "hours": hours, "observe": (time.perf_counter() - begun) / 3600, "scores": scores}
    folder = Path(config["run"]["dir"]) / LOOKS
    folder.mkdir(exist_ok=True)
    records.write_json(folder / f"{step:08d}.json", look)
    return look


def _score(config: JSON, protocol: str, metric: str, *, initial: bool) -> dict[str, float | None]:
    """Of every trained arm, on the images that were held back."""
    train = config["train"]
    words = [f"run.dir={config['run']['dir']}", f"protocol={protocol}", f"device={train['device']}"]
    words += [f"precision={train['precision']}", f"weights={'initial' if initial else 'run'}"]
    found = evaluate.run(compose_config("evaluate", words), build, Call("", quiet=True))["arms"]
    return {arm: found[arm][metric] for arm in settings.arm_specs(config)}


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
