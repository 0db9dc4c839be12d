"""Draw the share of gates that are always on, input-dependent and always off, layer by layer.

python benchmarks/gate_figure.py RUN --data FOLDER-or-hub-name --out docs/gates.png
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from gaternet import checkpoint
from gaternet.analysis import collect, style
from gaternet.analysis.figures import layer_kinds
from gaternet.data.batches import normalised_batches
from gaternet.data.sources import load
from gaternet.model import GaterNet
from gaternet.training.run import open_run


@dataclass(frozen=True)
class Settings:
    """A gated run, its images, and where the figure goes."""

    run: tyro.conf.Positional[Path]
    data: str
    out: Path


def main(settings: Settings) -> None:
    """Record the gates of every test image and draw them."""
    run = open_run(settings.run)
    recipe = run.config.recipe
    model = checkpoint.load(settings.run)
    assert isinstance(model, GaterNet), f"{settings.run} is a plain network"
    images = load(settings.data, recipe.data, "test")
    batches = normalised_batches(images, recipe.data, "cpu")
    style.write(layer_kinds(collect(model, batches).layers()), settings.out)


if __name__ == "__main__":
    main(tyro.cli(Settings))
