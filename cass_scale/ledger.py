"""What is looked at, logged and saved beside the loop, and what a checkpoint holds."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cass_scale import checkpoint, dist
from cass_scale.average import Average
from cass_scale.backends.engine import Engine
from cass_scale.errors import NonFinite
from cass_scale.run import Run
from cass_scale.types import JSON, Progress

REMEDY = (
    "the last checkpoint is from before. Lower optim.lr, set train.clip=1, or use train.precision=fp32; "
    "these make it another run, in another run.dir"
)
Observe = Callable[[Progress], JSON]  # numbers measured beside training: the collapse monitor, a validation score


@dataclass(frozen=True)
class Todo:
    """How much to train, and how. Steps are optimizer steps; `batch_size` is the global batch."""

    epochs: int
    batch_size: int
    seed: int
    max_steps: int | None = None  # stops early; schedules still see the whole run
    accumulate: int = 1
    clip: float | None = None
    clip_each: bool = False  # every tensor's gradient by its own norm, as DINO's authors do; else all by one
    clear_gradients: bool = True  # False: the authors' notebook, which never clears them
    log_every: int = 50
    observe_every: int = 50
    save_every: int = 500
    best: str | None = None  # key of the metrics row whose best value keeps best.pt
    lowest: bool = False  # the best value is the lowest one
    patience: int | None = None  # steps without a better value after which training ends early, but not before
    min_steps: int = 0


@dataclass
class Trainee:
    """What a checkpoint holds, beside the position: everything that training changes."""

    engine: Engine
    average: Average | None
    memory: JSON  # what observers remember, e.g. the monitor's baseline
    best: float = -math.inf  # with its sign turned where the lowest value is the best
    best_step: int = 0

    def state(self, at: Progress, meter: JSON, rng: list[JSON]) -> dict[str, Any]:
        """All of it as tensors and plain values, for `weights_only` loading; `rng` of every rank. All ranks call it."""
        engine, scaler = self.engine, self.engine.accelerator.scaler
        return {
            "at": asdict(at),
            "model": engine.model_state(),
            "optimizer": engine.optimizer_state(),
            "scaler": scaler.state_dict() if scaler else {},
            "average": self.average.state_dict() if self.average else {},
            "gradients": engine.gradients(),
            "rng": rng,
            "memory": self.memory,
            "best": self.best,
            "best_step": self.best_step,
            "meter": meter,
        }

    def load(self, state: dict[str, Any]) -> Progress:
        """Put everything back; returns where the run stood."""
        self.engine.load(state["model"], state["optimizer"], state["gradients"])
        if (scaler := self.engine.accelerator.scaler) and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if dist.rank() < len(state["rng"]):  # with more ranks than before, the new ones keep their seed
            set_random_state(state["rng"][dist.rank()])
        self.memory.update(state["memory"])
        self.best, self.best_step = state["best"], state.get("best_step", 0)
        return Progress(**state["at"])

    def after_step(self, at: Progress) -> None:
        """What follows every optimizer step: the method's own hook, then the running mean of the weights."""
        self.engine.after_step(at)
        if self.average:
            self.average.update(self.engine.method, at)

    def resume(self, run: Run, start: Progress) -> Progress:
        """The run's last checkpoint put back, or `start` when there is none."""
        path = run.checkpoints.latest()
        if path is None:
            if run.metrics.path.exists():
                run.rewind(-1, None)
            return start
        state = checkpoint.load(path)
        at = self.load(state)
        run.rewind(at.step, state["meter"])
        run.console.say(f"resuming {run.folder} from step {at.step}")
        return at


