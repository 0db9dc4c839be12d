"""What a gated training step costs against the two plain steps that it is made of.

    python benchmarks/training_step.py [--rounds 40] [--out results/training_step.json]

Each round times one step of every kind in turn, so that a machine whose speed drifts does so for
all of them; the ratio is taken round by round. Prints JSON: medians, and the 95 % interval of each
median from 2,000 bootstrap resamples.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import nn

from gaternet import recipes
from gaternet.data.image_set import make_image_set
from gaternet.training.compute import choose_device, plan
from gaternet.training.phases import build_model
from gaternet.training.trainer import Trainer
from report import publish


@dataclass(frozen=True)
class Settings:
    """What is timed, and how often."""

    gated: str = "cifar10/resnet20-gated-short"
    backbone: str = "cifar10/resnet20-short"
    gater: str = "cifar10/resnet20-short"
    rounds: int = 40
    warmup: int = 5
    device: str = "auto"
    out: Path | None = None


@dataclass(frozen=True)
class Ratio:
    """A median over the rounds and its 95 % interval."""

    median: float
    interval: tuple[float, float]


def ratio(numerators: list[float], denominators: list[float]) -> Ratio:
    """Return the median of the ratios, round by round."""
    ratios = np.array(numerators) / np.array(denominators)
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return Ratio(round(float(np.median(ratios)), 4), (round(float(low), 4), round(float(high), 4)))


def trainer_of(name: str, device: torch.device) -> Trainer:
    """Return the trainer of a recipe at its start, with fresh weights."""
    recipe = recipes.get(name)
    model: nn.Module = build_model(recipe)
    trainer = Trainer(model, recipe, plan(recipe.compute, device))
    trainer.model.train()
    return trainer


def main(settings: Settings) -> None:
    """Time the steps and print the ratios."""
    device = choose_device(settings.device)
    recipes_timed = (settings.backbone, settings.gater, settings.gated)
    trainers = [trainer_of(name, device) for name in recipes_timed]
    images = torch.randint(0, 256, (4096, 3, 32, 32), dtype=torch.uint8)
    image_set = make_image_set(images, torch.randint(0, 10, (4096,)), list("0123456789"), "random")
    image_set = image_set.to(device)
    batches = list(trainers[0].batches(image_set))

    def timed(action: Callable[..., object], *given: object) -> float:
        start = time.perf_counter()
        action(*given)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    steps: list[list[float]] = [[], [], []]
    data: list[float] = []
    supply = iter(trainers[0].batches(image_set))
    for round_ in range(settings.warmup + settings.rounds):
        batch = batches[round_ % len(batches)]
        times = [timed(trainer.step, *batch) for trainer in trainers]
        if round_ % len(batches) == 0:
            supply = iter(trainers[0].batches(image_set))
        supplied = timed(next, supply)
        if round_ >= settings.warmup:
            data.append(supplied)
            for kept, measured in zip(steps, times, strict=True):
                kept.append(measured)
    backbone, gater, gated = steps
    names = ("backbone", "gater", "gated", "data")
    medians = {
        name: round(1000 * statistics.median(times), 2)
        for name, times in zip(names, (*steps, data), strict=True)
    }
    plain = [a + b for a, b in zip(backbone, gater, strict=True)]
    figures = {
        "rounds": settings.rounds,
        "median_ms": medians,
        "step_ratio": asdict(ratio(gated, plain)),
        "data_share": asdict(ratio(data, backbone)),
    }
    publish(figures, device, settings.out)


if __name__ == "__main__":
    main(tyro.cli(Settings))
