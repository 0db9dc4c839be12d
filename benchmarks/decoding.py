"""How many images a second one core decodes and crops, and how many a network takes.

    python benchmarks/decoding.py --data DIR [--recipe imagenet/resnet34-gated]
        [--rounds 20] [--out results/decoding.json]

One process decodes batches for training (random-resized crop) and for evaluation (centre crop) in
turn, from a folder whose pages the system may have in memory already: `warmup` rounds see to that.
With --recipe one step of its training, eager, on a batch of its own kind of images that lies on the
device, is timed in the same rounds; `cores_per_device` is how many cores keep that device busy.
Prints JSON: medians, and the 95 % interval of each median from 2,000 bootstrap resamples.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from gaternet import recipes
from gaternet.data.batches import Loading, Order, evaluation_batches, training_batches
from gaternet.data.folders import find_files
from gaternet.data.image_files import ImageFiles
from gaternet.data.settings import IMAGENET, Augmentation, DataConfig
from gaternet.data.sources import load
from gaternet.errors import UserError
from gaternet.training.compute import choose_device, plan
from gaternet.training.config import Recipe
from gaternet.training.phases import build_model
from gaternet.training.trainer import Trainer
from random_images import random_images
from report import mistakes_reported, publish

CPU = torch.device("cpu")
CROPS = Augmentation(crop_padding=0, smallest_area=0.08)


@dataclass(frozen=True)
class Settings:
    """What is timed, and how often."""

    data: Path
    recipe: str | None = None
    images: int = 100
    """Images that a round decodes, twice."""
    batch_size: int = 16
    """Images of the training step."""
    rounds: int = 20
    warmup: int = 2
    device: str = "auto"
    out: Path | None = None


def rate(count: int, seconds: list[float]) -> dict[str, Any]:
    """Return images a second: median over the rounds, and its 95 % interval."""
    rates = count / np.array(seconds)
    draws = np.random.default_rng(0).choice(rates, (2000, len(rates)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return {
        "median": round(float(np.median(rates)), 2),
        "interval": [round(float(low), 2), round(float(high), 2)],
    }


def open_images(settings: Settings, data: DataConfig) -> ImageFiles:
    """Return the images of a round: spread evenly over the training split."""
    folder = find_files(settings.data)
    if folder.kind != "imagefolder":
        raise UserError(f"{settings.data} is not a folder of images by class")
    images = load(settings.data, replace(data, classes=len(folder.classes)), "train")
    assert isinstance(images, ImageFiles)
    return images.take(torch.linspace(0, len(images) - 1, settings.images).long())


def training_step(recipe: Recipe, settings: Settings, device: torch.device) -> Callable[[], object]:
    """Return a function that takes one training step and waits for it."""
    schedule = replace(recipe.schedule, batch_size=settings.batch_size, accumulate=1)
    compute = replace(recipe.compute, compile="off")
    # Its crop is part of the decoding, and takes no time here.
    whole = replace(recipe.augmentation, smallest_area=0.0)
    recipe = replace(recipe, schedule=schedule, compute=compute, augmentation=whole)
    trainer = Trainer(build_model(recipe), recipe, plan(compute, device))
    trainer.model.train()
    batch = next(trainer.batches(random_images(recipe.data, settings.batch_size)))

    def step() -> None:
        trainer.step(*batch)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def main(settings: Settings) -> None:
    """Time decoding and the step in turn, and print the rates."""
    recipe = recipes.get(settings.recipe) if settings.recipe else None
    device = choose_device(settings.device)
    data = recipe.data if recipe else IMAGENET
    images = open_images(settings, data)
    order = Order(0, 0, settings.images, recipe.augmentation if recipe else CROPS, data)
    whole_batch = settings.images
    kinds: dict[str, Callable[[], object]] = {
        "training_crop": lambda: list(training_batches(images, order, Loading(CPU))),
        "evaluation_crop": lambda: list(
            evaluation_batches(images, data, whole_batch, Loading(CPU))
        ),
    }
    if recipe:
        kinds["training_step"] = training_step(recipe, settings, device)
    threads = torch.get_num_threads()
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_ in range(settings.warmup + settings.rounds):
        for kind, action in kinds.items():
            torch.set_num_threads(threads if kind == "training_step" else 1)
            start = time.perf_counter()
            action()
            if round_ >= settings.warmup:
                seconds[kind].append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    counts = {"training_step": settings.batch_size}
    rates = {
        kind: rate(counts.get(kind, settings.images), times) for kind, times in seconds.items()
    }
    figures: dict[str, Any] = {"rounds": settings.rounds, "images_per_second": rates}
    if recipe:
        needed = rates["training_step"]["median"] / rates["training_crop"]["median"]
        figures |= {
            "recipe": recipe.name,
            "step_batch_size": settings.batch_size,
            "cores_per_device": round(needed, 2),
        }
    publish(figures, device, settings.out)


if __name__ == "__main__":
    with mistakes_reported():
        main(tyro.cli(Settings))
