"""What a folder of measurements holds: runs, and the files that some benchmarks leave there.

NAME.json                 a run's result.json
sparsity_sweep*.json      benchmarks/sparsity_sweep.py
efficiency_*.json         benchmarks/efficiency_curve.py
findings_*.json           benchmarks/findings.py

Other JSON files are passed over.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from gaternet.analysis.behaviour import Behaviour
from gaternet.errors import UserError
from gaternet.given_files import read_json, validate
from gaternet.measured_runs import MeasuredRun, read_runs


@dataclass(frozen=True)
class SweepRow:
    """A gated run with one λ, on validation images."""

    sparsity: float
    validation_error_percent: float
    total: int
    always_on: int
    always_off: int
    mean_open: float


@dataclass(frozen=True)
class Sweep:
    """Runs of one recipe that differ in λ alone.

    epochs: of each phase
    validation: images that were held out
    """

    data: str
    recipe: str
    epochs: int
    validation: int
    rows: tuple[SweepRow, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for what no sweep finds."""
        if not self.rows or self.validation < 1:
            raise ValueError("rows, validation: there is at least one of each")
        if not all(0 <= row.validation_error_percent <= 100 for row in self.rows):
            raise ValueError("validation_error_percent: 0 to 100")


@dataclass(frozen=True)
class CurvePoint:
    """A network at a threshold, None for a plain one: error on test images, and what one costs.

    epochs: of the backbone, those before the gates included
    budget: what the gates were trained for, as a share of the plain backbone
    macs: multiply-accumulates that an image needs, mean, the gater's included
    median_ms, interval_ms: of a batch, in the form that was fastest
    """

    run: str
    backbone: str
    epochs: int
    threshold: float | None
    error_percent: float
    macs: float
    form: str
    median_ms: float
    interval_ms: tuple[float, float]
    budget: float | None = None


@dataclass(frozen=True)
class Curve:
    """Networks beside each other; batch: images at once, for the times."""

    batch: int
    rows: tuple[CurvePoint, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for what no curve has."""
        if not self.rows:
            raise ValueError("rows: there is at least one")


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
    sweeps: tuple[Measurement[Sweep], ...] = ()
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
        _measurements(folder, "sparsity_sweep*.json", Sweep),
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
        raise UserError(f"{file} is called {pattern} and is none: {error}") from None
    return Measurement(file.name, origin.command, origin.hardware, origin.date, found)
