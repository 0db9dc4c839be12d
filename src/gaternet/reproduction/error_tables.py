"""Tables of test errors, what they differ by, and what that supports."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean

from gaternet.measured_runs import SHORT, MeasuredRun
from gaternet.recipes import RECIPES
from gaternet.reproduction.comparison import Difference, compare, spread
from gaternet.reproduction.markdown import listed, table
from gaternet.reproduction.targets import TARGETS, Block, Row

HEADS = (
    *("network", "parameters", "multiply-accumulates", "epochs", "paper's error", "test error"),
    *("seeds", "hours a run", "hardware"),
)
GROUPS = {"lower error": "a lower error than", "higher error": "a higher error than"}
"""Verdicts, as they are said of one network against others."""


@dataclass(frozen=True)
class Comparison:
    """Two rows' errors beside each other."""

    first: Row
    second: Row
    found: Difference


@dataclass(frozen=True)
class ErrorTable:
    """Runs of a block's rows that were all trained for as long."""

    block: Block
    length: str
    rows: tuple[tuple[Row, tuple[MeasuredRun, ...]], ...]
    comparisons: tuple[Comparison, ...]

    @property
    def title(self) -> str:
        """What it is a table of: CIFAR-10, ResNet-20, the paper's 164 epochs a phase."""
        return f"{self.block.title}, {self.length}"

    def errors(self, results: str) -> list[str]:
        """Return the table of errors; results: the folder of the files, seen from the page."""
        return table(HEADS, [_cells(row, runs, results) for row, runs in self.rows])

    def differences(self) -> list[str]:
        """Return the table of differences, in percentage points."""
        heads = ("network", "against", "paper", "here, percentage points", "the first has")
        return table(heads, map(_compared, self.comparisons))

    def verdict(self) -> str:
        """Say what the differences support."""
        if all(each.found.half_width is None for each in self.comparisons):
            return "One seed of each network: no difference is told from chance."
        seconds = {each.second.label for each in self.comparisons}
        firsts = {each.first.label for each in self.comparisons}
        said = _by_second if len(seconds) < len(firsts) else _by_first
        return " ".join(said(self.comparisons))


def error_tables(runs: Sequence[MeasuredRun]) -> Iterator[ErrorTable]:
    """Yield a table for each block and each length that two of its rows were trained for."""
    for target in TARGETS.values():
        for block in target():
            yield from _of_block(block, runs)


def _of_block(block: Block, runs: Sequence[MeasuredRun]) -> Iterator[ErrorTable]:
    names = {row.recipe for row in block.rows}
    mine = [run for run in runs if run.row in names and not run.differs]
    for (epochs, short), found in groupby(sorted(mine, key=_length), key=_length):
        kept = list(found)
        rows = [(row, [run for run in kept if run.row == row.recipe]) for row in block.rows]
        compared = tuple(_comparisons(block, {row.recipe: each for row, each in rows if each}))
        if compared:  # what compares with nothing says nothing
            yield ErrorTable(
                block,
                _told(block, -epochs, short=short),
                tuple((row, tuple(sorted(each, key=_seed))) for row, each in rows if each),
                compared,
            )


def _length(run: MeasuredRun) -> tuple[int, bool]:
    return (-run.epochs, run.recipe.endswith(SHORT))


def _seed(run: MeasuredRun) -> int:
    return run.seed


def _told(block: Block, epochs: int, *, short: bool) -> str:
    paper = RECIPES[block.rows[0].recipe].epochs
    if not short and epochs == paper:
        return f"the paper's {paper} epochs a phase"
    return f"{epochs} epochs a phase in place of {paper}"


def _comparisons(block: Block, runs: Mapping[str, Sequence[MeasuredRun]]) -> Iterator[Comparison]:
    errors = {name: [run.error for run in each] for name, each in runs.items()}
    for first, second in block.comparisons:
        if first in errors and second in errors:
            found = compare(errors, first, second)
            yield Comparison(block.row(first), block.row(second), found)


def _cells(row: Row, runs: Sequence[MeasuredRun], results: str) -> list[str]:
    errors = [run.error for run in runs]
    deviation = spread(errors)
    shown = f"{mean(errors):.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")
    hours = [run.wall_seconds / 3600 for run in runs if run.wall_seconds is not None]
    first = runs[0]
    return [
        row.label,
        f"{first.params / 1e6:.2f} M" if first.params else "",
        f"{first.macs / 1e6:.1f} M" if first.macs else "",
        "; ".join(dict.fromkeys(_epochs(run) for run in runs)),
        "" if row.paper_error is None else f"{row.paper_error:.2f} %",
        f"{shown} %",
        ", ".join(f"[{run.seed}]({results}/{run.file})" for run in runs),
        f"{mean(hours):.1f}" if hours else "",
        "; ".join(sorted({run.hardware for run in runs})),
    ]


def _epochs(run: MeasuredRun) -> str:
    before = dict.fromkeys(str(count) for count in (run.pretrain_epochs or {}).values())
    return " + ".join(filter(None, ("/".join(before), str(run.epochs))))


def _compared(each: Comparison) -> list[str]:
    one, other, found = each.first, each.second, each.found
    width = "" if found.half_width is None else f" ± {found.half_width:.2f}"
    printed = ""
    if one.paper_error is not None and other.paper_error is not None:
        printed = f"{one.paper_error - other.paper_error:+.2f}"
    return [one.label, other.label, printed, f"{found.difference:+.2f}{width}", found.verdict]


def _by_first(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield a sentence on each network that is measured against others."""
    for first in dict.fromkeys(each.first.label for each in comparisons):
        mine = [each for each in comparisons if each.first.label == first]
        parts = []
        for verdict, words in GROUPS.items():
            others = [each.second.label for each in mine if each.found.verdict == verdict]
            if others:
                parts.append(f"{words} {listed(others)}")
        has = [f"has {' and '.join(parts)}"] if parts else []
        others = [each.second.label for each in mine if each.found.verdict not in GROUPS]
        same = [f"is not told apart from {listed(others)}"] if others else []
        yield f"{first} {', and '.join(has + same)}."


def _by_second(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield a sentence on those that have a lower error than a network, a higher one, neither."""
    for second in dict.fromkeys(each.second.label for each in comparisons):
        mine = [each for each in comparisons if each.second.label == second]
        for verdict, words in GROUPS.items():
            firsts = [each.first.label for each in mine if each.found.verdict == verdict]
            if firsts:
                yield f"{words.capitalize()} {second}: {'; '.join(firsts)}."
        firsts = [each.first.label for each in mine if each.found.verdict not in GROUPS]
        if firsts:
            yield f"Not told apart from {second}: {'; '.join(firsts)}."
