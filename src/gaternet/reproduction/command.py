"""`gaternet reproduce`: choose rows, train what is missing of them, write the page."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import inf, isnan
from pathlib import Path

from gaternet.analysis import style
from gaternet.disk import make_directory, write_file
from gaternet.errors import UsageError, UserError
from gaternet.reproduction.jobs import Job, Length, jobs_of, with_parts
from gaternet.reproduction.report import FIGURES, draw, render
from gaternet.reproduction.results import read_results
from gaternet.reproduction.targets import TARGETS, Block
from gaternet.reproduction.training import Places, check_begun, missing, train_missing
from gaternet.spelling import did_you_mean
from gaternet.training.config import check
from gaternet.training.phases import Options
from gaternet.training.processes import refuse_torchrun


@dataclass(frozen=True)
class ReproductionRequest:
    """Which runs are wanted, where they lie, and how long may be trained."""

    target: str
    places: Places
    report: Path
    rows: tuple[str, ...] = ()
    """Names of recipes, * for any text; none: all of the target."""
    seeds: tuple[int, ...] = (0, 1, 2)
    length: Length = field(default_factory=Length)
    hours: float = inf


def reproduce(request: ReproductionRequest, options: Options) -> list[Job]:
    """Train what is missing of the wanted runs and write the page; return what still is missing.

    Raises UserError for what cannot be, before anything is trained.
    """
    refuse_torchrun("reproduce trains each run in one process, and several may work on one table")
    jobs = wanted(request)
    places = request.places
    if not request.hours and request.report.exists() and not places.results.is_dir():
        raise UserError(
            f"there is no folder {places.results}, and {request.report} would be emptied: give "
            "--results"
        )
    check_begun(jobs, places)
    read_results(places.results)  # what cannot be read is reported before hours are spent
    left = missing(jobs, places)
    say = options.console.print
    say(f"runs wanted: {len(jobs)}, missing in {places.results}: {len(left)}")

    def write() -> None:
        write_report(places.results, request.report)

    left = train_missing(jobs, places, options, request.hours, write)
    write()
    say(f"wrote {request.report}", soft_wrap=True)
    return left


def wanted(request: ReproductionRequest) -> list[Job]:
    """Return all runs of a request, each once, behind those that it starts from."""
    if isnan(request.hours) or request.hours < 0:
        raise UsageError(f"--budget {request.hours}: hours, 0 or more")
    before = request.length.pretrain_epochs
    if before is not None and before < 1:
        raise UsageError(f"--pretrain-epochs {before}: at least 1")
    if not request.seeds or len(set(request.seeds)) < len(request.seeds):
        given = " ".join(map(str, request.seeds)) or "nothing"
        raise UsageError(f"--seeds {given}: at least one, and each once")
    blocks = TARGETS[request.target]()
    if before not in (None, request.length.epochs) and all(block.phases_alike for block in blocks):
        raise UsageError(
            f"--pretrain-epochs {before}: {request.target} compares networks whose phases have as "
            "many epochs each; leave it out"
        )
    if not request.length.short and all(block.short_only for block in blocks):
        raise UsageError(f"{request.target} compares short schedules alone: give --short")
    names = _chosen(blocks, request.rows)
    found = [
        job for block in blocks for job in jobs_of(block, names, request.seeds, request.length)
    ]
    if not found:
        raise UsageError("these rows have no short schedule: leave --short out")
    jobs = list(with_parts(found))
    for job in jobs:
        check(job.recipe)
    return jobs


def write_report(results: Path, report: Path) -> None:
    """Write the page of what a folder holds, and its figures beside it.

    Raises UserError for a file of the folder that cannot be read, or where the disk takes no page.
    """
    found = read_results(results)
    make_directory(report.parent)
    for name, figure in draw(found):
        make_directory(report.parent / FIGURES)
        style.write(figure, report.parent / FIGURES / f"{name}.png")
    write_file(report, render(found, os.path.relpath(results, report.parent)))


def _chosen(blocks: Sequence[Block], patterns: Sequence[str]) -> list[str]:
    known = [row.recipe for block in blocks for row in block.rows]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            hint = did_you_mean(pattern, known, "* stands for any text", likeness=0.4)
            raise UsageError(f"--rows: there is no {pattern!r} there; {hint}")
    return [name for name in known if any(fnmatchcase(name, each) for each in patterns or ("*",))]
