"""How figures look: the width of a paper's column, and colours told apart without colour vision."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gaternet.errors import UserError

COLUMN = 3.4
"""Width of a column in inches; a page has two."""
PAGE = 7.0
"""Width of a page in inches."""
HEIGHT = 2.4
"""Usual height of a figure in inches."""

# Okabe and Ito's.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#F0E442"
BLACK, GREY = "#000000", "#BBBBBB"
COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, PURPLE, BLACK)
MARKERS = ("o", "^", "s", "x")
SIGNS = tuple((COLOURS[n % 7], MARKERS[n % 4]) for n in range(28))
"""A colour and a marker for each of 28 classes: neighbours differ in both."""
MAP = "cividis"
"""Colour map of shares; it reads the same without colour vision and in grey print."""

SETTINGS: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "none",
    # Numbers inside SVG files that would differ from run to run.
    "svg.hashsalt": "gaternet",
}


@contextmanager
def panel(width: float = COLUMN, height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """Give an empty figure of one panel, sizes in inches, to be drawn into in this style."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def write(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the file's suffix.

    Raises UserError where the disk does not take it.
    """
    try:
        with matplotlib.rc_context(SETTINGS):
            # Without a date the same figure is the same file.
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, dpi=300, metadata=metadata)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
