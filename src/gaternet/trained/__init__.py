"""Trained networks that come with the package, by name wherever a run is read.

trained/NAME/ is a run directory with what evaluating needs and no more: config.json, one
checkpoint without its training state, and as its card result.json, what was measured and how it
was trained. `benchmarks/ship.py` makes one of a run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaternet.given_files import read_json
from gaternet.spelling import near_names

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class TrainedModel:
    """A network that comes with the package, as its card has it."""

    name: str
    recipe: str
    epochs: int
    seed: int
    test_error_percent: float
    parameters: int
    bytes: int
    """Of all its files."""


def names() -> list[str]:
    """Return the names of the networks that come with the package."""
    return sorted(file.parent.name for file in FOLDER.glob("*/config.json"))


def located(run: str | Path) -> Path:
    """Return where a run lies: at its own path, or in the package where nothing lies there."""
    path = Path(run)
    shipped = str(path) in names() and not path.exists()
    return FOLDER / path if shipped else path


def name_of(run: Path) -> str | None:
    """Return the name of the network of the package that lies in a directory; None: another's."""
    path = run.resolve()
    return path.name if path.parent == FOLDER.resolve() and path.name in names() else None


def suggestion(run: Path) -> str:
    """Return what a message about a run that is not there ends with, where a name is like it."""
    near = near_names(str(run), names())
    return f"; did you mean {' or '.join(near)}, which `gaternet models` lists?" if near else ""


def card(name: str) -> dict[str, Any]:
    """Return what was measured of a network of the package, and how it was trained."""
    found: dict[str, Any] = read_json(FOLDER / name / "result.json")
    return found


def models() -> list[TrainedModel]:
    """Return the networks that come with the package."""
    return [_model(name, card(name)) for name in names()]


def size(directory: Path) -> int:
    """Return the bytes of all files of a directory."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _model(name: str, about: dict[str, Any]) -> TrainedModel:
    kept = ("recipe", "epochs", "seed", "test_error_percent", "parameters")
    return TrainedModel(name, **{key: about[key] for key in kept}, bytes=size(FOLDER / name))
