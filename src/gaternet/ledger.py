"""The paper's tables beside this code: gated filters and parameters, and measured errors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gaternet import paper, recipes
from gaternet.errors import UserError
from gaternet.given_files import read_json, validate
from gaternet.model import GatedModel
from gaternet.paper import PaperRow
from gaternet.training.config import Recipe, flat, recipe_to_dict
from gaternet.training.starting import build_model

SHORT = "-short"
"""How the names of recipes with a shortened schedule end."""


@dataclass(frozen=True)
class MeasuredRun:
    """The test error of a run of a row's recipe, and what it was measured in."""

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


@dataclass(frozen=True)
class LedgerRow:
    """A row of the paper's tables and what this code makes of it."""

    table: int
    model: str
    """As the paper names it."""
    dataset: str
    gated_filters: int | None
    paper_gated_filters: int | None
    params: int
    paper_params: float
    """In millions."""
    agrees: bool
    """Whether the gated filters are the paper's, and the parameters to its printed digit."""
    note: str
    """Why a row cannot agree."""
    paper_error: float
    """Percent, top-1."""
    paper_top5_error: float | None
    measured: list[MeasuredRun] | None


def rows(results: Path | None = None) -> list[LedgerRow]:
    """Build every row's network on the meta device and compare it with the paper's Tables 1 to 3.

    results: a folder of measured runs, `result.json` files under any name

    Raises UserError for a folder that does not exist or a file in it that is no JSON.
    """
    runs = _read_runs(results) if results else {}
    return [_row(printed, runs) for printed in paper.ROWS]


def recipe_name(row: PaperRow) -> str:
    """Return the name of the recipe that reproduces a row: cifar10/resnet20-gated."""
    model = row.model.lower()
    if model.startswith("resnet-"):
        model = model.replace("-", "", 1)
    return f"{row.dataset}/{model}"


def _row(printed: PaperRow, runs: dict[str, list[MeasuredRun]]) -> LedgerRow:
    name = recipe_name(printed)
    params, gates = _count(recipes.get(name))
    same_params = f"{params / 1e6:.2f}" == f"{printed.params:.2f}"
    return LedgerRow(
        table=printed.table,
        model=printed.model,
        dataset=printed.dataset,
        gated_filters=gates,
        paper_gated_filters=printed.gated_filters,
        params=params,
        paper_params=printed.params,
        agrees=same_params and gates == printed.gated_filters,
        note=paper.NOTES.get((printed.model, printed.dataset), ""),
        paper_error=printed.error,
        paper_top5_error=printed.top5_error,
        measured=runs.get(name),
    )


def _count(recipe: Recipe) -> tuple[int, int | None]:
    """Return (parameters, gated filters) of a recipe's network."""
    with torch.device("meta"):
        model = build_model(recipe)
    gates = model.gate_count if isinstance(model, GatedModel) else None
    return sum(parameter.numel() for parameter in model.parameters()), gates


def _read_runs(folder: Path) -> dict[str, list[MeasuredRun]]:
    """Return the measured runs of a folder by the recipe of the row that they belong to."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: --results takes one of measured runs (*.json)")
    runs: dict[str, list[MeasuredRun]] = {}
    for file in sorted(folder.glob("*.json")):
        values = read_json(file)
        # Benchmarks lie there too: they name no recipe or measure no error.
        if isinstance(values, dict) and {"recipe", "test_error_percent"} <= values.keys():
            name = str(values["recipe"]).removesuffix(SHORT)
            runs.setdefault(name, []).append(_measured(values, name, file))
    return runs


def _measured(values: dict[str, Any], name: str, file: Path) -> MeasuredRun:
    full = recipes.RECIPES.get(name)
    try:
        told = {
            "recipe": values["recipe"],
            "shortened": values["recipe"] != name or bool(full and values["epochs"] < full.epochs),
            "error": values["test_error_percent"],
            "top5_error": values["test_top5_error_percent"],
            "epochs": values["epochs"],
            "pretrain_epochs": values["pretrain_epochs"],
            "seed": values["seed"],
            "hardware": values["hardware"],
            "differs": _differing(
                values.get("settings", {}), recipes.RECIPES.get(values["recipe"])
            ),
            "file": file.name,
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
