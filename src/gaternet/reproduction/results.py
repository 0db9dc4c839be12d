"""What a folder of measurements holds: runs, and the files that some benchmarks leave there.

NAME.json                 a run's result.json
trials_*.json             benchmarks/joint_trials.py
efficiency_*.json         benchmarks/efficiency_curve.py
findings_*.json           benchmarks/findings.py

Other JSON files are passed over.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import ConfigDict

from gaternet.analysis.behaviour import Behaviour
from gaternet.errors import UserError
from gaternet.given_files import read_json, validate
from gaternet.measured_runs import MeasuredRun, read_runs
from gaternet.right_images import Judged

Mask = Literal["trained", "majority"]


@dataclass(frozen=True)
class Trial:
    """A run whose joint phase differs from its recipe's, on held-out images.

    changes: flags of `gaternet train`; none: the recipe as it is
    training_error_percent: of the last epoch, on augmented images, under training's gates
    gained: images that it classifies rightly and the recipe as it is does not; lost: the reverse
    soft_error_percent: under soft gates, where the binarizer has some
    all_open_error_percent: of the backbone with every gate open
    total, always_on, always_off, mean_open: gates, those that are so for all images, and how many
        an image opens; of gated runs
    needed_share: multiply-accumulates that an image needs, the gater's included, as a share of the
        plain backbone's, where they were counted
    """

    changes: str
    gated: bool
    validation_error_percent: float
    training_error_percent: float
    gained: int
    lost: int
    soft_error_percent: float | None = None
    all_open_error_percent: float | None = None
    total: int | None = None
    always_on: int | None = None
    always_off: int | None = None
    mean_open: float | None = None
    needed_share: float | None = None


@dataclass(frozen=True)
class Trials:
    """Runs of one recipe that start from the same pre-trained networks.

    epochs: of each phase
    validation: images that were held out
    """

    data: str
    recipe: str
    epochs: int
    validation: int
    rows: tuple[Trial, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for what no trials find."""
        if self.validation < 1:
            raise ValueError("validation: there is at least one image")
        as_they_are = [row for row in self.rows if not row.changes]
        if len(as_they_are) != 1:
            raise ValueError("rows: one is the recipe as it is")
        for row in self.rows:
            if min(row.gained, row.lost) < 0 or not row.gained + row.lost <= self.validation:
                raise ValueError(f"gained, lost: there are {self.validation} images")
            counts = (row.total, row.always_on, row.always_off, row.mean_open)
            if [each is not None for each in counts] != [row.gated] * len(counts):
                raise ValueError("total, always_on, always_off, mean_open: gated runs have them")
            more = row.validation_error_percent - as_they_are[0].validation_error_percent
            if abs(more * self.validation / 100 - (row.lost - row.gained)) > 0.5:
                raise ValueError("gained, lost: their difference is that of the errors")


@dataclass(frozen=True)
class Point:
    """A network at a threshold: error on test images, and what one costs.

    epochs: of the backbone, those before the gates included
    goes_on: whether it was trained further, with gates or without
    budget: what the gates were trained for, as a share of the plain backbone
    mask: where all images have the same gates, whether these were trained so, or are those that a
        network's own open for most training images
    threshold: of gates that are chosen by image, and its offset from that which they were trained
        for; None where there are none
    judged: which test images it classifies rightly
    macs: multiply-accumulates that an image needs, mean, the gater's included
    """

    run: str
    backbone: str
    epochs: int
    goes_on: bool
    budget: float | None
    mask: Mask | None
    threshold: float | None
    offset: float | None
    error_percent: float
    judged: Judged
    macs: float


@dataclass(frozen=True)
class CurvePoint(Point):
    """A network at a threshold, and the time of a batch in the form that was fastest."""

    form: str
    median_ms: float
    interval_ms: tuple[float, float]

    __pydantic_config__ = ConfigDict(extra="forbid")  # of other versions some say other things

    @property
    def plain(self) -> bool:
        """Whether it has no gates at all."""
        return self.threshold is None and self.mask is None


@dataclass(frozen=True)
class Curve:
    """Networks beside each other; batch: images at once, for the times."""

    batch: int
    rows: tuple[CurvePoint, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for what no curve has."""
        if not self.rows:
            raise ValueError("rows: there is at least one")
        for row in self.rows:
            if not row.judged.is_of_same_images(self.rows[0].judged):
                raise ValueError(f"rows: {row.run} is judged on other images than the first")
            row.judged.check(row.error_percent)


T = TypeVar("T")


@dataclass(frozen=True)
class Measurement(Generic[T]):
    """What a benchmark found, and by which command, on what and when."""

    file: str
    command: str
    hardware: str
    date: str
    found: T

    @property
    def name(self) -> str:
        """What the file is called, without its suffix."""
        return self.file.removesuffix(".json")


@dataclass(frozen=True)
class Results:
    """What a folder holds, in the order of its files' names."""

    runs: tuple[MeasuredRun, ...] = ()
    trials: tuple[Measurement[Trials], ...] = ()
    curves: tuple[Measurement[Curve], ...] = ()
    behaviours: tuple[Measurement[Behaviour], ...] = ()


def read_results(folder: Path) -> Results:
    """Read a folder of measurements; of none there is nothing.

    Raises UserError that names the file which is damaged, or is not what its name says.
    """
    if not folder.is_dir():
        return Results()
    return Results(
        tuple(read_runs(folder)),
        _measurements(folder, "trials_*.json", Trials),
        _measurements(folder, "efficiency_*.json", Curve),
        _measurements(folder, "findings_*.json", Behaviour),
    )


@dataclass(frozen=True)
class _Origin:
    command: str
    hardware: str
    date: str


def _measurements(folder: Path, pattern: str, kind: type[T]) -> tuple[Measurement[T], ...]:
    return tuple(_measurement(file, pattern, kind) for file in sorted(folder.glob(pattern)))


def _measurement(file: Path, pattern: str, kind: type[T]) -> Measurement[T]:
    values = read_json(file)
    try:
        origin, found = validate(_Origin, values), validate(kind, values)
    except ValueError as error:
        raise UserError(
            f"{file} is called {pattern} and is none: {error}; measure it again, or move it away"
        ) from None
    return Measurement(file.name, origin.command, origin.hardware, origin.date, found)
