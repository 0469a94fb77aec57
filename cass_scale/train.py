"""The loop. It knows no method, no backend and no configuration, and it is the only one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from cass_scale import checkpoint
from cass_scale.average import Average
from cass_scale.errors import NonFinite, Preempted
from cass_scale.methods.base import Method
from cass_scale.optim import set_lr
from cass_scale.run import Run
from cass_scale.types import JSON, Batch, Progress, Stream, ViewSpec
from cass_scale.views import make_views

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
    clear_gradients: bool = True  # False: the authors' notebook, which never clears them
    log_every: int = 50
    observe_every: int = 50
    save_every: int = 500
    best: str | None = None  # key of the metrics row whose maximum keeps best.pt


@dataclass
class Trainee:
    """What a checkpoint holds, beside the position: everything that training changes."""

    method: Method
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    average: Average | None
    memory: JSON  # what observers remember, e.g. the monitor's baseline
    best: float = -math.inf

    def state(self, at: Progress, meter: JSON) -> dict[str, Any]:
        """All of it as tensors and plain values, for `weights_only` loading."""
        scaler = self.accelerator.scaler
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return {
            "at": asdict(at),
            "model": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "average": self.average.state_dict() if self.average else {},
            "gradients": self._gradients(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},  # dropout and stochastic depth draw from these
            "memory": self.memory,
            "best": self.best,
            "meter": meter,
        }

    def _gradients(self) -> dict[str, Tensor]:
        """Gradients that outlive a step: there are none unless the method never clears them."""
        return {name: p.grad for name, p in self.method.named_parameters() if p.grad is not None}

    def load(self, state: dict[str, Any]) -> Progress:
        """Put everything back; returns where the run stood."""
        self.method.load_state_dict(state["model"])
        for name, p in self.method.named_parameters():
            p.grad = state["gradients"][name].to(p.device) if name in state["gradients"] else None
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["rng"]["cpu"])
        if state["rng"]["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["rng"]["cuda"])
        self.memory.update(state["memory"])
        self.best = state["best"]
        return Progress(**state["at"])


class Window:
    """Sums between two log rows, kept on the device: reading them is the loop's only synchronisation."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._open()

    def _open(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.since, self.booked = self.run.meter.elapsed(), dict(self.run.meter.spans)

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Take in one step's means."""
        self.steps += 1
        for key, value in metrics.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value

    def close(self, at: Progress, batch_size: int, lr: float) -> JSON:
        """The row of this window; the next one starts. Raises NonFinite when the mean loss is not a number."""
        self.check_finite(at)
        means = {key: (total / self.steps).item() for key, total in self.sums.items()}
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

    def check_finite(self, at: Progress) -> None:
        """Raise NonFinite when a loss since the last row was not a number."""
        loss = self.sums["loss"].item() if self.sums else 0.0
        if not math.isfinite(loss):
            raise NonFinite(
                f"the loss is {loss} at or just before step {at.step}; the last checkpoint is from before. "
                "Lower optim.lr, set train.clip=1, or use train.precision=fp32"
            )


def train(
    method: Method,
    stream: Stream,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[Progress], float],
    views: ViewSpec,
    accelerator: Accelerator,
    todo: Todo,
    run: Run,
    *,
    observe: Observe | None = None,
    memory: JSON | None = None,
    average: Average | None = None,
) -> Progress:
    """Train `method` on `stream` until `todo` is done; resumes from the run's last checkpoint.

    Raises Preempted after saving when a signal asks for it, NonFinite, StorageError, and what `observe` raises.
    """
    model, wrapped = accelerator.prepare(method, optimizer)  # never the stream: it shards itself
    trainee = Trainee(method, optimizer, accelerator, average, memory if memory is not None else {})
    at = resume(trainee, stream, todo, run)
    last = min(todo.epochs * stream.steps_per_epoch, todo.max_steps or todo.epochs * stream.steps_per_epoch)
    window = Window(run)
    with checkpoint.StopSignal() as stop, run.console.bar(last, at.step):
        if at.step == 0:
            run.log({"step": 0, "epoch": 0, "images": 0} | aside(observe, run, at), last)
        while at.step < last:
            model.train()
            method.on_epoch(at.epoch)
            start = at.step % stream.steps_per_epoch
            batches = run.meter.wait("data", stream.epoch(at.epoch, start))
            for _ in range(start, min(stream.steps_per_epoch, start + last - at.step)):
                lr = schedule(at)
                set_lr(optimizer, lr)
                window.add(update(model, wrapped, batches, views, at, accelerator, todo, run))
                at = advance(at, stream, todo)
                method.after_step(at)
                if average:
                    average.update(method, at)
                run.console.step(at.step)
                stopping = stop.asked(accelerator.device)
                ending = stopping or at.step == last
                seen = aside(observe, run, at) if ending or at.step % todo.observe_every == 0 else {}
                if seen or ending or at.step == 1 or at.step % todo.log_every == 0:
                    run.log(window.close(at, todo.batch_size, lr) | seen, last)
                    keep_best(trainee, todo, run, at)
                if ending or at.step % todo.save_every == 0:
                    save(trainee, run, at, window)
                if stopping and at.step < last:
                    raise Preempted(f"{stop.name}: saved at step {at.step}; run the same command again to continue")
    if average and at.step == todo.epochs * stream.steps_per_epoch:
        average.finish(method, (make_views(b.images, views, b.index, seed=todo.seed, epoch=0) for b in stream.epoch(0)))
    return at


