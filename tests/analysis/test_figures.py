"""The figures' bars against the numbers that they were drawn from."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from PIL import Image

from gaternet.analysis.figures import gates_per_layer
from gaternet.analysis.record import LayerUse

LAYERS = (
    LayerUse("stage1", 16, 4, 12),
    LayerUse("stage2", 32, 0, 8),
    LayerUse("stage3", 64, 64, 0),
)


def test_bars_are_the_shares_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig

    def watch(self: Figure, *arguments: Any, **options: Any) -> None:
        drawn.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", watch)
    gates_per_layer(LAYERS, "Gates per layer", tmp_path / "gates.png")
    (axes,) = drawn[0].axes
    bars = {
        str(container.get_label()): [(bar.get_y(), bar.get_height()) for bar in container.patches]
        for container in axes.containers
        if isinstance(container, BarContainer)
    }
    assert bars == {
        "always on": [(0, 25), (0, 0), (0, 100)],
        "input-dependent": [(25, 0), (0, 75), (100, 0)],
        "always off": [(25, 75), (75, 25), (100, 0)],
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["stage1", "stage2", "stage3"]
    assert axes.get_title() == "Gates per layer"
    with Image.open(tmp_path / "gates.png") as image:
        assert image.format == "PNG"
        assert image.width > 600


def test_svg(tmp_path: Path) -> None:
    gates_per_layer(LAYERS * 20, "Many", tmp_path / "gates.svg")
    assert "<svg" in (tmp_path / "gates.svg").read_text()
