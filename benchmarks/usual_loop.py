"""The loop that gaternet's own is compared with: torchvision's way, as well as it is written.

    python benchmarks/usual_loop.py cifar10/resnet20-gated-short --data DIR [--steps 50]

PIL images through a DataLoader with workers, torchvision's transforms, float32, no torch.compile,
on the same model, loss and optimiser. `gaternet bench train` takes its `loop_ratio` from here; this
file alone prints the images per second.
"""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
import tyro
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from gaternet import gated_cross_entropy, recipes
from gaternet.data.image_set import ImageSet
from gaternet.data.sources import load
from gaternet.training.compute import choose_device, usable_cores
from gaternet.training.config import Recipe
from gaternet.training.phases import build_model


class Pictures(Dataset[Any]):
    """Images in memory that are augmented one by one, as torchvision's CIFAR10 does it."""

    def __init__(self, images: ImageSet, transform: transforms.Compose) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self.labels = images.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = Image.fromarray(self.pixels[index].squeeze())
        return self.transform(picture), self.labels[index]


def augmentation(recipe: Recipe) -> transforms.Compose:
    """Return the recipe's augmentation out of torchvision's transforms."""
    data, settings = recipe.data, recipe.augmentation
    steps: list[Any] = []
    if settings.crop_padding:
        steps.append(transforms.RandomCrop(data.image_size, padding=settings.crop_padding))
    if settings.mirror:
        steps.append(transforms.RandomHorizontalFlip())
    steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    return transforms.Compose(steps)


def train(
    model: nn.Module, images: ImageSet, recipe: Recipe, device: torch.device, workers: int
) -> Iterator[int]:
    """Train a gated model, epoch after epoch, on settings of SGD; yield each step's images.

    Its loss is cross entropy and the L1 term of the gates: no smoothed labels, rates or budgets.
    """
    assert recipe.gating is not None
    settings = recipe.optimizer
    loader = DataLoader(
        Pictures(images, augmentation(recipe)),
        batch_size=recipe.schedule.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    model = model.to(device).train()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
    for _ in itertools.count():
        total_loss = torch.zeros((), device=device)
        for batch, labels in loader:
            batch = batch.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            logits, gates = model(batch)
            loss = gated_cross_entropy(logits, gates, labels, sparsity=recipe.gating.sparsity)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss += loss.detach()
            yield len(labels)


def main(recipe: str, /, data: str, steps: int = 50, warmup: int = 5, device: str = "auto") -> None:
    """Print how many images per second the usual loop trains on.

    Args:
        recipe: Name of a gated recipe whose images are held in memory.
        data: Folder or hub name of the images.
        steps: Steps that are timed.
        warmup: Steps before them.
        device: auto, cpu, cuda or cuda:N.
    """
    found = recipes.get(recipe)
    images = load(data, found.data, "train", found.data.image_size)
    assert isinstance(images, ImageSet)
    chosen = choose_device(device)
    torch.backends.cudnn.benchmark = True
    loop = train(build_model(found), images, found, chosen, usable_cores())
    sum(itertools.islice(loop, warmup))
    start = time.perf_counter()
    trained = sum(itertools.islice(loop, steps))
    if chosen.type == "cuda":
        torch.cuda.synchronize()
    print(f"{trained / (time.perf_counter() - start):,.0f} images/s")


if __name__ == "__main__":
    # Not above: `gaternet bench train` loads this file by itself.
    from report import mistakes_reported

    with mistakes_reported():
        tyro.cli(main)
