"""A set of images held in memory as one uint8 tensor."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from gaternet.data.settings import DataConfig
from gaternet.randomness import Purpose, sample_keys


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size with their labels, on one device."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64
    classes: tuple[str, ...]
    name: str
    fingerprint: str
    """First 16 hexadecimal digits of the SHA-256 of images, labels and class names."""
    skipped: frozenset[str] = frozenset()
    """Names of the images that were left out because they cannot be decoded or have no label."""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ValueError(
                f"images must be (N, C, H, W) uint8, "
                f"not {tuple(self.images.shape)} {self.images.dtype}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be ({len(self.images)},) int64, "
                f"not {tuple(self.labels.shape)} {self.labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the set on `device`; where it is there already, nothing is copied."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, index: Tensor) -> "ImageSet":
        """Return the images at `index`, (M,) int64, in that order."""
        index = index.to(self.images.device)
        chosen = make_image_set(self.images[index], self.labels[index], self.classes, self.name)
        return replace(chosen, skipped=self.skipped)


def make_image_set(
    images: Tensor, labels: Tensor, classes: Sequence[str], name: str, digest: str | None = None
) -> ImageSet:
    """Return a set with its fingerprint, from `digest` where `content_digest` was taken before."""
    classes = tuple(classes)
    digest = digest or content_digest(images, labels, classes)
    return ImageSet(images, labels, classes, name, digest[:16])


def content_digest(images: Tensor, labels: Tensor, classes: Sequence[str]) -> str:
    """Return the SHA-256 of images (N, C, H, W) uint8, labels (N,) int64 and class names."""
    header = json.dumps([list(images.shape), list(classes)])
    digest = hashlib.sha256(header.encode())
    for tensor in (labels, images):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


class _Selectable(Protocol):
    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Self: ...


Images = TypeVar("Images", bound=_Selectable)


def split_validation(images: Images, size: int, seed: int) -> tuple[Images, Images]:
    """Return (train, validation): `size` images drawn at random are held out (paper, section 4.1).

    Which ones depends on `seed`, `size` and the number of images alone. A larger `size` holds out
    the same images and more. Both parts keep the set's order and have fingerprints of their own.
    Raises ValueError where `size` is not between 0 and the number of images.
    """
    count = len(images)
    if not 0 < size < count:
        raise ValueError(f"cannot hold out {size} of {count} images: give 1 to {count - 1}")
    order = torch.argsort(sample_keys(seed, Purpose.SPLIT, 0, torch.arange(count)), stable=True)
    return images.take(order[size:].sort().values), images.take(order[:size].sort().values)


def channel_statistics(image_set: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, standard deviation) of each channel over all pixels, of values in [0, 1]."""
    means, deviations = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for channel in image_set.images.unbind(1):
        # A histogram is exact and, taken in parts, needs no second copy of the images.
        counts = sum(torch.bincount(part.flatten(), minlength=256) for part in channel.split(1024))
        share = torch.as_tensor(counts, device="cpu").double() / channel.numel()
        mean = float((share * levels).sum())
        means.append(mean)
        deviations.append(float((share * (levels - mean) ** 2).sum()) ** 0.5)
    return tuple(means), tuple(deviations)


def describe(image_set: ImageSet) -> DataConfig:
    """Return the settings that fit these images: the data set of a user's own."""
    mean, std = channel_statistics(image_set)
    _, channels, height, width = image_set.images.shape
    if height != width:
        raise ValueError(f"{image_set.name}: images are {height}×{width} pixels, not square")
    classes = len(image_set.classes)
    return DataConfig(image_set.name, None, classes, height, channels, mean, std)
