"""The loop. It knows no method, no backend and no configuration, and it is the only one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from cass_scale import checkpoint
from cass_scale.average import Average
from cass_scale.errors import Preempted
from cass_scale.ledger import Ledger, Observe, Todo, Trainee
from cass_scale.meter import Meter
from cass_scale.optim import clip_each_, set_rates
from cass_scale.run import Run
from cass_scale.schedule import Rates
from cass_scale.types import JSON, Batch, Progress, Stream, ViewSpec
from cass_scale.views import make_views

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cass_scale.methods.base import Method


def train(
    method: Method,
    stream: Stream,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[Progress], Rates],
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
    whole = todo.epochs * stream.steps_per_epoch
    last = min(whole, todo.max_steps or whole)
    at = trainee.resume(run, Progress(0, 0, 0, total_samples=whole * todo.batch_size))
    ledger = Ledger(trainee, todo, run, observe, last)
    with checkpoint.StopSignal() as stop, run.console.bar(last, at.step):
        ledger.look_before_the_first_step(at)
        while at.step < last and not ledger.out_of_patience(at):
            model.train()
            method.on_epoch(at.epoch)
            start = at.step % stream.steps_per_epoch
            batches = run.meter.wait("data", stream.epoch(at.epoch, start))
            for _ in range(start, min(stream.steps_per_epoch, start + last - at.step)):
                run.before_step(at.step + 1)
                rates = schedule(at)
                set_rates(optimizer, rates, at.epoch)
                means, ids = update(model, wrapped, batches, views, at, accelerator, todo, run.meter)
                at = advance(at, stream, todo)
                trainee.after_step(at)
                stopping = stop.asked()
                ledger.step(at, rates.lr, means, ids, ending=stopping or at.step == last)
                if stopping and at.step < last:
                    leave(stop.name, at, accelerator)
    if average and at.step == whole:
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
    meter: Meter,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """One optimizer step over `accumulate` micro-batches; means of loss and metrics, still on the device, and ids."""
    means: dict[str, Tensor] = {}
    ids: list[Tensor] = []
    for micro in range(todo.accumulate):
        batch = next(batches)
        with meter("views"):
            crops = make_views(batch.images, views, batch.index, seed=todo.seed, epoch=at.epoch)
        silent = accelerator.no_sync(model) if micro + 1 < todo.accumulate else nullcontext()
        with meter("step"), silent:
            out = model(crops, batch, at)
            accelerator.backward(out.loss / todo.accumulate)
        ids.append(batch.index)
        for key, value in {"loss": out.loss.detach(), **out.metrics}.items():
            means[key] = means.get(key, 0.0) + value / todo.accumulate
    with meter("step"):
        if todo.clip and todo.clip_each:
            accelerator.unscale_gradients()
            clip_each_(model.parameters(), todo.clip)
        elif todo.clip:
            accelerator.clip_grad_norm_(model.parameters(), todo.clip)
        optimizer.step()
        if todo.clear_gradients:
            optimizer.zero_grad(set_to_none=True)
    return means, ids


def leave(signal: str, at: Progress, accelerator: Accelerator) -> NoReturn:
    """Raise Preempted once all ranks are here: a launcher ends the others some seconds after the first has gone."""
    accelerator.wait_for_everyone()
    raise Preempted(f"{signal}: saved at step {at.step}; run the same command again to continue")


def advance(at: Progress, stream: Stream, todo: Todo) -> Progress:
    """The position after one more optimizer step."""
    step = at.step + 1
    return Progress(step // stream.steps_per_epoch, step, at.samples + todo.batch_size, at.total_samples)
