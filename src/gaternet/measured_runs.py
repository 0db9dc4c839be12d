"""Measured runs: a folder of `result.json` files, under any names."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaternet import recipes
from gaternet.binarizers import GateForm
from gaternet.errors import UserError
from gaternet.given_files import read_json, validate
from gaternet.right_images import Judged
from gaternet.training.config import Recipe, flat, parts, recipe_to_dict

SHORT = "-short"
"""How the names of recipes with a shortened schedule end."""


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
    """All that it was trained on, one behind the other: "…; …"."""
    differs: list[str]
    """Settings in which it differs from its recipe, as given here."""
    file: str
    params: int | None = None
    macs: int | None = None
    """Multiply-accumulates of one image with every filter computed, the gater's included."""
    needed_macs: int | None = None
    """Of one image under its own gates, mean."""
    gates: int | None = None
    open_gates: float | None = None
    """Of an image, mean; none where gates are soft, which are open in part."""
    averaged: int = 0
    """Networks of as many epochs each that were averaged; none: the run is one network's."""
    wall_seconds: float | None = None
    """Of its own epochs, without those of the networks that it started from."""
    date: str | None = None
    training_error: float | None = None
    """Percent, of the last epoch's augmented images under training's gates."""
    torch: str | None = None
    """Its version."""
    precision: str | None = None
    """The number format that it was trained in; none: it is not known, or nothing was trained."""
    judged: Judged | None = None
    """Which test images it classifies rightly; none where that was not kept."""

    def __post_init__(self) -> None:
        """Raise ValueError where the rightly classified images are not those of its error."""
        if self.judged:
            self.judged.check(self.error)

    @property
    def row(self) -> str:
        """The recipe with the paper's schedule that it is measured for."""
        return self.recipe.removesuffix(SHORT)


def machines(runs: Iterable[MeasuredRun]) -> list[str]:
    """Return what runs were trained on, each machine once."""
    return sorted({machine for run in runs for machine in run.hardware.split("; ")})


def read_runs(folder: Path) -> list[MeasuredRun]:
    """Return the measured runs of a folder, in the order of their files.

    Raises UserError for a folder that does not exist or a file in it that is no JSON.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}: give --results one of measured runs (*.json)"
        )
    runs = []
    for file in sorted(folder.glob("*.json")):
        values = read_json(file)
        # Benchmarks lie there too: they name no recipe or measure no error.
        if isinstance(values, dict) and {"recipe", "test_error_percent"} <= values.keys():
            runs.append(_measured(values, file))
    return runs


def _measured(values: dict[str, Any], file: Path) -> MeasuredRun:
    name = str(values["recipe"])
    gates, soft = values.get("gates") or {}, values.get("gate_form") == GateForm.SOFT
    full = recipes.RECIPES.get(name.removesuffix(SHORT))
    try:
        fields = {
            "recipe": values["recipe"],
            "shortened": name.endswith(SHORT) or bool(full and _is_shortened(values, full)),
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
            "gates": gates.get("total"),
            "open_gates": None if soft else gates.get("mean_open"),
            "averaged": len(values.get("averaged", ())),
            "wall_seconds": values.get("wall_seconds"),
            "date": values.get("date"),
            "training_error": values.get("training_error_percent"),
            "torch": values.get("torch"),
            "precision": (values.get("computed_with") or {}).get("precision"),
            "judged": values.get("judged"),
        }
        return validate(MeasuredRun, fields)
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file} is not a run's result.json: {error}") from None
    except KeyError as error:
        raise UserError(f"{file} has no {error}: it is not a run's result.json") from None


def _is_shortened(values: dict[str, Any], full: Recipe) -> bool:
    """Whether a run, or what it started from, was trained for less than its recipe has."""
    before = values["pretrain_epochs"] or {}
    begun = zip(parts(full), full.pretrain, strict=False)
    wanted = {part: recipes.get(name).epochs for part, name in begun}
    less = (before[part] < epochs for part, epochs in wanted.items() if _is_count(before.get(part)))
    return values["epochs"] < full.epochs or any(less)


def _is_count(epochs: object) -> bool:
    return isinstance(epochs, int)  # timm's own training is named by a word


def _differing(settings: dict[str, Any], recipe: Recipe | None) -> list[str]:
    """Return the settings in which a run differs from its recipe, but for how it was computed."""
    if recipe is None:
        return []
    usual = flat({name: v for name, v in recipe_to_dict(recipe).items() if name != "compute"})
    given = flat(settings)
    return [
        f"{name} {given[name]}"
        for name in usual
        if name in given and _plain(given[name]) != _plain(usual[name])
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
