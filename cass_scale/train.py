"""The loop. It knows no method, no backend and no configuration, and it is the only one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NoReturn

from torch import Tensor

from cass_scale import checkpoint
from cass_scale.average import Average
from cass_scale.backends.engine import Engine
from cass_scale.errors import Preempted
from cass_scale.ledger import Ledger, Observe, Todo, Trainee
from cass_scale.meter import Meter
from cass_scale.optim import set_rates
from cass_scale.run import Run
from cass_scale.schedule import Rates
from cass_scale.types import JSON, Batch, Progress, Stream, ViewSpec
from cass_scale.views import make_views


def train(
    engine: Engine,
    stream: Stream,
    schedule: Callable[[Progress], Rates],
    views: ViewSpec,
    todo: Todo,
    run: Run,
    *,
    observe: Observe | None = None,
    memory: JSON | None = None,
    average: Average | None = None,
) -> Progress:
    """Train the engine's method on `stream` until `todo` is done; resumes from the run's last checkpoint.

    Raises Preempted after saving when a signal asks for it, NonFinite, StorageError, and what `observe` raises.
    """
    method = engine.method
    trainee = Trainee(engine, average, memory if memory is not None else {})
    whole = todo.epochs * stream.steps_per_epoch
    last = min(whole, todo.max_steps or whole)
    at = trainee.resume(run, Progress(0, 0, 0, total_samples=whole * todo.batch_size))
    ledger = Ledger(trainee, todo, run, observe, last)
    with checkpoint.StopSignal() as stop, run.console.bar(last, at.step):
        ledger.look_before_the_first_step(at)
        while at.step < last and not ledger.out_of_patience(at):
            method.train()
            method.on_epoch(at.epoch)
            start = at.step % stream.steps_per_epoch
            batches = run.meter.wait("data", stream.epoch(at.epoch, start))
            for _ in range(start, min(stream.steps_per_epoch, start + last - at.step)):
                run.before_step(at.step + 1)
                rates = schedule(at)
                set_rates(engine.optimizer, rates, at.epoch)
                means, ids = update(engine, batches, views, at, todo, run.meter)
                at = advance(at, stream, todo)
                trainee.after_step(at)
                stopping = stop.asked()
                ledger.step(at, rates.lr, means, ids, ending=stopping or at.step == last)
                if stopping and at.step < last:
                    leave(stop.name, at, engine, run)
    run.before_step(None)
    if average and at.step == whole:
        average.finish(method, (make_views(b.images, views, b.index, seed=todo.seed, epoch=0) for b in stream.epoch(0)))
    return at


def update(
    engine: Engine, batches: Iterator[Batch], views: ViewSpec, at: Progress, todo: Todo, meter: Meter
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """One optimizer step over `accumulate` micro-batches; means of loss and metrics, still on the device, and ids."""
    means: dict[str, Tensor] = {}
    ids: list[Tensor] = []
    for micro in range(todo.accumulate):
        batch = next(batches)
        with meter("views"):
            crops = make_views(batch.images, views, batch.index, seed=todo.seed, epoch=at.epoch)
        silent = engine.quiet() if micro + 1 < todo.accumulate else nullcontext()
        with meter("step"), silent:
            out = engine(crops, batch, at)
            engine.backward(out.loss / todo.accumulate)
        ids.append(batch.index)
        for key, value in {"loss": out.loss.detach(), **out.metrics}.items():
            means[key] = means.get(key, 0.0) + value / todo.accumulate
    with meter("step"):
        engine.step(todo.clip, each=todo.clip_each, clear=todo.clear_gradients)
    return means, ids


def leave(signal: str, at: Progress, engine: Engine, run: Run) -> NoReturn:
    """Raise Preempted once it is recorded and all ranks are here: when one goes, a launcher kills the others."""
    run.before_step(None)
    why = f"{signal}: saved at step {at.step}; run the same command again to continue"
    run.update(status="preempted", error=why)
    engine.accelerator.wait_for_everyone()
    raise Preempted(why)


def advance(at: Progress, stream: Stream, todo: Todo) -> Progress:
    """The position after one more optimizer step."""
    step = at.step + 1
    return Progress(step // stream.steps_per_epoch, step, at.samples + todo.batch_size, at.total_samples)
