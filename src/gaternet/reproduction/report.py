"""docs/results.md, from the files in results/: not one figure of it is typed by hand."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import mean

from gaternet.measured_runs import SHORT, MeasuredRun
from gaternet.recipes import RECIPES
from gaternet.reproduction.comparison import compare, spread
from gaternet.reproduction.targets import TARGETS, Block, Row

HEAD = """# Results

Written by `gaternet reproduce` from the files of measured runs; each names its command, settings,
hardware and seed. Test images give these errors and chose nothing. After ± stands the standard
deviation over seeds; of differences, half the width of a 95 % interval (Student's t, the variance
over seeds pooled over the networks of a table, no correction for asking several questions). The
paper prints one figure a row, and no spread. The gated network and the control start from the plain
network's runs and are trained on for as many epochs; the others are trained once.
"""


def render(runs: Iterable[MeasuredRun], results: str) -> str:
    """Return the page of all measured runs that belong to a table.

    results: the folder of their files, seen from the page
    """
    runs = list(runs)
    parts = [HEAD]
    for target in TARGETS.values():
        for block in target():
            parts += _of_block(block, runs, results)
    return "\n".join(parts)


def _of_block(block: Block, runs: Sequence[MeasuredRun], results: str) -> list[str]:
    """Return a block's tables: one for each length that anything of it was trained for."""
    names = {row.recipe for row in block.rows}
    mine = [run for run in runs if run.row in names and not run.differs]
    parts: list[str] = []
    for (epochs, short), found in groupby(sorted(mine, key=_length), key=_length):
        kept = list(found)
        compared = _comparisons(block, kept)
        if compared:  # what compares with nothing says nothing
            parts += [f"## {block.title}, {_told(kept[0], epochs, short=short)}", ""]
            parts += [*_table(block, kept, results), "", *compared, ""]
    return parts


def _length(run: MeasuredRun) -> tuple[int, bool]:
    return (-run.epochs, run.recipe.endswith(SHORT))


def _told(run: MeasuredRun, epochs: int, *, short: bool) -> str:
    paper = RECIPES[run.row].epochs
    if not short and -epochs == paper:
        return f"the paper's {paper} epochs a phase"
    return f"{-epochs} epochs a phase in place of {paper}"


def _table(block: Block, runs: Sequence[MeasuredRun], results: str) -> list[str]:
    heads = ("network", "parameters", "paper's error", "test error", "seeds", "hours", "hardware")
    lines = [_line(heads), _line(["---"] * len(heads))]
    for row in block.rows:
        mine = sorted((run for run in runs if run.row == row.recipe), key=lambda run: run.seed)
        if mine:
            lines.append(_line(_cells(row, mine, results)))
    return lines


def _cells(row: Row, runs: Sequence[MeasuredRun], results: str) -> list[str]:
    errors = [run.error for run in runs]
    deviation = spread(errors)
    shown = f"{mean(errors):.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")
    hours = [run.wall_seconds / 3600 for run in runs if run.wall_seconds is not None]
    return [
        row.label,
        f"{runs[0].params / 1e6:.2f} M" if runs[0].params else "",
        "" if row.paper_error is None else f"{row.paper_error:.2f} %",
        f"{shown} %",
        ", ".join(f"[{run.seed}]({results}/{run.file})" for run in runs),
        f"{mean(hours):.1f}" if hours else "",
        "; ".join(sorted({run.hardware for run in runs})),
    ]


def _comparisons(block: Block, runs: Sequence[MeasuredRun]) -> list[str]:
    errors = {
        row.recipe: [run.error for run in runs if run.row == row.recipe] for row in block.rows
    }
    errors = {name: values for name, values in errors.items() if values}
    lines = []
    for first, second in block.comparisons:
        if first not in errors or second not in errors:
            continue
        found = compare(errors, first, second)
        width = "" if found.half_width is None else f" ± {found.half_width:.2f}"
        one, other = block.row(first), block.row(second)
        printed = ""
        if one.paper_error is not None and other.paper_error is not None:
            printed = f"{one.paper_error - other.paper_error:+.2f}"
        cells = (one.label, other.label, printed, f"{found.difference:+.2f}{width}", found.verdict)
        lines.append(_line(cells))
    heads = ("network", "against", "paper", "here, percentage points", "the first has")
    return [_line(heads), _line(["---"] * len(heads)), *lines] if lines else []


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
