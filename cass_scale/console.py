"""What a person sees while a run goes on: a bar in a terminal, plain lines elsewhere, and a file for every rank."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from rich.console import Console as Rich
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cass_scale.types import JSON

WIDE = 400  # columns of a log, where no terminal says how many there are
BAR_EVERY = 0.1  # seconds between redraws of the bar


def summary(row: JSON, rank: str) -> str:
    """One metrics row in one line: loss, images/s, waiting for data, effective rank, device-hours."""
    parts = [
        f"loss {row['loss']:.4f}",
        f"{row['images_per_s']:.1f} images/s",
        f"data wait {100 * row['data_wait']:.0f} %",
        rank,
        f"{row['device_hours']:.4f} device-h",
    ]
    return "  ".join(part for part in parts if part)


def ranks(row: JSON) -> str:
    """The effective rank of each arm's features, where this row has it."""
    measured = {key.split("/")[1]: value for key, value in row.items() if key.endswith("/rankme_features")}
    found = [f"{arm} {value:.1f}" for arm, value in measured.items()]
    return f"rank {', '.join(found)}" if found else ""


class Console:
    """Prints on rank 0 only. `quiet` keeps warnings and drops the rest."""

    def __init__(self, *, main: bool = True, quiet: bool = False) -> None:
        self.main, self.quiet = main, quiet
        self.log: IO[str] | None = None
        width = None if sys.stderr.isatty() else WIDE
        self.rich = Rich(stderr=True, highlight=False, soft_wrap=True, emoji=False, width=width)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._drawn = 0.0
        self._rank = ""

    def keep(self, path: Path) -> None:
        """From now on also write what is said, on every rank, to the file `path`. Raises OSError."""
        path.parent.mkdir(exist_ok=True)
        self.log = path.open("a", buffering=1, encoding="utf-8")

    def note(self, text: str) -> None:
        """A line for the file alone."""
        if self.log is not None:
            with suppress(OSError):  # a full disk is the checkpoint's to report
                self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def say(self, text: str) -> None:
        """A plain line."""
        self.note(text)
        if self.main and not self.quiet:
            self.rich.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that must be seen."""
        self.note(text)
        if self.main:
            self.rich.print(text, style="bold yellow", markup=False)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Rows below a head; all columns but the first hold numbers."""
        if self.main and not self.quiet:
            table = Table(box=None, header_style="bold", pad_edge=False)
            for number, name in enumerate(columns):
                table.add_column(Text(name), justify="right" if number else "left")
            for row in rows:
                # Text: a class may be called [red]
                table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
            self.rich.print(table)

    @property
    def drawing(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def bar(self, total: int, done: int, unit: str = "step") -> Console:
        """Start a progress bar over `total` steps; use as a context."""
        if self.main and not self.quiet and self.rich.is_terminal:
            steps, numbers = (
                TextColumn(f"{unit} {{task.completed}}/{{task.total}}"),
                TextColumn("{task.description}"),
            )
            times = (TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(steps, BarColumn(), numbers, *times, console=self.rich, auto_refresh=False)
            self._task = self._bar.add_task("", total=total, completed=done)
            self._bar.start()
        return self

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()
            self._bar = self._task = None

    def step(self, done: int, text: str | None = None) -> None:
        """Move the bar and show `text` beside it, redrawing at most ten times a second."""
        if self._bar is not None and self._task is not None:
            due = time.monotonic() - self._drawn > BAR_EVERY
            self._drawn = time.monotonic() if due else self._drawn
            self._bar.update(self._task, completed=done, description=text, refresh=due)

    def row(self, row: JSON, total: int) -> None:
        """Show one metrics row."""
        self._rank = ranks(row) or self._rank  # measured at fewer steps than the rest
        if "loss" not in row:
            return  # the look before the first step
        line = f"step {row['step']}/{total}  epoch {row['epoch']}  {summary(row, self._rank)}"
        if self._bar is not None and self._task is not None:
            self.note(line)
            self._bar.update(self._task, description=summary(row, self._rank), refresh=True)
        else:
            self.say(line)
