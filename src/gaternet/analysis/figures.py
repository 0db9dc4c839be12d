"""The paper's figures, and others, drawn from what was recorded; one function a figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gaternet.analysis import style
from gaternet.analysis.embedding import Embedding
from gaternet.analysis.record import LayerUse
from gaternet.analysis.sampling import shuffled
from gaternet.analysis.statistics import OpenGates
from gaternet.analysis.swaps import Swap

# The hatch helps in grey print.
KINDS = (
    ("always on", "always_on", style.BLUE, ""),
    ("input-dependent", "input_dependent", style.ORANGE, "/////"),
    ("always off", "always_off", style.GREY, ""),
)
BINS = 40
ROUNDS = 8
"""In which the points of all classes are drawn by turns."""


def layer_kinds(layers: Sequence[LayerUse], *, share: bool = True) -> Figure:
    """Draw the kinds of gates in each layer, as shares (Figure 2) or in number (Figure 6)."""
    width = min(style.PAGE, max(style.COLUMN, 1.2 + 0.22 * len(layers)))
    with style.panel(width, style.HEIGHT + 0.5) as (figure, axes):
        positions = range(len(layers))
        below = np.zeros(len(layers))
        for label, attribute, colour, hatch in KINDS:
            counts = np.array([getattr(layer, attribute) for layer in layers], dtype=float)
            if share:
                counts *= 100 / np.array([layer.total for layer in layers])
            bars: dict[str, Any] = {
                "color": colour,
                "hatch": hatch,
                "edgecolor": "white",
                "linewidth": 0,
            }
            axes.bar(positions, counts, 0.85, bottom=below, label=label, **bars)
            below += counts
        _name_layers(axes, [layer.name for layer in layers])
        axes.set_ylabel("share of the layer's gates [%]" if share else "gates")
        if share:
            axes.set_ylim(0, 100)
        figure.legend(loc="outside upper center", ncols=3)
        return figure


def opening_histogram(rates: NDArray[np.float64], images: int) -> Figure:
    """Draw for how many images the input-dependent gates are open (Figure 3).

    rates: of all gates, (G,); those at 0 and 1 are left out
    """
    dependent = rates[(rates > 0) & (rates < 1)]
    opened = np.rint(dependent * images).astype(np.int64)
    counts = np.bincount(opened * BINS // images, minlength=BINS)
    with style.panel() as (figure, axes):
        width = images / BINS
        axes.bar(np.arange(BINS) * width, counts, width, align="edge", color=style.BLUE)
        axes.set_xlabel(f"images of {images:,} for which a gate is open")
        axes.set_ylabel("input-dependent gates")
        axes.set_xlim(0, images)
        return figure


def open_gates_histogram(opened: NDArray[np.int64], fit: OpenGates) -> Figure:
    """Draw how many gates images open, (N,), with the normal distribution beside (Figure 4)."""
    with style.panel() as (figure, axes):
        step = max(1, -(-(fit.most - fit.least) // BINS))
        edges = np.arange(fit.least, fit.most + step + 1, step) - 0.5
        axes.hist(opened, edges.tolist(), color=style.SKY, label="images")
        if fit.deviation:
            x = np.linspace(edges[0], edges[-1], 300)
            z = (x - fit.mean) / fit.deviation
            density = np.exp(-(z**2) / 2) / (fit.deviation * np.sqrt(2 * np.pi))
            label = f"normal, {fit.mean:,.1f} ± {fit.deviation:,.1f}"
            axes.plot(x, density * step * len(opened), color=style.BLACK, lw=1, label=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("open gates")
        axes.set_ylabel("images")
        figure.legend(loc="outside upper center", ncols=2)
        return figure


def embedding_scatter(
    embedding: Embedding, labels: NDArray[np.int64], classes: Sequence[str]
) -> Figure:
    """Draw images in the plane, a colour and a marker for each class (Figure 5).

    labels: of the embedding's images, (M,). Of more than 28 classes the 28 with most images have
    one; the others are grey.
    """
    sizes = np.bincount(labels, minlength=len(classes))
    present = np.flatnonzero(sizes)
    commonest = present[np.argsort(-sizes[present], kind="stable")]
    shown = np.sort(commonest[: len(style.SIGNS)])
    with style.panel(5.0, 4.0) as (figure, axes):
        dots: dict[str, Any] = {"s": 5, "linewidths": 0.4, "alpha": 0.7, "rasterized": True}
        rest = embedding.points[~np.isin(labels, shown)]
        if len(rest):
            label = f"{len(present) - len(shown)} others"
            axes.scatter(*rest.T, color=style.GREY, marker=".", label=label, **dots)
        # In rounds, so that no class lies on top of all others.
        rounds = shuffled(len(labels)) % ROUNDS
        for number in range(ROUNDS):
            for place, (colour, marker) in zip(shown, style.SIGNS, strict=False):
                points = embedding.points[(labels == place) & (rounds == number)]
                face = {} if marker == "x" else {"edgecolors": "none"}
                label = "" if number else _plain(classes[place])
                axes.scatter(*points.T, color=colour, marker=marker, label=label, **dots | face)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        legend = figure.legend(loc="outside right upper", markerscale=2)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
        return figure


def layer_entropy(layers: Sequence[LayerUse], entropy: Sequence[float]) -> Figure:
    """Draw the mean entropy of each layer's gates, (L,) in bits."""
    width = min(style.PAGE, max(style.COLUMN, 1.2 + 0.22 * len(layers)))
    with style.panel(width) as (figure, axes):
        axes.bar(range(len(layers)), entropy, 0.85, color=style.BLUE)
        _name_layers(axes, [layer.name for layer in layers])
        axes.set_ylabel("entropy of a gate [bits]")
        axes.set_ylim(0, 1)
        return figure


