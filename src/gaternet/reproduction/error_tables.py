"""Tables of test errors, and of what they differ by."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

from gaternet.measured_runs import SHORT, MeasuredRun, machines
from gaternet.recipes import RECIPES
from gaternet.reproduction.comparison import Difference, compare, compare_on_images, spread
from gaternet.reproduction.markdown import listed, table
from gaternet.reproduction.targets import TARGETS, Block, Row
from gaternet.reproduction.verdicts import Comparison, verdict
from gaternet.training.starting import SEED_OFFSETS

HEADS = (
    *("network", "parameters", "multiply-accumulates", "open gates", "epochs", "paper's error"),
    *("test error", "seeds", "training error", "hours", "hardware"),
)
DIFFERENCE_HEADS = (
    *("network", "against", "paper", "here, percentage points", "the first has"),
    "multiply-accumulates needed",
)
NOTE = """\
The short schedule is not the paper's: cosine with warm-up, a peak rate of {rate:g} ({joint:g} for
gated networks and controls), Nesterov's momentum, weight decay {decay:g}. Gates start open (bias
{bias:g}), λ is {sparsity:g}, the noise fades between {fades:.0%} and {faded:.0%} of the epochs, and
a gated network's BatchNorm statistics are measured again at the end. Rows that change the kind of
gates follow this as far as that kind allows (`gaternet recipes show RECIPE`). Compare rows with
each other rather than with the paper's figures.
"""


@dataclass(frozen=True)
class ErrorTable:
    """Runs of a block's rows: those that go on had as long, and those that start fresh what they
    are to have beside these."""

    block: Block
    length: str
    short: bool
    rows: tuple[tuple[Row, tuple[MeasuredRun, ...]], ...]
    comparisons: tuple[Comparison, ...]

    @property
    def title(self) -> str:
        """What it is a table of: CIFAR-10, ResNet-20, the paper's 164 epochs a phase."""
        return f"{self.block.title}, {self.length}"

    def errors(self, results: str) -> list[str]:
        """Return the table of errors; results: the folder of the files, seen from the page."""
        return table(HEADS, [_cells(row, runs, results) for row, runs in self.rows])

    def note(self) -> str:
        """Say in what a short schedule differs from the paper's."""
        recipe = RECIPES[f"{self.block.rows[0].recipe}{SHORT}"]
        gated = next(
            each
            for row in self.block.rows
            if (each := RECIPES.get(row.recipe + SHORT)) and each.gating
        )
        assert gated.gating
        return NOTE.format(
            rate=recipe.optimizer.lr,
            joint=gated.optimizer.lr,
            decay=recipe.optimizer.weight_decay,
            bias=gated.gating.opening_bias,
            sparsity=gated.gating.sparsity,
            fades=gated.gating.anneal_from,
            faded=gated.gating.anneal_until,
        )

    def differences(self) -> list[str]:
        """Return the table of differences, in percentage points."""
        return table(DIFFERENCE_HEADS, map(_compared, self.comparisons))

    def verdict(self) -> str:
        """Say what the differences support."""
        return " ".join((verdict(self.comparisons), *_formats(self.rows)))


def error_tables(runs: Sequence[MeasuredRun]) -> Iterator[ErrorTable]:
    """Yield a table for each block and each length that two of its rows were trained for."""
    for target in TARGETS.values():
        for block in target():
            yield from _of_block(block, runs)


class _Phases(NamedTuple):
    """How long networks were trained: from fresh weights, and those that go on from them."""

    before: int
    epochs: int
    short: bool


def _of_block(block: Block, runs: Sequence[MeasuredRun]) -> Iterator[ErrorTable]:
    names = {row.recipe for row in block.rows}
    mine = sorted((run for run in runs if run.row in names and not run.differs), key=_seed)
    trained = [(run, found) for run in mine if (found := _phases(run)) and _fit(block, found)]
    for phases in sorted({found for _, found in trained}, key=_longest_first):
        kept = [run for run, found in trained if _belongs(block, run, found, phases)]
        if not block.phases_alike:
            kept = _of_seeds_that_go_on(kept)
        rows = [(row, tuple(run for run in kept if run.row == row.recipe)) for row in block.rows]
        shown = tuple((row, each) for row, each in rows if each)
        compared = tuple(_comparisons(block, {row.recipe: each for row, each in shown}))
        about = block.subject is None or block.subject in {row.recipe for row, _ in shown}
        if compared and about:  # what compares with nothing says nothing
            yield ErrorTable(block, _schedule(block, phases), phases.short, shown, compared)


