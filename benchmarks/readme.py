"""Fill the README's tables from results/, as `gaternet reproduce` fills docs/results.md.

    python benchmarks/readme.py

What stands between `<!-- errors -->`, `<!-- gates -->` or `<!-- costs -->` and the next
`<!-- end -->` is written anew.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap

from gaternet.analysis.behaviour import Behaviour
from gaternet.analysis.swaps import MAJORITY, OTHER_CLASS
from gaternet.disk import write_file
from gaternet.errors import UserError
from gaternet.measured_runs import machines
from gaternet.recipes import RECIPES
from gaternet.reproduction.curves import as_trained, beside_plain, label, shown
from gaternet.reproduction.error_tables import ErrorTable, error_tables
from gaternet.reproduction.gate_swaps import swap_table
from gaternet.reproduction.markdown import table
from gaternet.reproduction.results import CurvePoint, Results, read_results
from gaternet.reproduction.targets import table1
from report import mistakes_reported

RESULTS = "results"
FIGURES = "docs/figures"
WIDTH = 100
"""Characters of a line of text."""
SHOWN = 8
"""Columns of the table of errors: without training error, hours and hardware."""


def fill(text: str, found: Results) -> str:
    """Return a page with its marked parts written from what was measured.

    Raises UserError where a part is marked that nothing is measured for, or a mark is missing.
    """
    for name, lines in (
        ("errors", errors(found)),
        ("gates", gates(found)),
        ("costs", costs(found)),
    ):
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, mark, marked = text.partition(begin)
        _, closed, after = marked.partition(end)
        if not mark or not closed:
            raise UserError(f"there is no {begin.strip()} … {end} in the page")
        text = "\n".join((before + begin, *lines, "", end + after))
    return text


def errors(found: Results) -> Iterator[str]:
    """Yield the first table of the paper's networks on each data set, and what it supports."""
    first: dict[str, ErrorTable] = {}
    for each in error_tables(found.runs):
        if each.block in table1():
            first.setdefault(RECIPES[each.block.rows[0].recipe].data.title, each)
    if not first:
        raise UserError(f"{RESULTS} holds no two runs that belong together")
    yield "\n\n".join("\n".join(_error_table(each)) for each in first.values())


def _error_table(shown: ErrorTable) -> Iterator[str]:
    dates = sorted({run.date for _, runs in shown.rows for run in runs if run.date})
    hardware = machines(run for _, runs in shown.rows for run in runs)
    yield f"{shown.title}; {' to '.join({dates[0]: 0, dates[-1]: 0})}, {'; '.join(hardware)}:"
    yield ""
    for line in shown.errors(RESULTS):
        yield "|".join([*line.split("|")[: SHOWN + 1], ""])
    yield ""
    yield shown.verdict()


def gates(found: Results) -> Iterator[str]:
    """Yield what the gates of the best run do, and the accuracy under others."""
    if not found.behaviours:
        raise UserError(f"{RESULTS} holds no findings_*.json: run benchmarks/findings.py")
    measured = max(found.behaviours, key=lambda each: each.found.accuracy)
    gates = measured.found
    on, off = (
        sum(getattr(each, kind) for each in gates.layers) for kind in ("always_on", "always_off")
    )
    yield f"`{gates.recipe}`, {gates.epochs} epochs ([numbers]({RESULTS}/{measured.file})): of its"
    yield f"{gates.gates:,} gates {on:,} are open for all of {gates.images:,} {gates.split} images,"
    yield f"{off:,} for none, and {gates.gates - on - off:,} depend on the image; an image opens"
    yield f"{gates.open_gates.mean:,.0f} on average."
    yield ""
    yield from swap_table(gates.swaps)
    yield ""
    yield from wrap(" ".join(_meaning(gates)), WIDTH)


def costs(found: Results) -> Iterator[str]:
    """Yield the first curve of error against what an image costs, and what it tells."""
    if not found.curves:
        raise UserError(f"{RESULTS} holds no efficiency_*.json: run benchmarks/efficiency_curve.py")
    measured = found.curves[0]
    yield f"![Error over multiply-accumulates, and over time]({FIGURES}/{measured.name}.png)"
    yield ""
    points = measured.found.rows
    epochs = max(point.epochs for point in points if not point.plain)
    alike = [point for point in points if point.epochs == epochs]
    heads = ("network", "test error", "against plain", "multiply-accumulates", "milliseconds")
    yield from table(heads, (_cost(point, alike) for point in as_trained(alike)))
    yield ""
    yield f"One run and {epochs} epochs each, in two phases where a network was trained further,"
    yield "with gates or without, and those of a gater not counted;"
    yield f"{measured.hardware}, {measured.date}"
    yield f"([numbers and every threshold]({RESULTS}/{measured.file})). *Against plain*: percentage"
    yield "points of error, less those of straight lines between the best plain networks, with 95 %"
    yield "intervals of other images. Gates by image are timed in this package's runtime, others"
    yield "in the fastest of a plain network's forms."


def _cost(point: CurvePoint, points: Sequence[CurvePoint]) -> list[str]:
    gap = beside_plain(point, points)
    return [
        label(point),
        f"{point.error_percent:.2f} %",
        "" if gap is None else shown(gap),
        f"{point.macs / 1e6:.1f} M",
        f"{point.median_ms:.2f}",
    ]


def _meaning(gates: Behaviour) -> Iterator[str]:
    """Yield what the backbone takes from its gates; whether they help is the control's answer."""
    swaps = {swap.gates: swap for swap in gates.swaps}
    majority, other = swaps.get(MAJORITY), swaps.get(OTHER_CLASS)
    if majority:
        depends = majority.change < -majority.interval
        yield f"The backbone {'depends' if depends else 'is not seen to depend'} on gates that are"
        yield "chosen by image."
    if other and other.followed is not None:
        yield f"Under the gates of an image of another class, {100 * other.followed:.0f} % of the"
        yield f"images are given that class and {100 * other.accuracy:.0f} % their own: the"
        yield f"{'gates are' if other.followed > other.accuracy else 'image is'} believed more."
    if gates.probes:
        share = 100 * gates.probes.neighbours
        yield f"A vote of the ten images with the most similar gates is right for {share:.0f} %."


def main() -> None:
    """Write README.md anew."""
    page = Path(__file__).parents[1] / "README.md"
    write_file(page, fill(page.read_text(), read_results(page.parent / RESULTS)))


if __name__ == "__main__":
    with mistakes_reported():
        main()
