"""The paper's figures, drawn from what was recorded."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gaternet.analysis.record import LayerUse

# Okabe and Ito's colours, told apart without colour vision; the hatch helps in grey print.
KINDS = (
    ("always on", "always_on", "#0072B2", ""),
    ("input-dependent", "input_dependent", "#E69F00", "//"),
    ("always off", "always_off", "#BBBBBB", ""),
)


def gates_per_layer(layers: Sequence[LayerUse], title: str, path: Path) -> None:
    """Draw the share of each kind of gate in each layer (Figure 2) into a PNG or SVG file."""
    figure = Figure(figsize=(max(5.0, 1.6 + 0.5 * len(layers)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    positions = range(len(layers))
    below = [0.0] * len(layers)
    for label, attribute, colour, hatch in KINDS:
        shares = [100 * getattr(layer, attribute) / layer.total for layer in layers]
        axes.bar(
            positions,
            shares,
            0.85,
            bottom=below,
            label=label,
            color=colour,
            hatch=hatch,
            edgecolor="white",
        )
        below = [a + b for a, b in zip(below, shares, strict=True)]
    axes.set_xticks(
        positions, [layer.name for layer in layers], rotation=45, ha="right", fontsize=8
    )
    axes.set_ylabel("share of the layer's gates [%]")
    axes.set_ylim(0, 100)
    axes.set_title(title, fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
