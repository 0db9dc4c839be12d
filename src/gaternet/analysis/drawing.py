"""All figures of an analysis, and their files."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from gaternet.analysis import figures, style
from gaternet.analysis.classes import class_layer_rates
from gaternet.analysis.derived import Derived
from gaternet.analysis.findings import Findings, Measured
from gaternet.analysis.split_record import SplitRecord
from gaternet.analysis.statistics import opening_rates
from gaternet.disk import remove_file

FIGURES = (
    *("kinds-share", "kinds-number", "opening-rates", "open-gates", "embedding", "entropy"),
    *("information", "class-layers", "class-agreement", "costs", "swaps", "agreement"),
)


def draw_figures(
    record: SplitRecord, derived: Derived, found: Findings, measured: Measured
) -> Iterator[tuple[str, Figure]]:
    """Yield the name of each figure and the figure, but for those that `found.missing` names."""
    gates, layers = record.gates, record.gates.layers()
    rates = opening_rates(gates)
    yield "kinds-share", figures.layer_kinds(layers)
    yield "kinds-number", figures.layer_kinds(layers, share=False)
    yield "opening-rates", figures.opening_histogram(rates, len(record))
    yield "open-gates", figures.open_gates_histogram(gates.open_per_image(), found.open_gates)
    yield "entropy", figures.layer_entropy(layers, found.layers["entropy"].tolist())
    information = figures.information_by_layer(
        derived.information, gates.slices, found.information.chance
    )
    yield "information", information
    yield "class-layers", figures.class_layer_heat_map(class_layer_rates(record))
    if derived.agreement is not None and "class-agreement" not in found.missing:
        picture = figures.class_agreement_heat_map(derived.agreement, record.classes)
        yield "class-agreement", picture
    yield "costs", figures.cost_histogram(derived.macs, record.right, found.costs.backbone)
    chance = found.probes.chance if found.probes else None
    yield "swaps", figures.swap_bars(measured.swaps, chance)
    if measured.embedding:
        labels = record.labels[measured.embedding.rows]
        picture = figures.embedding_scatter(measured.embedding, labels, record.classes)
        yield "embedding", picture
    if measured.other and measured.against:
        others = opening_rates(measured.other.gates)
        yield "agreement", figures.rate_scatter(rates, others, measured.against)


def write_figures(drawn: dict[str, Figure], directory: Path) -> None:
    """Write figures as PNG and SVG; those of an earlier analysis that are not among them go.

    Raises UserError where the disk does not take them.
    """
    for name in FIGURES:
        for path in (directory / f"{name}.png", directory / f"{name}.svg"):
            remove_file(path)
            if name in drawn:
                style.write(drawn[name], path)
