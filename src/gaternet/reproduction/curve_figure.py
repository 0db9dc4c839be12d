"""Error over multiply-accumulates and over time, drawn."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gaternet.analysis import style
from gaternet.reproduction.curves import NAMES, label, millions, milliseconds, unbeaten
from gaternet.reproduction.results import Curve, CurvePoint

COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.RED, style.PURPLE, style.SKY)
MASKS = {"trained": {"ls": "--"}, "majority": {"ls": ":", "mfc": "white"}}
SIGNS = ("o", "^", "v", "D", "P", "X")


def curve_figure(curve: Curve) -> Figure:
    """Draw networks: plain ones and masks by their epochs, and each gated one's thresholds.

    The line of the plain ones goes through those that no other plain one beats.
    """
    with rc_context(style.SETTINGS):
        figure = Figure(figsize=(style.PAGE, style.HEIGHT + 0.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        for name, points, look in _series(curve.rows):
            _draw(left, points, millions, look | {"label": name})
            _draw(right, points, milliseconds, look)
        images = "one image" if curve.batch == 1 else f"{curve.batch} images"
        left.set_xlabel("multiply-accumulates per image [millions]")
        right.set_xlabel(f"time for {images} [ms]")
        left.set_ylabel("test error [%]")
        for axes in (left, right):
            axes.set_xlim(left=0)
        figure.legend(loc="outside upper center", ncols=3)
        return figure


def _draw(
    axes: Axes, points: Sequence[CurvePoint], cost: Callable[[CurvePoint], float], look: Any
) -> None:
    """Draw networks as markers, and a line through those that belong on it."""
    if points[0].plain:
        on_line = sorted(unbeaten(points, cost), key=cost)
        if beaten := [point for point in points if point not in on_line]:
            _plot(axes, beaten, cost, look | {"ls": "none", "label": None})
        points = on_line
    _plot(axes, points, cost, look)


def _plot(
    axes: Axes, points: Sequence[CurvePoint], cost: Callable[[CurvePoint], float], look: Any
) -> None:
    errors = [point.error_percent for point in points]
    axes.plot([cost(point) for point in points], errors, **look)


def _series(points: Sequence[CurvePoint]) -> Iterator[tuple[str, list[CurvePoint], Any]]:
    """Yield the name, points and look of each line."""
    plain = sorted((p for p in points if p.plain), key=_epochs_and_macs)
    most = max((point.epochs for point in plain), default=0)
    for epochs, found in groupby(plain, key=_epochs):
        face = style.BLACK if epochs == most else "white"
        look = {"marker": "s", "color": style.BLACK, "ms": 4, "lw": 1, "mfc": face, "mew": 0.8}
        yield f"plain, {epochs} epochs", list(found), look
    for mask, name in NAMES.items():
        masks = sorted((p for p in points if p.mask == mask), key=_epochs_and_macs)
        for epochs, found in groupby(masks, key=_epochs):
            look = {"marker": "d", "color": style.BLACK, "ms": 5, "lw": 1, **MASKS[mask]}
            yield f"{name}, {epochs} epochs", list(found), look
    gated = [point for point in points if point.threshold is not None]
    for place, run in enumerate(dict.fromkeys(point.run for point in gated)):
        mine = sorted((p for p in gated if p.run == run), key=lambda p: p.macs)
        colour, sign = COLOURS[place % len(COLOURS)], SIGNS[place % len(SIGNS)]
        look = {"marker": sign, "color": colour, "ms": 3.5, "lw": 1}
        yield f"{label(mine[0])}, {mine[0].epochs} epochs", mine, look


def _epochs(point: CurvePoint) -> int:
    return point.epochs


def _epochs_and_macs(point: CurvePoint) -> tuple[int, float]:
    return point.epochs, point.macs
