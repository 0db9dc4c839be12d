"""Noise in the form that a recipe's network takes: for benchmarks to which images do not matter."""

import torch

from gaternet.data.image_set import ImageSet, make_image_set
from gaternet.data.settings import DataConfig


def random_images(data: DataConfig, count: int) -> ImageSet:
    """Return `count` images of a data set's size, with labels of its classes."""
    shape = (count, data.channels, data.image_size, data.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels = torch.randint(0, data.classes, (count,))
    return make_image_set(images, labels, [str(n) for n in range(data.classes)], "random")
