"""Settings of the joint phase, λ among them: what trials on held-out images say of each."""

from collections.abc import Iterator, Sequence

from gaternet.recipes import RECIPES
from gaternet.reproduction.comparison import Difference, compare_by_counts
from gaternet.reproduction.markdown import listed, table
from gaternet.reproduction.results import Measurement, Trial, Trials

TITLE = "Settings of the joint phase"
AS_IT_IS = "the recipe as it is"
HEADS = (
    *("changed", "validation error", "against the recipe", "soft gates", "every gate open"),
    *("training error", "open gates", "always on", "always off", "multiply-accumulates"),
)
INTRODUCTION = """\
What the paper leaves open is tried on training images that were held out. All runs start from the
same pre-trained networks, one seed each, and differ in what is named; the control is the backbone
trained on without gates. Differences are in percentage points with 95 % intervals, of the same
images, and judged by McNemar's exact test at 5 %, for these very networks. Seeds vary besides,
which one of each does not show: more than one in twenty changes without effect will seem to have
one. Tables of one recipe have its run and the control in common. Training errors are of augmented
images under each run's own noise. Open gates are those of an image, and multiply-accumulates what
it needs on average, the gater's included, of the plain backbone's, where they were counted."""


def trials_section(trials: Sequence[Measurement[Trials]], results: str) -> Iterator[str]:
    """Yield the lines on the joint phase; results: the folder of the files, seen from the page."""
    if not trials:
        return
    yield f"## {TITLE}"
    yield ""
    yield INTRODUCTION
    for measured in trials:
        yield from ("", *_of_recipe(measured, results))
    yield ""


def _of_recipe(measured: Measurement[Trials], results: str) -> Iterator[str]:
    found = measured.found
    yield (
        f"[`{found.recipe}`]({results}/{measured.file}), {found.epochs} epochs a phase, "
        f"{found.validation:,} images of {found.data}: `{measured.command}`, {measured.hardware}, "
        f"{measured.date}."
    )
    yield ""
    yield from table(HEADS, [_cells(row, found.validation) for row in found.rows])
    yield ""
    yield " ".join(_verdicts(found))


def _cells(row: Trial, images: int) -> list[str]:
    change = _change(row, images)
    compared = f"{change.difference:+.2f} ± {change.half_width:.2f}" if row.changes else ""
    return [
        _named(row),
        f"{row.validation_error_percent:.2f} %",
        compared,
        _percent(row.soft_error_percent),
        _percent(row.all_open_error_percent),
        f"{row.training_error_percent:.2f} %",
        "" if row.mean_open is None else f"{row.mean_open:.0f} of {row.total:,}",
        _count(row.always_on),
        _count(row.always_off),
        "" if row.needed_share is None else f"{100 * row.needed_share:.0f} %",
    ]


def _verdicts(found: Trials) -> Iterator[str]:
    """Yield which changes matter, and what λ the recipe has."""
    changes = [row for row in found.rows if row.changes]
    for verdict, words in (
        ("lower error", "A lower error than"),
        ("higher error", "A higher error than"),
        ("not significant", "No significant difference from"),
    ):
        judged = [r for r in changes if _change(r, found.validation).verdict == verdict]
        if judged:
            yield f"{words} {AS_IT_IS}: {'; '.join(map(_named, judged))}."
    recipe = RECIPES.get(found.recipe)
    if recipe and recipe.gating:
        yield f"The recipe has λ = {recipe.gating.sparsity:g}."


def _change(row: Trial, images: int) -> Difference:
    return compare_by_counts(row.gained, row.lost, images)


def _named(row: Trial) -> str:
    if not row.changes:
        return AS_IT_IS
    return listed([f"`--{flag}`" for flag in row.changes.split()]) if row.gated else row.changes


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:.2f} %"


def _count(gates: int | None) -> str:
    return "" if gates is None else f"{gates:,}"
