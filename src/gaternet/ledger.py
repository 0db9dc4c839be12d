"""The paper's tables beside this code: gated filters and parameters, and measured errors."""

from dataclasses import dataclass
from pathlib import Path

import torch

from gaternet import paper, recipes
from gaternet.measured_runs import MeasuredRun, read_runs
from gaternet.model import GatedModel
from gaternet.paper import PaperRow
from gaternet.training.config import Recipe
from gaternet.training.starting import build_model


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
    runs: dict[str, list[MeasuredRun]] = {}
    for run in read_runs(results) if results else ():
        runs.setdefault(run.row, []).append(run)
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
