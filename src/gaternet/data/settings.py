"""What a data set is and how it is augmented: plain values that recipes are made of."""

from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

from pydantic import ConfigDict

_STRICT = ConfigDict(extra="forbid")

MAX_SIDE = 4096
"""Pixels of a side that images are scaled to."""


@dataclass(frozen=True)
class DataConfig:
    """A data set that a recipe is for: what its images must look like, and how they are scaled."""

    name: str
    hub: str | None
    """Where it is when no folder is given: a name on the Hugging Face hub, or "digits"."""
    classes: int
    image_size: int
    """Height and width in pixels."""
    channels: int
    mean: tuple[float, ...]
    """Mean of each channel, of values in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of each channel, of values in [0, 1]."""
    title: str = ""
    """The name as prose has it; left empty it is `name`."""
    training_images: int = 0
    """How many the published data set has, for what a recipe costs; 0: not known."""
    held: Literal["memory", "disk"] = "memory"
    """memory: decoded once, one tensor on the device; disk: decoded anew whenever it is needed."""
    test_split: Literal["test", "validation"] = "test"
    """The split that errors are reported on; ImageNet's test images have no public labels."""
    shorter_side: int | None = None
    """Pixels that an image's shorter side is scaled to before the centre is cut out for evaluation;
    None: `image_size`."""

    __pydantic_config__ = _STRICT

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.channels, self.image_size, self.image_size

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", self.name)
        if self.classes < 1 or self.channels < 1:
            raise ValueError(
                f"{self.name}: {self.classes} classes, {self.channels} channels: 1 or more"
            )
        for side in (self.image_size, self.shorter_side):
            if side is not None and not 1 <= side <= MAX_SIDE:
                raise ValueError(
                    f"{self.name}: images of {side} pixels: a side has 1 to {MAX_SIDE}"
                )
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"{self.name}: mean {self.mean} and std {self.std} must have one value for each "
                f"of the {self.channels} channels"
            )
        if not all(map(isfinite, (*self.mean, *self.std))):
            raise ValueError(
                f"{self.name}: mean {self.mean} and std {self.std} must be finite numbers"
            )
        if self.shorter_side is not None and self.shorter_side < self.image_size:
            raise ValueError(
                f"{self.name}: shorter_side {self.shorter_side} is less than image_size "
                f"{self.image_size}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"{self.name}: std {self.std} must be above zero")


@dataclass(frozen=True)
class Augmentation:
    """Random changes that every training image goes through, new in every epoch."""

    crop_padding: int = 4
    """Black pixels added on every side before a crop of the old size is taken; 0: no crop."""
    mirror: bool = True
    """Flip left and right with probability 0.5."""
    cutout: int = 0
    """Side in pixels of the square that is blanked out; 0: none."""
    smallest_area: float = 0.0
    """Random-resized crop: the smallest share of the image that a crop may take before it is scaled
    to the network's size; 0: no such crop."""

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more pixels")
        if not 0 <= self.smallest_area <= 1:
            raise ValueError(f"smallest_area is {self.smallest_area}: it is a share, 0 to 1")
        if self.smallest_area and self.crop_padding:
            raise ValueError(
                "smallest_area and crop_padding are two kinds of crop: set one of them to 0"
            )


CIFAR10 = DataConfig(
    name="cifar10",
    hub="uoft-cs/cifar10",
    classes=10,
    image_size=32,
    channels=3,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    title="CIFAR-10",
    training_images=50_000,
)

CIFAR100 = DataConfig(
    name="cifar100",
    hub="uoft-cs/cifar100",
    classes=100,
    image_size=32,
    channels=3,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    title="CIFAR-100",
    training_images=50_000,
)

DIGITS = DataConfig(
    name="digits",
    hub="digits",
    classes=10,
    image_size=8,
    channels=1,
    mean=(0.3056,),
    std=(0.3756,),
    title="Digits",
    training_images=1_297,
)

IMAGENET = DataConfig(
    name="imagenet",
    hub="ILSVRC/imagenet-1k",
    classes=1000,
    image_size=224,
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    title="ImageNet",
    training_images=1_281_167,
    held="disk",
    test_split="validation",
    shorter_side=256,
)

IMAGENET_299 = replace(
    IMAGENET, image_size=299, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), shorter_side=342
)
"""As Inception-v4 takes it: values from −1 to 1, and a crop of 87.5 %."""