def random_state() -> JSON:
    """What dropout and stochastic depth of this rank draw from."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}


def set_random_state(state: JSON) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class Window:
    """Sums between two log rows, kept on the device: reading them is the loop's only synchronisation."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._open()

    def _open(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.seen: list[tuple[Tensor, list[Tensor]]] = []  # loss and ids of every step, for the day when it is NaN
        self.since, self.booked = self.run.meter.elapsed(), dict(self.run.meter.spans)

    def add(self, metrics: dict[str, Tensor], ids: list[Tensor]) -> None:
        """Take in one step's means, and the ids of its images on this rank."""
        self.steps += 1
        self.seen.append((metrics["loss"], ids))
        for key, value in metrics.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value

    def close(self, at: Progress, batch_size: int, lr: float) -> JSON:
        """The row of this window; the next one starts. Raises NonFinite when the mean loss is not a number."""
        means = self.means(at)
        meter = self.run.meter
        meter.settle()
        spent = {name: total - self.booked.get(name, 0.0) for name, total in meter.spans.items()}
        aside = sum(spent.get(name, 0.0) for name in ("observe", "checkpoint"))
        seconds = max(1e-9, meter.elapsed() - self.since - aside)
        row = {
            "step": at.step,
            "epoch": at.epoch,
            "images": at.samples,
            **means,
            "lr": lr,
            "images_per_s": self.steps * batch_size / seconds,
            "data_wait": min(1.0, spent.get("data", 0.0) / seconds),
            "seconds": meter.elapsed(),
            "device_hours": meter.device_hours()["total"],
        }
        self._open()
        return row

    def means(self, at: Progress) -> dict[str, float]:
        """Means since the last row, over steps and ranks. Raises NonFinite on all ranks when the loss is no number."""
        if not self.sums:
            return {}
        totals = torch.stack([total.float() for total in self.sums.values()])
        found = dict(zip(self.sums, (dist.all_reduce_mean(totals) / self.steps).tolist(), strict=True))
        if not math.isfinite(found["loss"]):
            raise NonFinite(f"the loss is {found['loss']}, first {self._culprits(at)}; {REMEDY}")
        return found

    def _culprits(self, at: Progress) -> str:
        """On which ranks, at which step and on which images the loss was first no number. All ranks must ask."""
        finite = torch.stack([loss.float() for loss, _ in self.seen]).isfinite().tolist()
        first = finite.index(False) if False in finite else len(finite)
        ids = torch.cat(self.seen[first][1]).tolist() if first < len(finite) else []
        found = dist.of_all_ranks((first, ids))
        earliest = min(number for number, _ in found)
        if earliest == len(finite):  # each is a number, their sum is none
            return f"in the mean at step {at.step}"
        where = [f"rank {rank} (images {_few(ids)})" for rank, (number, ids) in enumerate(found) if number == earliest]
        return f"at step {at.step - len(finite) + 1 + earliest} on {', '.join(where)}, rows of manifest.csv from 0"


def _few(ids: list[int], most: int = 64) -> str:
    """Ids for a message."""
    return ", ".join(map(str, ids[:most])) + (f" and {len(ids) - most} more" if len(ids) > most else "")


class Ledger:
    """After every step: look, log, keep the best and save, each when it is due; all of it at the end."""

    def __init__(self, trainee: Trainee, todo: Todo, run: Run, observe: Observe | None, last: int) -> None:
        self.trainee, self.todo, self.run, self.observe, self.last = trainee, todo, run, observe, last
        self.window = Window(run)

    def look_before_the_first_step(self, at: Progress) -> None:
        """The row of step 0, unless the run resumes: what observers see before anything has been trained."""
        if at.step == 0:
            self.run.log({"step": 0, "epoch": 0, "images": 0} | self._look(at), self.last)

    def out_of_patience(self, at: Progress) -> bool:
        """Whether nothing has become better for as long as `todo` says."""
        waited = at.step - self.trainee.best_step
        return self.todo.patience is not None and at.step >= self.todo.min_steps and waited >= self.todo.patience

    def step(self, at: Progress, lr: float, means: dict[str, Tensor], ids: list[Tensor], *, ending: bool) -> None:
        """Book one optimizer step. Raises NonFinite rather than log or save a broken state."""
        todo, run = self.todo, self.run
        run.meter.steps += 1
        self.window.add(means, ids)
        run.console.step(at.step)
        seen: JSON = {}
        if ending or at.step % todo.observe_every == 0:
            self.window.means(at)  # waits for the device: steps still in its queue are not the observer's time
            seen = self._look(at)
        if seen or ending or at.step == 1 or at.step % todo.log_every == 0:
            run.log(self.window.close(at, todo.batch_size, lr) | seen, self.last)
            self._keep_best(at)
        if ending or at.step % todo.save_every == 0:
            self._save(at)

    def _look(self, at: Progress) -> JSON:
        if self.observe is None:
            return {}
        with self.run.meter.host("observe"):
            dist.from_main(self.trainee.engine.method.buffers())  # else local BatchNorms make ranks judge differently
            return dist.of_all_ranks(self.observe(at))[0]  # what the others saw may differ in the last bit

    def _save(self, at: Progress) -> None:
        self.window.means(at)
        self._check_weights(at)
        rng = dist.of_all_ranks(random_state())
        with self.run.meter.host("checkpoint"):
            state = self.trainee.state(at, self.run.meter.state(), rng)
            if self.run.main:
                self.run.checkpoints.save(at.step, state)
        pace = dist.of_all_ranks({"host": platform.node(), **self.run.meter.pace()})
        self.run.update(steps=at.step, images_seen=at.samples, metrics=self.run.last, ranks=pace)

    def _check_weights(self, at: Progress) -> None:
        """The loss tells of a broken step one step late: never save what no resume could mend."""
        if not self.trainee.engine.finite():
            raise NonFinite(f"a weight is not a finite number after step {at.step}; {REMEDY}")

    def _keep_best(self, at: Progress) -> None:
        trainee, todo = self.trainee, self.todo
        value = self.run.last.get(todo.best) if todo.best else None
        score = None if value is None else -value if todo.lowest else value
        if score is None or not score > trainee.best:  # NaN is never the best
            return
        trainee.best, trainee.best_step = score, at.step
        with self.run.meter.host("checkpoint"):
            state = {"model": trainee.engine.model_state(), "at": asdict(at), "score": value}
            if self.run.main:
                self.run.checkpoints.save_best(state)
