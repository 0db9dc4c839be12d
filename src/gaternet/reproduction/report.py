"""docs/results.md and its figures, from the files in results/: not a figure is typed by hand."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from gaternet.reproduction.curve_figure import curve_figure
from gaternet.reproduction.curves import curve_section
from gaternet.reproduction.error_tables import error_tables
from gaternet.reproduction.gate_findings import finding_figures, findings_section
from gaternet.reproduction.results import Results
from gaternet.reproduction.sweeps import sweep_section

FIGURES = "figures"
"""Folder of the figures, beside the page."""

HEAD = """# Results

Written by `gaternet reproduce` from the files of what was measured; each names its command,
settings, hardware and seed. Test images give errors and chose nothing.

In tables of errors, the standard deviation over seeds stands after ±; of differences, half the
width of a 95 % interval (Student's t, the variance over seeds pooled over the networks of a table,
no correction for asking several questions). The paper prints one figure a row, and no spread. The
gated network and the control start from the plain network's runs and are trained on for as many
epochs, the others are trained once; hours are those of the last phase. The ensemble is the two
networks that the gated one starts from, their probabilities averaged: nothing more is trained.
Multiply-accumulates are of one image with every filter computed, the gater's included.
"""


def render(found: Results, results: str) -> str:
    """Return the page of all that was measured.

    results: the folder of the files, seen from the page
    """
    return "\n".join(_lines(found, results))


def draw(found: Results) -> Iterator[tuple[str, Figure]]:
    """Yield the name of each figure of the page, and the figure."""
    for curve in found.curves:
        yield curve.name, curve_figure(curve.found)
    for behaviour in found.behaviours:
        for name, figure in finding_figures(behaviour.found):
            yield f"{behaviour.name}-{name}", figure


def _lines(found: Results, results: str) -> Iterator[str]:
    yield HEAD
    for table in error_tables(found.runs):
        yield from (f"## {table.title}", "", *table.errors(results), "")
        yield from (*table.differences(), "", table.verdict(), "")
    yield from sweep_section(found.sweeps, results)
    yield from curve_section(found.curves, results, FIGURES)
    yield from findings_section(found.behaviours, found.runs, results, FIGURES)