def _phases(run: MeasuredRun) -> _Phases | None:
    """Return for how long a run was trained; None where it did not start as its recipe does.

    From fresh weights in place of pre-trained ones, from timm's, or from networks of different
    lengths.
    """
    short, begun = run.recipe.endswith(SHORT), set((run.pretrain_epochs or {}).values())
    if not _goes_on(run):
        return None if begun else _Phases(run.epochs, run.epochs, short)
    before = begun.pop() if len(begun) == 1 else None
    return _Phases(before, run.epochs, short) if isinstance(before, int) else None


def _fit(block: Block, phases: _Phases) -> bool:
    if block.short_only and not phases.short:
        return False
    return phases.before == phases.epochs or not block.phases_alike


def _goes_on(run: MeasuredRun) -> bool:
    """Whether a run's recipe starts from pre-trained networks."""
    recipe = RECIPES.get(run.recipe)
    return bool(recipe and recipe.pretrain)


def _belongs(block: Block, run: MeasuredRun, mine: _Phases, phases: _Phases) -> bool:
    """Whether a run was trained so, or from fresh weights for as long as its row says."""
    if _goes_on(run):
        return mine == phases
    together = phases.before + phases.epochs
    expected = together if block.row(run.row).as_long else phases.before
    return (mine.before, mine.short) == (expected, phases.short)


