"""How a run shows itself: a progress bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from gaternet.training.collapse import WARNING


class Reporter(Protocol):
    """Takes the numbers of a running phase."""

    def step(self, epoch: int, steps: int, numbers: Mapping[str, float]) -> None:
        """`steps` steps of the phase are done; `numbers` are means since the epoch began."""

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """An epoch has ended."""


def describe_numbers(numbers: Mapping[str, float]) -> str:
    """Return loss, error, share of gates open and speed in one line."""
    parts = [f"loss {numbers['loss']:.3f}", f"error {numbers['error_percent']:.2f} %"]
    if "open_share" in numbers:
        parts.append(f"open {100 * numbers['open_share']:.1f} %")
    parts.append(f"{numbers['images_per_second']:,.0f} images/s")
    return " · ".join(parts)


def describe_epoch(metrics: Mapping[str, Any], epochs: int) -> str:
    """Return an epoch's training and probe figures in one line."""
    line = f"epoch {metrics['epoch']}/{epochs} · {describe_numbers(metrics)}"
    probe = metrics["probe"]
    own = probe["form"]
    line += f" · {probe['images_from']} error {probe[own]['error_percent']:.2f} %"
    if "soft" in probe:
        other = "soft" if own == "hard" else "hard"
        line += f" ({other} gates {probe[other]['error_percent']:.2f} %)"
    if "skipped_images" in metrics:
        line += f" · bad images skipped: {metrics['skipped_images']}"
    return line + f" · {metrics['seconds']:.0f} s"


def plain_console() -> Console:
    """Return a console that prints names and paths as they are."""
    return Console(markup=False, highlight=False)


def silent_console() -> Console:
    """Return a console that shows nothing: that of every process but the first."""
    return Console(quiet=True)


class _NumbersBelow(Progress):
    """A progress bar with a line of text below: side by side they do not fit 80 columns."""

    numbers = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.numbers)


class BarReporter:
    """One rich progress bar a phase; an epoch's figures stay above it."""

    def __init__(self, progress: _NumbersBelow, task: TaskID, epochs: int) -> None:
        self._progress, self._task, self._epochs = progress, task, epochs

    def step(self, epoch: int, steps: int, numbers: Mapping[str, float]) -> None:
        line = f"epoch {epoch}/{self._epochs} · {describe_numbers(numbers)}"
        self._progress.numbers = line
        self._progress.update(self._task, completed=steps)

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        self._progress.console.print(describe_epoch(metrics, self._epochs))
        if WARNING in metrics:
            self._progress.console.print(metrics[WARNING])


class LineReporter:
    """A plain line an epoch, and within long epochs one a minute."""

    def __init__(self, console: Console, total_steps: int, epochs: int) -> None:
        self._console, self._total, self._epochs = console, total_steps, epochs
        self._start = self._last = time.monotonic()
        self._first_steps: int | None = None

    def step(self, epoch: int, steps: int, numbers: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._first_steps is None:
            self._first_steps, self._start = steps, now
        if now - self._last < 60 or steps == self._first_steps:
            return
        self._last = now
        left = (now - self._start) / (steps - self._first_steps) * (self._total - steps)
        self._print(
            f"  step {steps}/{self._total} · {describe_numbers(numbers)} · {left / 60:.0f} min left"
        )

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        self._last = time.monotonic()
        self._print(describe_epoch(metrics, self._epochs))
        if WARNING in metrics:
            self._print(metrics[WARNING])

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


@contextmanager
def reporting(title: str, total_steps: int, epochs: int, console: Console) -> Iterator[Reporter]:
    """Show a phase of `total_steps` steps under `title` until the context ends."""
    if not console.is_terminal:
        counted = "1 epoch" if epochs == 1 else f"{epochs} epochs"
        console.print(f"{title}: {counted}, {total_steps:,} steps", highlight=False)
        yield LineReporter(console, total_steps, epochs)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with _NumbersBelow(*columns, console=console) as progress:
        task = progress.add_task(title, total=total_steps)
        yield BarReporter(progress, task, epochs)
