"""What training costs beyond its networks' own steps: `gaternet bench train`, kept as a file.

    python benchmarks/training_pace.py cifar10/resnet20-gated-short --data DIR

Writes results/training_pace_RECIPE.json, with command, hardware and date.
"""

from pathlib import Path

import tyro

from gaternet import recipes
from gaternet.bench.presentation import pace_figures
from gaternet.bench.training_pace import PaceRequest, measure_pace
from gaternet.training.compute import choose_device
from report import mistakes_reported, publish


def main(
    recipe: str, /, data: str | None = None, rounds: int = 9, steps: int = 8, device: str = "auto"
) -> None:
    """Measure a recipe's training and write down the ratios.

    Args:
        recipe: Name of a gated recipe.
        data: Folder or hub name of the images; none: the hub name of the recipe's data set.
        rounds: Pairs that every ratio is the median of.
        steps: Length of the pieces of an epoch that are timed.
        device: auto, cpu, cuda or cuda:N.
    """
    found = measure_pace(recipes.get(recipe), data, PaceRequest(rounds, steps, None, device))
    out = Path("results") / f"training_pace_{recipe.replace('/', '-')}.json"
    publish(pace_figures(found), choose_device(device), out)


if __name__ == "__main__":
    with mistakes_reported():
        tyro.cli(main)