def _of_seeds_that_go_on(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Return what goes on from trained networks, and of all else what belongs to the same seeds."""
    seeds = {run.seed for run in runs if _goes_on(run)}
    plain = {seed + SEED_OFFSETS["backbone"] for seed in seeds}
    return [run for run in runs if _goes_on(run) or run.seed in (seeds if run.averaged else plain)]


def _longest_first(phases: _Phases) -> tuple[int, int, bool]:
    return -phases.epochs, -phases.before, phases.short


def _seed(run: MeasuredRun) -> int:
    return run.seed


def _schedule(block: Block, phases: _Phases) -> str:
    paper = RECIPES[block.rows[0].recipe].epochs
    if phases.before != phases.epochs:
        return f"{phases.before} epochs, then {phases.epochs}, in place of {paper} each"
    if not phases.short and phases.epochs == paper:
        return f"the paper's {paper} epochs a phase"
    shortened = f"{phases.epochs} epochs a phase in place of {paper}"
    return shortened if phases.short else f"the paper's schedule in {shortened}"


def _comparisons(block: Block, runs: Mapping[str, Sequence[MeasuredRun]]) -> Iterator[Comparison]:
    errors = {name: [run.error for run in each] for name, each in runs.items()}
    # An ensemble has no seeds of its own: it is made of runs that are in the table already.
    pool = [errors[name] for name, each in runs.items() if not each[0].averaged]
    possible = [pair for pair in block.comparisons if errors.keys() >= set(pair)]
    beside = [pair for pair in block.beside if errors.keys() >= set(pair)]
    for first, second in [*beside, *possible] if possible else ():
        of_seeds = compare(errors[first], errors[second], pool)
        found = _wider(of_seeds, _on_images(runs[first], runs[second]))
        cost = _cost_ratio(runs[first], runs[second])
        yield Comparison(block.row(first), block.row(second), found, cost)


def _cost_ratio(one: Sequence[MeasuredRun], other: Sequence[MeasuredRun]) -> float | None:
    """Return the ratio of what two networks need, with closed filters skipped; means over seeds."""
    first, second = _needed(one), _needed(other)
    return first / second if first and second else None


def _needed(runs: Sequence[MeasuredRun]) -> float | None:
    costs = [run.needed_macs or run.macs for run in runs]
    known = [cost for cost in costs if cost]
    return mean(known) if known else None


def _on_images(one: Sequence[MeasuredRun], other: Sequence[MeasuredRun]) -> Difference | None:
    """Compare two networks on the same images; None where of one of them these are not known."""
    judged = [run.judged for run in (*one, *other) if run.judged]
    if len(judged) < len(one) + len(other):
        return None
    if not all(each.is_of_same_images(judged[0]) for each in judged):
        return None
    bits = [each.bits for each in judged]
    return compare_on_images(bits[: len(one)], bits[len(one) :])


def _wider(seeds: Difference, images: Difference | None) -> Difference:
    """Return which of two says less: that of other seeds or, if there is one, of other images."""
    if images and images.half_width and images.half_width > (seeds.half_width or 0):
        return images
    return seeds


def _cells(row: Row, runs: Sequence[MeasuredRun], results: str) -> list[str]:
    trained = [run.training_error for run in runs if run.training_error is not None]
    hours = [f"{run.wall_seconds / 3600:.1f}" for run in runs if run.wall_seconds is not None]
    return [
        row.label,
        f"{runs[0].params / 1e6:.2f} M" if runs[0].params else "",
        _macs(runs),
        _open_gates(runs),
        "; ".join(dict.fromkeys(_epochs(run) for run in runs)),
        "" if row.paper_error is None else f"{row.paper_error:.2f} %",
        _mean([run.error for run in runs]),
        ", ".join(f"[{run.seed}]({results}/{run.file})" for run in runs),
        _mean(trained)
        + (f" ({len(trained)} of {len(runs)})" if 0 < len(trained) < len(runs) else ""),
        ", ".join(hours),
        _computed_with(runs),
    ]


def _mean(errors: Sequence[float]) -> str:
    """Return the mean of seeds with their standard deviation, where there are several."""
    if not errors:
        return ""
    deviation = spread(errors)
    return f"{mean(errors):.2f}{'' if deviation is None else f' ± {deviation:.2f}'} %"


def _macs(runs: Sequence[MeasuredRun]) -> str:
    """Return multiply-accumulates, and what is left of them without closed filters, mean."""
    macs, needed = runs[0].macs, [run.needed_macs for run in runs if run.needed_macs is not None]
    if not macs:
        return ""
    whole, left = f"{macs / 1e6:.1f} M", f"{mean(needed) / 1e6:.1f} M" if needed else ""
    return whole if left in ("", whole) else f"{whole}, {left} needed"


def _open_gates(runs: Sequence[MeasuredRun]) -> str:
    """Return how many gates an image opens, mean, of how many there are; of soft ones nothing."""
    found = [run.open_gates for run in runs if run.open_gates is not None]
    return f"{mean(found):.0f} of {runs[0].gates:,}" if found and runs[0].gates else ""


def _computed_with(runs: Sequence[MeasuredRun]) -> str:
    versions = sorted({run.torch for run in runs if run.torch})
    torch = [f"torch {', '.join(versions)}"] if versions else []
    formats = sorted({run.precision for run in runs if run.precision})
    return "; ".join([*machines(runs), *formats, *torch])


def _formats(rows: Sequence[tuple[Row, Sequence[MeasuredRun]]]) -> Iterator[str]:
    """Yield which rows were trained in which number format, where not all were in the same."""
    labels: dict[str, list[str]] = {}
    for row, runs in rows:
        for precision in sorted({run.precision for run in runs if run.precision}):
            labels.setdefault(precision, []).append(row.label)
    if len(labels) > 1:
        trained = "; ".join(f"{name}: {listed(found)}" for name, found in sorted(labels.items()))
        yield (
            f"Not all were trained in the same number format ({trained}); a part of their "
            "differences may come from that."
        )


def _epochs(run: MeasuredRun) -> str:
    """Return the epochs of each network that was trained, before the last phase and in it."""
    if run.averaged:
        return f"{run.averaged} × {run.epochs}"
    before = run.pretrain_epochs or {}
    phases = [f"{before[part]} + {run.epochs}" for part in ("backbone", "gater") if part in before]
    return ", gater ".join(phases) or str(run.epochs)


def _compared(each: Comparison) -> list[str]:
    one, other, found = each.first, each.second, each.found
    width = "" if found.half_width is None else f" ± {found.half_width:.2f}"
    width += (", of the same images" if found.images else ", over seeds") if width else ""
    printed = ""
    if one.paper_error is not None and other.paper_error is not None:
        printed = f"{one.paper_error - other.paper_error:+.2f}"
    cost = "" if each.cost is None else f"{each.cost:.2f} ×"
    shown = f"{found.difference:+.2f}{width}"
    return [one.label, other.label, printed, shown, found.verdict, cost]