def update(
    model: torch.nn.Module,
    optimizer: Any,
    batches: Iterator[Batch],
    views: ViewSpec,
    at: Progress,
    accelerator: Accelerator,
    todo: Todo,
    run: Run,
) -> dict[str, Tensor]:
    """One optimizer step over `accumulate` micro-batches; means of loss and metrics, still on the device."""
    means: dict[str, Tensor] = {}
    for micro in range(todo.accumulate):
        batch = next(batches)
        with run.meter("views"):
            crops = make_views(batch.images, views, batch.index, seed=todo.seed, epoch=at.epoch)
        silent = accelerator.no_sync(model) if micro + 1 < todo.accumulate else nullcontext()
        with run.meter("step"), silent:
            out = model(crops, batch, at)
            accelerator.backward(out.loss / todo.accumulate)
        for key, value in {"loss": out.loss.detach(), **out.metrics}.items():
            means[key] = means.get(key, 0.0) + value / todo.accumulate
    with run.meter("step"):
        if todo.clip:
            accelerator.clip_grad_norm_(model.parameters(), todo.clip)
        optimizer.step()
        if todo.clear_gradients:
            optimizer.zero_grad(set_to_none=True)
    return means


def advance(at: Progress, stream: Stream, todo: Todo) -> Progress:
    """The position after one more optimizer step."""
    step = at.step + 1
    return Progress(step // stream.steps_per_epoch, step, at.samples + todo.batch_size, at.total_samples)


def aside(observe: Observe | None, run: Run, at: Progress) -> JSON:
    """What `observe` measures at this step, its time booked apart from training."""
    if observe is None:
        return {}
    with run.meter.host("observe"):
        return observe(at)


def resume(trainee: Trainee, stream: Stream, todo: Todo, run: Run) -> Progress:
    """The run's last checkpoint put back, or the start."""
    path = run.checkpoints.latest()
    if path is None:
        return Progress(0, 0, 0, todo.epochs * stream.steps_per_epoch * todo.batch_size)
    state = checkpoint.load(path)
    at = trainee.load(state)
    run.rewind(at.step, state["meter"])
    run.console.say(f"resuming {run.folder} from step {at.step}")
    return at


def save(trainee: Trainee, run: Run, at: Progress, window: Window) -> None:
    """Checkpoint and record of this position. Raises NonFinite rather than keep a broken state."""
    window.check_finite(at)
    if run.main:
        with run.meter.host("checkpoint"):
            run.checkpoints.save(at.step, trainee.state(at, run.meter.state()))
    run.update(steps=at.step, images_seen=at.samples, metrics=run.last)


def keep_best(trainee: Trainee, todo: Todo, run: Run, at: Progress) -> None:
    """Keep the weights of the row with the highest `todo.best` so far."""
    score = run.last.get(todo.best) if todo.best else None
    if score is None or score <= trainee.best:
        return
    trainee.best = score
    if run.main:
        with run.meter.host("checkpoint"):
            run.checkpoints.save_best({"model": trainee.method.state_dict(), "at": asdict(at), "score": score})
