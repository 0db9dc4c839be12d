"""docs/results.md and its figures, from the files in results/: not a figure is typed by hand."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from gaternet.reproduction.curve_figure import curve_figure
from gaternet.reproduction.curves import curve_section
from gaternet.reproduction.error_tables import error_tables
from gaternet.reproduction.gate_findings import finding_figures, findings_section, trained_alike
from gaternet.reproduction.markdown import listed
from gaternet.reproduction.results import Results
from gaternet.reproduction.trials import trials_section

FIGURES = "figures"
"""Folder of the figures, beside the page."""

HEAD = """# Results

Written by `gaternet reproduce` from the files of what was measured; each names its command,
settings, hardware and seed. Errors are of test images, which chose no setting.

The gated network is a backbone and a gater, both trained as plain networks first and then
together. The control is that backbone trained on for as many epochs without gates, and no gater is
trained for it. The ensemble is the backbone and the gater as they were before, their probabilities
of classes averaged: about as many parameters, and nothing more trained. One mask for all images is
trained as gates are, with a gater that sees nothing. All others are trained once; smaller networks,
beside gates that save multiply-accumulates, for as many epochs as these have had in both phases.

In tables of errors, ± is the standard deviation over seeds. In tables of differences it is half the
width of a 95 % interval: Student's t over seeds, on these test images, with the variance pooled
over the networks of a table once that has 3 degrees of freedom. Runs that start from the same
networks are taken as independent. Intervals are of one question by itself; a sentence says which
differences are significant no longer when all questions of a table are corrected for. Where it is
known which test images each run classifies rightly, the interval over test images is given if it is
wider: it compares these very networks, and does not say what other seeds would do. Neither covers
both, so that for other seeds on other images each is too narrow. The paper prints one figure a row,
and no spread.

Where sentences name a cost it is that of an image. How long networks were trained is in the column
of epochs: the gated network and the control have had another phase, and a gater was trained
besides; it is the control that says what the longer training does by itself.

Training errors are the last epoch's, on augmented images under training's gates, where they were
kept. Multiply-accumulates are of one image with every filter computed, the gater's included; needed
are those that are left when closed filters are skipped. In tables of differences they are the first
network's as a multiple of the second's: the cost at which it has its error. Hours are those of the
last phase of each run, on a machine with other work: they do not measure what a network costs.
Hardware is that of the epochs that noted it: of older runs that went on elsewhere, the last ones.
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
    for behaviour, *_ in trained_alike(found.behaviours)[:1]:  # one is enough for the eye
        for name, figure in finding_figures(behaviour.found):
            yield f"{behaviour.name}-{name}", figure


def _lines(found: Results, results: str) -> Iterator[str]:
    yield HEAD
    tables = list(error_tables(found.runs))
    for table in tables:
        yield from (f"## {table.title}", "", *table.errors(results), "")
        if table.short:
            yield table.note()
        yield from (*table.differences(), "", table.verdict(), "")
        if table.block.remark:
            yield from (table.block.remark, "")
    shown = {run.file for table in tables for _, runs in table.rows for run in runs}
    if left := [run.file for run in found.runs if run.file not in shown]:
        links = listed([f"[{file}]({results}/{file})" for file in left])
        yield from (
            f"In no table, since others start from it or none is trained alike: {links}.",
            "",
        )
    yield from trials_section(found.trials, results)
    yield from curve_section(found.curves, results, FIGURES)
    yield from findings_section(found.behaviours, found.runs, results, FIGURES)
