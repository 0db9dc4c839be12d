"""Recipes that train in a second, images to train them on, and what tests do with runs."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gaternet import recipes
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.data.digits import load_digits
from gaternet.data.image_set import ImageSet
from gaternet.data.settings import DataConfig
from gaternet.gater import Gater
from gaternet.model import GaterNet
from gaternet.training.compute import ComputePlan, plan
from gaternet.training.config import Compute, Recipe
from gaternet.training.phases import Options
from gaternet.training.run import Run, RunConfig, create_run

EAGER = Compute(precision="float32", compile="off", channels_last=False)
PLAIN = replace(recipes.get("digits/resnet8"), epochs=2, compute=EAGER)
GATED = replace(recipes.get("digits/resnet8-gated"), epochs=2, compute=EAGER)

PICTURES = DataConfig(
    name="pictures",
    hub=None,
    classes=2,
    image_size=16,
    channels=3,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    held="disk",
    test_split="validation",
    shorter_side=20,
)
"""Images that stay on disk; their tests write them."""


def a_budget_of(share: float | None) -> Recipe:
    """Return a recipe that gates in blocks, inner layers too, on a budget."""
    efficient = recipes.get("cifar10/resnet20-efficient").gating
    assert efficient is not None
    return replace(GATED, gating=replace(efficient, input_size=4, block=4, budget=share))


EFFICIENT = a_budget_of(0.5)


class Silent:
    """A reporter that shows nothing."""

    def step(self, epoch: int, steps: int, numbers: Mapping[str, float]) -> None:
        pass

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        pass


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def on_cpu(console: Console | None = None) -> Options:
    return Options("cpu", console=console or quiet())


def few_digits(count: int = 160, split: str = "train") -> ImageSet:
    return load_digits(split).take(torch.arange(count))


def with_batches(recipe: Recipe, size: int, **settings: Any) -> Recipe:
    """Return the recipe with another batch size and, by name, other settings of its schedule."""
    return replace(recipe, schedule=replace(recipe.schedule, batch_size=size, **settings))


def cpu_plan(recipe: Recipe) -> ComputePlan:
    return plan(recipe.compute, torch.device("cpu"))


def tiny_backbone() -> CifarResNet:
    """A network for digits with 4 + 8 + 8 places for gates."""
    return CifarResNet(8, widths=(4, 8, 8), channels=1, image_size=8)


def tiny_gated() -> GaterNet:
    extractor = CifarResNet(8, classes=0, widths=(4, 4, 4), channels=1, image_size=8)
    return GaterNet(tiny_backbone(), Gater(extractor, bottleneck=4))


def new_run(path: Path, recipe: Recipe, images: ImageSet) -> Run:
    return create_run(path, RunConfig(recipe, images.name, images.fingerprint, images.classes))


def sign_again(directory: Path) -> None:
    """Write a manifest that fits a checkpoint's altered files."""
    files = [file for file in directory.iterdir() if file.name != "manifest.json"]
    manifest = {
        file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()} for file in files
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))


def tree(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory, to see that nothing changed."""
    files = (file for file in directory.rglob("*") if file.is_file())
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}
