"""What a data set is and how it is augmented: plain values that recipes are made of."""

from dataclasses import dataclass

from pydantic import ConfigDict

_STRICT = ConfigDict(extra="forbid")


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

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", self.name)
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"{self.name}: mean {self.mean} and std {self.std} must have one value for each "
                f"of the {self.channels} channels"
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

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more pixels")


CIFAR10 = DataConfig(
    name="cifar10",
    hub="uoft-cs/cifar10",
    classes=10,
    image_size=32,
    channels=3,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    title="CIFAR-10",
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
)
