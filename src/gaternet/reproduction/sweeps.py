"""λ, the weight of the L1 term: what the sweeps on validation images say of it."""

from collections.abc import Iterator, Sequence
from math import sqrt

from gaternet.recipes import RECIPES
from gaternet.reproduction.markdown import listed, table
from gaternet.reproduction.results import Measurement, Sweep, SweepRow

TITLE = "The weight of the L1 term"
HEADS = ("λ", "validation error", "open gates", "always on", "always off")
INTRODUCTION = """\
The paper prints no λ. Here it is chosen on training images that were held out, by runs that start
from the same pre-trained networks, one seed each. After ± stands the binomial standard error. Gates
are counted over the same images; open ones are those of an image."""
NORMAL = 1.96
"""Standard errors on either side of a 95 % interval."""


def sweep_section(sweeps: Sequence[Measurement[Sweep]], results: str) -> Iterator[str]:
    """Yield the lines on λ; results: the folder of the files, seen from the page."""
    if not sweeps:
        return
    yield f"## {TITLE}"
    yield ""
    yield INTRODUCTION
    for measured in sweeps:
        yield from ("", *_of_sweep(measured, results))
    yield ""


def standard_error(error: float, images: int) -> float:
    """Return the binomial standard error of an error rate, both in percent."""
    return sqrt(error * (100 - error) / images)


def untold(sweep: Sweep) -> list[SweepRow]:
    """Return the rows whose error is not told from the lowest, by 95 % intervals.

    The same images are seen by all, so that differences are known better than this supposes.
    """

    def squared(row: SweepRow) -> float:
        return standard_error(row.validation_error_percent, sweep.validation) ** 2

    lowest = min(sweep.rows, key=lambda row: row.validation_error_percent)
    return [
        row
        for row in sweep.rows
        if row.validation_error_percent - lowest.validation_error_percent
        <= NORMAL * sqrt(squared(row) + squared(lowest))
    ]


def _of_sweep(measured: Measurement[Sweep], results: str) -> Iterator[str]:
    sweep = measured.found
    yield (
        f"[`{sweep.recipe}`]({results}/{measured.file}), {sweep.epochs} epochs a phase, "
        f"{sweep.validation:,} images of {sweep.data}: `{measured.command}`, {measured.hardware}, "
        f"{measured.date}."
    )
    yield ""
    yield from table(HEADS, [_cells(row, sweep.validation) for row in sweep.rows])
    yield ""
    yield _choice(sweep)


def _cells(row: SweepRow, images: int) -> list[str]:
    error = row.validation_error_percent
    return [
        f"{row.sparsity:g}",
        f"{error:.2f} ± {standard_error(error, images):.2f} %",
        f"{row.mean_open:.0f} of {row.total:,}",
        f"{row.always_on:,}",
        f"{row.always_off:,}",
    ]


def _choice(sweep: Sweep) -> str:
    """Say which values the sweep leaves, and which one the recipe has."""
    lowest = min(sweep.rows, key=lambda row: row.validation_error_percent)
    kept = untold(sweep)
    others = [f"{row.sparsity:g}" for row in kept if row is not lowest]
    worse = [f"{row.sparsity:g}" for row in sweep.rows if row not in kept]
    parts = [f"λ = {lowest.sparsity:g} has the lowest error"]
    if others:
        parts.append(f"{listed(others)} {_be(others)} not told from it")
    if worse:
        parts.append(f"{listed(worse)} {_be(worse)} higher")
    return f"{'; '.join(parts)}. {_chosen(sweep, kept)}"


def _chosen(sweep: Sweep, kept: Sequence[SweepRow]) -> str:
    recipe = RECIPES.get(sweep.recipe)
    if recipe is None or recipe.gating is None:
        return "No recipe of this name has a λ."
    chosen = recipe.gating.sparsity
    row = next((row for row in sweep.rows if row.sparsity == chosen), None)
    if row is None:
        return f"The recipe has λ = {chosen:g}, which was not swept."
    if row not in kept:
        return f"The recipe has λ = {chosen:g}, which this speaks against."
    return (
        f"The recipe has λ = {chosen:g}: its error is not told from the lowest, with "
        f"{row.mean_open:.0f} of {row.total:,} gates open."
    )


def _be(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"
