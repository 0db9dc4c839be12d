"""Train the runs of a table that are missing, one after the other, within a budget of hours."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from gaternet.disk import make_directory, write_file
from gaternet.errors import Interrupted, UserError
from gaternet.output import json_text
from gaternet.reproduction.ensemble import measure_ensemble
from gaternet.reproduction.jobs import EnsembleJob, Job
from gaternet.training.config import Recipe, Sources
from gaternet.training.interruption import Interruption
from gaternet.training.lock import InUseError, check_free, locked
from gaternet.training.phases import Options, train_or_continue
from gaternet.training.run import open_run


@dataclass(frozen=True)
class Places:
    """Where runs lie, what they measured, and the images."""

    runs: Path
    results: Path
    data: Path | None
    """Holds a folder for each data set, by its name; none: hub names."""

    def run(self, job: Job) -> Path:
        """Return the directory of a run."""
        return self.runs / job.name

    def result(self, job: Job) -> Path:
        """Return the file that a finished run's measurements are kept in."""
        return self.results / f"{job.name}.json"

    def images(self, job: Job) -> str:
        """Return where a run's images are."""
        data = job.recipe.data
        return str(self.data / data.name) if self.data else str(data.hub)


def missing(jobs: Sequence[Job], places: Places) -> list[Job]:
    """Return the runs that nothing is measured of yet."""
    return [job for job in jobs if not places.result(job).exists()]


def check_begun(jobs: Sequence[Job], places: Places) -> None:
    """Raise UserError where a directory holds another run than it should."""
    for job in jobs:
        check_holds(places.run(job), job.recipe)


def check_holds(path: Path, recipe: Recipe) -> None:
    """Raise UserError where a directory holds a run that is not `recipe`'s."""
    if (path / "config.json").exists() and open_run(path).config.recipe != recipe:
        raise UserError(
            f"{path} holds a run with other settings than are asked for now: move it away"
        )


def train_missing(
    jobs: Sequence[Job],
    places: Places,
    options: Options,
    hours: float = inf,
    measured: Callable[[], object] = lambda: None,
) -> list[Job]:
    """Train what is missing, in this order; return what still is when the hours are spent.

    A run that another process trains is passed over: several may work on one table.

    measured: called behind every run that has ended

    Raises Interrupted where this process was told to end by anything else.
    """
    if hours > 0:
        with _stopping_after(hours, options.interruption) as spent:
            try:
                for job in missing(jobs, places):
                    if spent.is_set() or not missing([job], places):
                        continue  # another process may have ended it meanwhile
                    if lost := _lost(job, places):
                        options.console.print(f"{job.name} is left out: {lost}", soft_wrap=True)
                        continue
                    with suppress(InUseError):
                        _check_free(job, places)
                        _finish(job, places, options)
                        measured()
            except Interrupted:
                if not spent.is_set():
                    raise
    return missing(jobs, places)


def _finish(job: Job, places: Places, options: Options) -> None:
    """Train a run, after those that it starts from, and keep what it measured."""
    for part in job.parts.values():
        _finish(part, places, options)
    if isinstance(job, EnsembleJob):
        runs = {part: open_run(places.run(source)) for part, source in job.parts.items()}
        with locked(places.run(job), options.console.print):
            found = measure_ensemble(job, runs, places.images(job), options.device)
        text = f"{json_text(found)}\n"
    else:
        text = _trained(job, places, options)
    make_directory(places.results)
    write_file(places.result(job), text)


def _trained(job: Job, places: Places, options: Options) -> str:
    """Train a run whose parts are there, unless it has ended; return its result.json."""
    path = places.run(job)
    begun = {part: places.run(source) for part, source in job.parts.items()}
    sources = Sources(places.images(job), begun.get("backbone"), begun.get("gater"))
    if not ((path / "config.json").exists() and open_run(path).result is not None):
        train_or_continue(job.recipe, sources, path, replace(options, command=job.command))
    return (path / "result.json").read_text()


def _lost(job: Job, places: Places) -> str:
    """Say which measured network there is no run of any more; nothing where all are there."""
    for part in job.parts.values():
        kept, path = places.result(part), places.run(part)
        if kept.exists() and not path.exists():
            return f"{path} is gone; put it back, or move {kept} away to train it again"
    return ""


def _check_free(job: Job, places: Places) -> None:
    """Raise InUseError where another process trains a run, or one that it starts from."""
    for each in (*job.parts.values(), job):
        check_free(places.run(each))


@contextmanager
def _stopping_after(hours: float, interruption: Interruption) -> Iterator[threading.Event]:
    """Let training save and end when the hours are over; the event says that they are."""
    spent = threading.Event()

    def stop() -> None:
        spent.set()
        interruption.received = signal.SIGTERM

    timer = threading.Timer(min(3600 * hours, threading.TIMEOUT_MAX), stop)
    timer.daemon = True
    timer.start()
    try:
        yield spent
    finally:
        timer.cancel()