def information_by_layer(
    information: NDArray[np.float64], slices: dict[str, slice], chance: float
) -> Figure:
    """Draw each gate's mutual information with the class, (G,) in bits, layer by layer."""
    width = min(style.PAGE, max(style.COLUMN, 1.2 + 0.22 * len(slices)))
    with style.panel(width) as (figure, axes):
        for place, columns in enumerate(slices.values()):
            found = information[columns]
            x = place + np.linspace(-0.3, 0.3, len(found) + 2)[1:-1]
            axes.plot(x, found, ".", color=style.BLUE, ms=2.5, alpha=0.6, rasterized=True)
        axes.axhline(chance, color=style.RED, lw=0.8, ls="--", label="chance: an independent gate")
        _name_layers(axes, list(slices))
        axes.set_ylabel("mutual information with the class [bits]")
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside upper right")
        return figure


def class_layer_heat_map(rates: pd.DataFrame) -> Figure:
    """Draw how much more or less each class opens each layer than the mean class.

    rates: from `class_layer_rates`
    """
    difference = 100 * (rates - rates.mean()).to_numpy()
    most = max(float(np.abs(difference).max()), 1e-9)
    height = min(style.PAGE, max(style.HEIGHT, 1.2 + 0.16 * len(rates)))
    width = min(style.PAGE, max(style.COLUMN, 2.0 + 0.22 * len(rates.columns)))
    with style.panel(width, height) as (figure, axes):
        drawn = axes.imshow(difference, cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
        _name_layers(axes, list(rates.columns))
        _name_classes(axes, list(rates.index))
        figure.colorbar(
            drawn, label="opened beyond the mean over classes\n[% of the layer's gates]"
        )
        return figure


def class_agreement_heat_map(agreement: NDArray[np.float64], classes: Sequence[str]) -> Figure:
    """Draw the similarity of classes by their gates, (K, K) from `class_agreement`."""
    side = min(style.PAGE, max(style.COLUMN, 1.6 + 0.16 * len(classes)))
    with style.panel(side + 0.6, side) as (figure, axes):
        drawn = axes.imshow(agreement, cmap=style.MAP)
        _name_classes(axes, classes)
        step = _step(len(classes))
        names = [_plain(name) for name in classes[::step]]
        axes.set_xticks(range(0, len(classes), step), names, rotation=90)
        figure.colorbar(drawn, label="gates that two images have alike [share]")
        return figure


def cost_histogram(macs: NDArray[np.float64], right: NDArray[np.bool_], backbone: int) -> Figure:
    """Draw what images need, (N,), those classified rightly beside the others, (N,).

    As a share of the plain backbone's multiply-accumulates.
    """
    shares = 100 * macs / backbone
    edges = np.linspace(shares.min(), max(shares.max(), shares.min() + 1e-6), BINS + 1)
    with style.panel() as (figure, axes):
        for chosen, label, colour, line in (
            (right, "right", style.BLUE, "-"),
            (~right, "wrong", style.RED, "--"),
        ):
            if chosen.any():
                weights = np.full(int(chosen.sum()), 100 / chosen.sum())
                counts = np.histogram(shares[chosen], edges, weights=weights)[0]
                axes.stairs(counts, edges, label=label, color=colour, ls=line)
        axes.set_xlabel("multiply-accumulates [% of the backbone's]")
        axes.set_ylabel("share of these images [%]")
        figure.legend(loc="outside upper right", ncols=2)
        return figure


def rate_scatter(rates: NDArray[np.float64], others: NDArray[np.float64], split: str) -> Figure:
    """Draw each gate's opening rate, (G,), over that on another split."""
    with style.panel(style.COLUMN, style.COLUMN) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=style.GREY, lw=0.8, zorder=0)
        axes.plot(others, rates, ".", color=style.BLUE, ms=3, alpha=0.6, rasterized=True)
        axes.set_xlabel(f"opening rate, {split} images")
        axes.set_ylabel("opening rate, these images")
        axes.set_aspect("equal")
        return figure


def swap_bars(swaps: Sequence[Swap], chance: float | None) -> Figure:
    """Draw the accuracy under swapped gates; the lines are the intervals of the change."""
    with style.panel(style.COLUMN, 0.9 + 0.24 * len(swaps)) as (figure, axes):
        shown = [100 * swap.accuracy for swap in swaps]
        colours = [style.BLUE, *[style.SKY] * (len(swaps) - 1)]
        intervals = [100 * swap.interval for swap in swaps]
        names = [swap.gates for swap in swaps]
        axes.barh(names, shown, color=colours, xerr=intervals, error_kw={"elinewidth": 0.8})
        if chance is not None:
            axes.axvline(100 * chance, color=style.RED, lw=0.8, ls="--", label="chance")
            figure.legend(loc="outside upper right")
        axes.set_xlabel("accuracy [%]")
        axes.set_ylabel("gates")
        axes.set_xlim(0, 100)
        axes.invert_yaxis()
        return figure


def _step(count: int) -> int:
    """Return how many names there are to each that is written, for 60 at most."""
    return -(-count // 60)


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    step = _step(len(names))
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=6)


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    step = _step(len(names))
    shown = [_plain(name) for name in names[::step]]
    axes.set_yticks(range(0, len(names), step), shown)


def _plain(name: str) -> str:
    """Return a name that is drawn as it stands: neither read as mathematics nor left out."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
