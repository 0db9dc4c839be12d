"""What the forms of a network take, drawn: one panel for each batch size."""

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gaternet.errors import UsageError, UserError

if TYPE_CHECKING:
    from gaternet.bench.latency import Latencies

# Okabe and Ito's colours, told apart without colour vision.
COLOURS = {"dense": "#BBBBBB", "slim": "#56B4E9", "runtime": "#D55E00"}
OTHERS = "#E69F00"
SUFFIXES = (".png", ".svg")


def check_figure(path: Path) -> None:
    """Raise UsageError where nothing could be drawn into a file: measuring takes minutes."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--figure {path}: a figure ends in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"--figure {path}: there is no folder {path.parent}")


def latency_figure(found: "Latencies", path: Path) -> None:
    """Draw medians and their intervals as bars into a PNG or SVG file."""
    batches = list(dict.fromkeys(row.batch for row in found.rows))
    figure = Figure(figsize=(2.2 + 2.6 * len(batches), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for axes, batch in zip(panels, batches, strict=True):
        rows = [row for row in found.rows if row.batch == batch]
        medians = [row.median_ms / batch for row in rows]
        below = [(row.median_ms - row.interval_ms[0]) / batch for row in rows]
        above = [(row.interval_ms[1] - row.median_ms) / batch for row in rows]
        colours = [COLOURS.get(row.variant.split("-")[0], OTHERS) for row in rows]
        names = [row.variant for row in rows]
        axes.barh(names, medians, color=colours, xerr=[below, above], ecolor="black", capsize=2)
        for name, median in zip(names, medians, strict=True):
            axes.text(0, name, f" {median:.2f}", va="center", fontsize=8)
        axes.set_title("1 image" if batch == 1 else f"{batch} images", fontsize=10)
        axes.set_xlabel("milliseconds per image")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].invert_yaxis()
    figure.suptitle(f"{found.title} on {found.hardware}", fontsize=9)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--figure {path}: {error}") from None
