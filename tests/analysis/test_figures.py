"""What figures show against the numbers that they were drawn from."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from PIL import Image

from gaternet.analysis import figures, style
from gaternet.analysis.embedding import Embedding
from gaternet.analysis.record import LayerUse
from gaternet.analysis.statistics import OpenGates
from gaternet.analysis.swaps import Swap
from gaternet.errors import UserError

LAYERS = (
    LayerUse("stage1", 16, 4, 12),
    LayerUse("stage2", 32, 0, 8),
    LayerUse("stage3", 64, 64, 0),
)
NAMES = ["cat", "dog & <b>cow</b>", "$10 or $20", "_hidden"]


def bars(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    (axes,) = figure.axes
    return {
        str(container.get_label()): [(bar.get_y(), bar.get_height()) for bar in container.patches]
        for container in axes.containers
        if isinstance(container, BarContainer)
    }


def drawn_bars(figure: Figure) -> list[tuple[float, float]]:
    """Return where each bar begins, and its height."""
    (axes,) = figure.axes
    return [(bar.get_x(), bar.get_height()) for bar in axes.patches]  # type: ignore[attr-defined]


def test_bars_are_the_shares_of_each_kind(tmp_path: Path) -> None:
    figure = figures.layer_kinds(LAYERS)
    assert bars(figure) == {
        "always on": [(0, 25), (0, 0), (0, 100)],
        "input-dependent": [(25, 0), (0, 75), (100, 0)],
        "always off": [(25, 75), (75, 25), (100, 0)],
    }
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["stage1", "stage2", "stage3"]
    style.write(figure, tmp_path / "gates.png")
    with Image.open(tmp_path / "gates.png") as image:
        assert image.format == "PNG"
        assert image.width == pytest.approx(style.COLUMN * 300, abs=1)


def test_bars_are_the_numbers_of_each_kind() -> None:
    assert bars(figures.layer_kinds(LAYERS, share=False)) == {
        "always on": [(0, 4), (0, 0), (0, 64)],
        "input-dependent": [(4, 0), (0, 24), (64, 0)],
        "always off": [(4, 12), (24, 8), (64, 0)],
    }


def test_rates_of_input_dependent_gates_are_counted() -> None:
    rates = np.array([0, 0, 1, 0.01, 0.02, 0.5, 0.98])
    (axes,) = figures.opening_histogram(rates, 1000).axes
    heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    assert len(heights) == 40
    assert (heights[0], heights[20], heights[39], sum(heights)) == (2, 1, 1, 4)


@pytest.mark.parametrize("images", [40, 100, 120, 10_000])
def test_each_rate_is_in_its_bar(images: int) -> None:
    counts = np.arange(images + 1)
    (axes,) = figures.opening_histogram(counts / images, images).axes
    heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    assert heights == np.bincount([40 * n // images for n in range(1, images)]).tolist()


@pytest.mark.parametrize("most", [12, 400])
def test_images_are_counted_by_their_open_gates(most: int) -> None:
    opened = np.array([10, 10, 11, most])
    fit = OpenGates(10, float(opened.mean()), most, float(opened.std()), 0.1)
    (axes,) = figures.open_gates_histogram(opened, fit).axes
    heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    assert sum(heights) == 4
    assert len(heights) <= 41
    if most == 12:
        assert heights == [2, 1, 1]
    # The area under the curve is that of the bars, but for its ends.
    x, y = axes.lines[0].get_data()
    width = axes.patches[0].get_width()  # type: ignore[attr-defined]
    assert np.trapezoid(np.asarray(y), np.asarray(x)) <= 4 * width


def every_figure(classes: list[str]) -> dict[str, Figure]:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % len(classes)
    names = [f"layer{number}" for number in range(3)]
    rates = generator.random(30)
    points = generator.random((60, 2), dtype=np.float32)
    macs = generator.random(60)
    by_class = pd.DataFrame(generator.random((len(classes), 3)), index=classes, columns=names)
    swaps = [Swap("its own", 60, 0.9, 0.0, 0.0), Swap("others", 60, 0.5, -0.4, 0.1)]
    layers = [LayerUse(name, 10, 2, 1) for name in names]
    slices = {name: slice(10 * number, 10 * number + 10) for number, name in enumerate(names)}
    agreement = generator.random((len(classes), len(classes)))
    return {
        "entropy": figures.layer_entropy(layers, [0.1, 0.5, 0.0]),
        "information": figures.information_by_layer(rates, slices, 0.01),
        "classes": figures.class_layer_heat_map(by_class),
        "agreement": figures.class_agreement_heat_map(agreement, classes),
        "costs": figures.cost_histogram(macs, macs > 0.5, 1),
        "rates": figures.rate_scatter(rates, rates[::-1], "train"),
        "swaps": figures.swap_bars(swaps, 0.1),
        "embedding": figures.embedding_scatter(
            Embedding(points, np.arange(60), 3, 1.0), labels, classes
        ),
    }


def test_every_figure_is_written_as_png_and_svg_with_names_as_they_stand(tmp_path: Path) -> None:
    drawn = every_figure(NAMES)
    for name, figure in drawn.items():
        for suffix in (".png", ".svg"):
            style.write(figure, tmp_path / f"{name}{suffix}")
            assert (tmp_path / f"{name}{suffix}").stat().st_size > 3000
    for name in ("classes", "agreement", "embedding"):
        text = (tmp_path / f"{name}.svg").read_text()
        for shown in ("dog &amp; &lt;b&gt;cow&lt;/b&gt;", "_hidden"):
            assert shown in text
    legend = drawn["embedding"].legends[0]
    assert [text.get_text().strip() for text in legend.get_texts()] == [
        "cat",
        "dog & <b>cow</b>",
        r"\$10 or \$20",
        "_hidden",
    ]


def test_same_figure_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        style.write(every_figure(NAMES)["swaps"], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_of_many_classes_the_commonest_have_colours() -> None:
    classes = [f"class {number}" for number in range(40)]
    labels = np.concatenate([np.arange(40), np.arange(5, 30)])
    embedding = Embedding(np.zeros((65, 2), dtype=np.float32), np.arange(65), 3, 1.0)
    legend = figures.embedding_scatter(embedding, labels, classes).legends[0]
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown[0] == "12 others"
    assert shown[1:] == [f"class {n}" for n in (*range(3), *range(5, 30))]


def test_images_all_alike_are_drawn() -> None:
    opened = figures.open_gates_histogram(np.array([5, 5]), OpenGates(5, 5.0, 5, 0.0, None))
    assert drawn_bars(opened) == [(4.5, 2)]
    assert not opened.axes[0].lines  # there is no normal distribution of deviation 0
    rates = figures.opening_histogram(np.array([0.0, 1.0]), 2)
    assert [height for _, height in drawn_bars(rates)] == [0] * 40
    costs = figures.cost_histogram(np.ones(4), np.ones(4, dtype=bool), 2)
    (right,) = costs.axes[0].patches  # all are right: no curve of wrong ones
    values, edges, _ = right.get_data()  # type: ignore[attr-defined]
    assert values.tolist() == [100] + [0] * 39
    assert edges[0] == 50
    one = pd.DataFrame([[0.5]], index=["cat"], columns=["layer"])
    (shown,) = figures.class_layer_heat_map(one).axes[0].images
    assert np.asarray(shown.get_array()).tolist() == [[0]]  # no class beside the mean class


def test_what_the_disk_does_not_take_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*absent/gates.png: No such file"):
        style.write(figures.layer_kinds(LAYERS), tmp_path / "absent" / "gates.png")
