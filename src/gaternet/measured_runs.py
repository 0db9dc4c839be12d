"""Measured runs: a folder of `result.json` files, under any names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaternet import recipes
from gaternet.errors import UserError
from gaternet.given_files import read_json, validate
from gaternet.right_images import unpack
from gaternet.training.config import Recipe, flat, recipe_to_dict

SHORT = "-short"
"""How the names of recipes with a shortened schedule end."""

ROUNDED = 0.001
"""Percentage points that an error may be off: three digits are written down."""


@dataclass(frozen=True)
class MeasuredRun:
    """The test error of a run, and what it was measured in."""

    recipe: str
    shortened: bool
    """Whether it was trained for fewer epochs than the paper's schedule has."""
    error: float
    """Percent, top-1."""
    top5_error: float | None
    epochs: int
    pretrain_epochs: dict[str, int | str] | None
    """Of the networks that it started from, by part; none where the weights were fresh."""
    seed: int
    hardware: str
    differs: list[str]
    """Settings in which it differs from its recipe, as given here."""
    file: str
    params: int | None = None
    macs: int | None = None
    """Multiply-accumulates of one image with every filter computed, the gater's included."""
    needed_macs: int | None = None
    """Of one image under its own gates, mean."""
    averaged: int = 0
    """Networks of as many epochs each that were averaged; none: the run is one network's."""
    wall_seconds: float | None = None
    """Of its own epochs, without those of the networks that it started from."""
    date: str | None = None
    fingerprint: str | None = None
    """Of the images that it was trained on."""
    images: int | None = None
    """Test images."""
    packed: str | None = None
    """Which of them it classifies rightly; see `right`."""

    def __post_init__(self) -> None:
        """Raise ValueError where the rightly classified images are not those of its error."""
        if self.packed is not None:
            if self.images is None:
                raise ValueError("test_images: right_images says nothing without their number")
            error = 100 * (1 - float(np.mean(unpack(self.packed, self.images))))
            if abs(error - self.error) > ROUNDED:
                raise ValueError(f"right_images: of {error:.3f} % error, not {self.error:.3f} %")

    @property
    def images_of_test(self) -> tuple[str | None, int | None]:
        """What tells its test images from others': of which data set, and how many."""
        return self.fingerprint, self.images

    @property
    def right(self) -> NDArray[np.bool_] | None:
        """Which test images it classifies rightly, (N,) bool, in their order; None: not kept."""
        if self.packed is None or self.images is None:
            return None
        return unpack(self.packed, self.images)

    @property
    def row(self) -> str:
        """The recipe with the paper's schedule that it is measured for."""
        return self.recipe.removesuffix(SHORT)


def read_runs(folder: Path) -> list[MeasuredRun]:
    """Return the measured runs of a folder, in the order of their files.

    Raises UserError for a folder that does not exist or a file in it that is no JSON.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: --results takes one of measured runs (*.json)")
    runs = []
    for file in sorted(folder.glob("*.json")):
        values = read_json(file)
        # Benchmarks lie there too: they name no recipe or measure no error.
        if isinstance(values, dict) and {"recipe", "test_error_percent"} <= values.keys():
            runs.append(_measured(values, file))
    return runs


def _measured(values: dict[str, Any], file: Path) -> MeasuredRun:
    name = str(values["recipe"])
    full = recipes.RECIPES.get(name.removesuffix(SHORT))
    try:
        told = {
            "recipe": values["recipe"],
            "shortened": name.endswith(SHORT) or bool(full and values["epochs"] < full.epochs),
            "error": values["test_error_percent"],
            "top5_error": values["test_top5_error_percent"],
            "epochs": values["epochs"],
            "pretrain_epochs": values["pretrain_epochs"],
            "seed": values["seed"],
            "hardware": values["hardware"],
            "differs": _differing(values.get("settings", {}), recipes.RECIPES.get(name)),
            "file": file.name,
            "params": values.get("parameters"),
            "macs": values.get("macs_per_image"),
            "needed_macs": values.get("macs_needed_per_image"),
            "averaged": len(values.get("averaged", ())),
            "wall_seconds": values.get("wall_seconds"),
            "date": values.get("date"),
            "fingerprint": (values.get("data") or {}).get("fingerprint"),
            "images": values.get("test_images"),
            "packed": values.get("right_images"),
        }
        return validate(MeasuredRun, told)
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file} is no result.json of a run: {error}") from None
    except KeyError as error:
        raise UserError(f"{file} says nothing of {error}: it is no result.json of a run") from None


def _differing(settings: dict[str, Any], recipe: Recipe | None) -> list[str]:
    """Return what a run was told other than its recipe; how it was computed does not count."""
    if recipe is None:
        return []
    usual = flat({name: v for name, v in recipe_to_dict(recipe).items() if name != "compute"})
    told = flat(settings)
    return [
        f"{name} {told[name]}"
        for name in usual
        if name in told and _plain(told[name]) != _plain(usual[name])
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
