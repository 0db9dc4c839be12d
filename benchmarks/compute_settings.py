"""How long a training step takes under each number format, memory layout, compiled or not.

    python benchmarks/compute_settings.py [--rounds 20] [--out results/compute_settings.json]

The settings that `auto` takes follow from this. All variants are timed in turn in every round;
prints the median of each in milliseconds.
"""

import itertools
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from gaternet import recipes
from gaternet.training.compute import choose_device, plan
from gaternet.training.config import Compute
from gaternet.training.phases import build_model
from gaternet.training.trainer import Trainer
from random_images import random_images
from report import mistakes_reported, publish


@dataclass(frozen=True)
class Settings:
    """What is timed, and how often."""

    recipe: str = "cifar10/resnet20-short"
    rounds: int = 20
    warmup: int = 3
    device: str = "auto"
    out: Path | None = None


def main(settings: Settings) -> None:
    """Time a step of every variant and print the medians."""
    device = choose_device(settings.device)
    choices = itertools.product(("float32", "bfloat16"), ("off", "on"), (False, True))
    trainers = {}
    for precision, compiled, last in choices:
        compute = Compute(precision=precision, compile=compiled, channels_last=last)  # type: ignore[arg-type]
        recipe = replace(recipes.get(settings.recipe), compute=compute)
        name = f"{precision}, compile {compiled}, channels_last {last}"
        trainers[name] = Trainer(build_model(recipe), recipe, plan(compute, device))
        trainers[name].model.train()
    whole = recipes.get(settings.recipe)
    images = random_images(whole.data, whole.schedule.batch_size).to(device)
    batch = next(iter(next(iter(trainers.values())).batches(images)))
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for round_ in range(settings.warmup + settings.rounds):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.step(*batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_ >= settings.warmup:
                times[name].append(time.perf_counter() - start)
    medians = {name: round(1000 * statistics.median(t), 1) for name, t in times.items()}
    publish({"rounds": settings.rounds, "median_ms": medians}, device, settings.out)


if __name__ == "__main__":
    with mistakes_reported():
        main(tyro.cli(Settings))
