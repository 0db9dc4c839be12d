"""Batches from a set of images that lies on the device as one tensor."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gaternet.data.augmentation import normalise
from gaternet.data.image_set import ImageSet
from gaternet.data.settings import DataConfig
from gaternet.randomness import permutation


class Batch(NamedTuple):
    """Some images of a set, all on one device."""

    indices: Tensor  # (N,) int64, each image's place in the set
    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64


def epoch_batches(
    image_set: ImageSet, seed: int, epoch: int, batch_size: int, device: torch.device | str
) -> Iterator[Batch]:
    """Yield an epoch's training batches, in an order that follows from (seed, epoch) alone.

    The ragged end is dropped, so that every batch has the same shape. Raises ValueError where the
    set does not fill one batch.
    """
    count = len(image_set)
    if not 0 < batch_size <= count:
        raise ValueError(f"batch size {batch_size} does not fit a set of {count} images")
    image_set = image_set.to(device)
    order = permutation(seed, epoch, count).to(device)
    for index in order[: count - count % batch_size].split(batch_size):
        images = image_set.images.index_select(0, index)
        yield Batch(index, images, image_set.labels.index_select(0, index))


def evaluation_batches(
    image_set: ImageSet, batch_size: int, device: torch.device | str
) -> Iterator[Batch]:
    """Yield every image exactly once, in the set's order; the last batch may be smaller."""
    index = torch.arange(len(image_set), device=device)
    images, labels = image_set.images.split(batch_size), image_set.labels.split(batch_size)
    for where, pixels, targets in zip(index.split(batch_size), images, labels, strict=True):
        yield Batch(where, pixels.to(device), targets.to(device))


def normalised_batches(
    image_set: ImageSet, config: DataConfig, device: torch.device | str, batch_size: int = 500
) -> Iterator[Tensor]:
    """Yield every image exactly once as networks take them, (N, C, H, W) float32."""
    for batch in evaluation_batches(image_set, batch_size, device):
        yield normalise(batch.images, config.mean, config.std)
